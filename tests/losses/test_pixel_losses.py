"""Losses of segmentation, compared with torch and segmentation-models-pytorch, and with unlabeled pixels."""

import math

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss
from torch import Tensor
from torch.nn import functional as F

from autotimm.errors import UsageError
from autotimm.losses import FocalLoss
from autotimm.losses.pixel_losses import DENSE_LOSSES, PixelCrossEntropy, build_dense_loss

ALL_LOSSES = [*DENSE_LOSSES, "ce+dice", "focal+jaccard"]
WEIGHTS = [0.5, 1.0, 2.0]


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 6, 5, generator=rng), torch.randint(0, 3, (2, 6, 5), generator=rng)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_match_the_libraries(weights: list[float] | None) -> None:
    logits, targets = example()
    tensor = None if weights is None else torch.tensor(weights)
    flat = logits.movedim(1, -1).reshape(-1, 3)
    expected = {
        "ce": F.cross_entropy(logits, targets, weight=tensor),
        "dice": DiceLoss("multiclass", class_weights=weights)(logits, targets),
        "jaccard": JaccardLoss("multiclass", class_weights=weights)(logits, targets),
        "focal": FocalLoss(tensor)(flat, targets.flatten()),
    }
    losses = {
        name: build_dense_loss(name, num_classes=3, class_weights=weights)(logits, targets) for name in DENSE_LOSSES
    }
    for name in DENSE_LOSSES:
        torch.testing.assert_close(losses[name], expected[name], msg=name)
    both = build_dense_loss("ce+dice", num_classes=3, class_weights=weights)(logits, targets)
    torch.testing.assert_close(both, losses["ce"] + losses["dice"])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_unlabeled_pixels_do_not_affect_loss_or_gradient(
    name: str, weights: list[float] | None, kind: torch.dtype
) -> None:
    criterion = build_dense_loss(name, num_classes=3, class_weights=weights)
    logits, targets = example()
    targets = targets.to(kind)
    targets[:, 2:4] = 255
    altered = logits.clone()
    altered[:, :, 2:4] = torch.tensor([1e4, -1e4, math.nan])[None, :, None, None]
    losses, gradients = [], []
    for predictions in (logits, altered):
        predictions.requires_grad_()
        loss = criterion(predictions, targets)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(predictions.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert (gradients[0][:, :, 2:4] == 0).all()
    assert gradients[0].abs().sum() > 0
    kept = torch.cat([logits[:, :, :2], logits[:, :, 4:]], dim=2).detach()
    without = criterion(kept, torch.cat([targets[:, :2], targets[:, 4:]], dim=1))
    torch.testing.assert_close(losses[0], without)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_batch_without_labeled_pixels_has_zero_loss_and_gradient(name: str, weights: list[float] | None) -> None:
    logits = example()[0].requires_grad_()
    loss = build_dense_loss(name, num_classes=3, class_weights=weights)(logits, torch.full((2, 6, 5), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_ignore_index_can_be_changed() -> None:
    logits, targets = example()
    with_minus_one = torch.where(targets == 2, -1, targets)
    with_255 = torch.where(targets == 2, 255, targets)
    for name in ALL_LOSSES:
        loss = build_dense_loss(name, num_classes=3, ignore_index=-1)(logits, with_minus_one)
        assert torch.equal(loss, build_dense_loss(name, num_classes=3)(logits, with_255))


def test_custom_losses_are_used_unchanged() -> None:
    logits, targets = example()
    assert isinstance(build_dense_loss(num_classes=3), PixelCrossEntropy)
    assert (
        build_dense_loss(lambda predictions, targets: predictions.sum(), num_classes=3)(logits, targets) == logits.sum()
    )
    named = build_dense_loss("torch.nn.CrossEntropyLoss", num_classes=3)
    torch.testing.assert_close(named(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dise"}, r"`loss` of a segmenter must be one of ce, .* Did you mean 'dice'"),
        ({"loss": "ce+"}, r"`loss` of a segmenter must be one of ce"),
        ({"ignore_index": 2}, r"`ignore_index` of the loss must be an integer that is not a class index"),
        ({"class_weights": [1.0, 2.0]}, r"`class_weights` of the loss must be 3 numbers"),
        ({"loss": torch.nn.CrossEntropyLoss(), "class_weights": WEIGHTS}, r"left out with a loss of your own"),
        ({"loss": 3}, r"`loss` of a classifier must be a name|must be a name, an import path"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_dense_loss(**{"num_classes": 3, **options})
