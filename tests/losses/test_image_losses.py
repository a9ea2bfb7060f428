import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from autotimm.errors import UsageError
from autotimm.losses import LOSSES, MULTI_LABEL_LOSSES, balanced_weights, build_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
TARGETS = torch.tensor([0, 2, 1, 2])
LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def shifted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits + 1, targets)


class NeedsAnArgument(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()


def test_cross_entropy_matches_the_formula() -> None:
    expected = -sum(math.log(row.softmax(0)[target]) for row, target in zip(LOGITS, TARGETS, strict=True)) / len(LOGITS)
    assert build_loss(num_classes=3)(LOGITS, TARGETS).item() == pytest.approx(expected)


def test_focal_loss_matches_the_formula_and_discounts_easy_samples() -> None:
    focal, bce = build_loss("focal", num_classes=3), build_loss("bce", num_classes=3)
    confident = 20 * F.one_hot(TARGETS, 3).float() - 10
    assert focal(confident, TARGETS) < bce(confident, TARGETS)
    p = LOGITS.sigmoid()
    hot = F.one_hot(TARGETS, 3)
    expected = -(hot * (1 - p) ** 2 * p.log() + (1 - hot) * p**2 * (1 - p).log()).sum(1).mean()
    torch.testing.assert_close(focal(LOGITS, TARGETS), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_single_label_losses_learn(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = build_loss(name, num_classes=3)(logits, TARGETS)
    assert loss.ndim == 0
    loss.backward()
    assert logits.grad is not None
    better = LOGITS - logits.grad
    assert build_loss(name, num_classes=3)(better, TARGETS) < loss


@pytest.mark.parametrize("name", [None, *MULTI_LABEL_LOSSES])
def test_multi_label_losses_learn(name: str | None) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = build_loss(name, multi_label=True, num_classes=3)(logits, LABELS)
    loss.backward()
    assert logits.grad is not None
    assert build_loss(name, multi_label=True, num_classes=3)(LOGITS - 0.1 * logits.grad, LABELS) < loss


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal"])
def test_one_hot_soft_targets_match_class_indices(name: str) -> None:
    loss = build_loss(name, num_classes=3, soft_targets=True)
    torch.testing.assert_close(loss(LOGITS, F.one_hot(TARGETS, 3).float()), loss(LOGITS, TARGETS))
    mixed = torch.tensor([[0.7, 0.3, 0.0]] * 4)
    assert loss(LOGITS, mixed).isfinite()


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    smooth, hot = build_loss(num_classes=3, label_smoothing=0.3), build_loss(num_classes=3)
    torch.testing.assert_close(smooth(LOGITS, TARGETS), hot(LOGITS, 0.7 * F.one_hot(TARGETS, 3) + 0.1))


def test_class_weights_scale_the_loss_of_their_class() -> None:
    weights = [1.0, 2.0, 4.0]
    losses = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    factors = torch.tensor(weights)[TARGETS]
    loss = build_loss(num_classes=3, class_weights=weights)(LOGITS, TARGETS)
    torch.testing.assert_close(loss, (losses * factors).sum() / factors.sum())
    for name in ("bce", "focal"):
        for multi_label, targets in ((False, TARGETS), (True, LABELS)):
            unweighted = build_loss(name, multi_label=multi_label, num_classes=3)
            weighted = build_loss(name, multi_label=multi_label, num_classes=3, class_weights=weights)
            assert weighted(LOGITS, targets) > unweighted(LOGITS, targets)


def test_class_weights_are_in_the_state_dict() -> None:
    for name in ("cross_entropy", "bce", "focal"):
        assert "weight" in build_loss(name, num_classes=2, class_weights=[1, 2]).state_dict()


def test_balanced_weights_match_scikit_learn() -> None:
    y = [0] * 30 + [1] * 10 + [2] * 5
    assert balanced_weights([30, 10, 5]) == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=y))
    assert balanced_weights([3, 0]) == [0.5, 1.5]


def test_custom_losses_are_used_unchanged() -> None:
    expected = shifted(LOGITS, TARGETS)
    module = nn.CrossEntropyLoss()
    assert build_loss(module, num_classes=3) is module
    for loss in (shifted, "torch.nn.functional.cross_entropy", "torch.nn.CrossEntropyLoss", nn.CrossEntropyLoss):
        torch.testing.assert_close(build_loss(loss, num_classes=3)(LOGITS, TARGETS), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "focl"}, r"Unknown `loss` 'focl'. Did you mean 'focal'"),
        ({"loss": "zzz"}, r"Unknown `loss` 'zzz'. Choose one of asymmetric, bce"),
        (
            {"loss": "torch.nn.NoLoss"},
            r"'torch.nn.NoLoss' must be .*: module 'torch.nn' has no attribute",
        ),
        ({"loss": "no_such_module.Loss"}, r"'no_such_module.Loss' must be .* It cannot be imported: No module named"),
        (
            {"loss": "torch.float32"},
            r"must be the import path of a subclass of torch.nn.Module, or of a function",
        ),
        ({"loss": NeedsAnArgument}, r"NeedsAnArgument cannot be created without arguments.*size"),
        ({"loss": int}, r"must be a name, an import path"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` of the loss must be in \[0, 1\). Got 1.0"),
        (
            {"label_smoothing": 0.1, "multi_label": True},
            r"must be 0 with multi_label. Got 0.1 instead. Smoothing spreads",
        ),
        ({"label_smoothing": 0.1, "loss": "focal"}, r"must be 0 with 'focal'"),
        ({"label_smoothing": 0.1, "loss": shifted}, r"`label_smoothing` .* left out with a loss of your own"),
        ({"class_weights": [1.0, 2.0]}, r"`class_weights` of the loss must be 3 numbers of at least 0, not all 0"),
        ({"class_weights": [1.0, -2.0, 1.0]}, r"must be 3 numbers"),
        ({"class_weights": [0, 0, 0]}, r"must be 3 numbers"),
        ({"class_weights": [math.nan, 1, 1]}, r"must be 3 numbers"),
        ({"class_weights": "balanced"}, r"Got 'balanced' instead. Give one number per class"),
        ({"class_weights": [1, 1, 1], "loss": "asymmetric"}, r"left out with 'asymmetric'"),
        ({"class_weights": [1, 1, 1], "loss": "torch.nn.NLLLoss"}, r"left out with 'torch.nn.NLLLoss'"),
        ({"multi_label": True, "loss": "cross_entropy"}, r"must be one for independent classes. Got 'cross_entropy'"),
        ({"loss": "asymmetric", "soft_targets": True}, r"mixup or CutMix must take soft targets. Got 'asymmetric'"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_loss(**{"num_classes": 3, **arguments})  # type: ignore[arg-type]
