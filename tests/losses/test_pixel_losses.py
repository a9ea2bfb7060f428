"""Losses of every pixel: against torch and smp, and with pixels that nobody knows."""

import math

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss
from torch import Tensor
from torch.nn import functional as F

from autotimm.errors import UsageError
from autotimm.losses import FocalLoss
from autotimm.losses.pixel_losses import DENSE_LOSSES, PixelCrossEntropy, build_dense_loss

EVERY = [*DENSE_LOSSES, "ce+dice", "focal+jaccard"]
WEIGHTS = [0.5, 1.0, 2.0]


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 6, 5, generator=rng), torch.randint(0, 3, (2, 6, 5), generator=rng)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_are_those_of_the_libraries(weights: list[float] | None) -> None:
    logits, targets = example()
    tensor = None if weights is None else torch.tensor(weights)
    flat = logits.movedim(1, -1).reshape(-1, 3)
    expected = {
        "ce": F.cross_entropy(logits, targets, weight=tensor),
        "dice": DiceLoss("multiclass", class_weights=weights)(logits, targets),
        "jaccard": JaccardLoss("multiclass", class_weights=weights)(logits, targets),
        "focal": FocalLoss(tensor)(flat, targets.flatten()),
    }
    found = {
        name: build_dense_loss(name, num_classes=3, class_weights=weights)(logits, targets) for name in DENSE_LOSSES
    }
    for name in DENSE_LOSSES:
        torch.testing.assert_close(found[name], expected[name], msg=name)
    both = build_dense_loss("ce+dice", num_classes=3, class_weights=weights)(logits, targets)
    torch.testing.assert_close(both, found["ce"] + found["dice"])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", EVERY)
def test_unknown_pixels_have_no_say(name: str, weights: list[float] | None, kind: torch.dtype) -> None:
    criterion = build_dense_loss(name, num_classes=3, class_weights=weights)
    logits, targets = example()
    targets = targets.to(kind)
    targets[:, 2:4] = 255
    wild = logits.clone()
    wild[:, :, 2:4] = torch.tensor([1e4, -1e4, math.nan])[None, :, None, None]
    losses, gradients = [], []
    for one in (logits, wild):
        one.requires_grad_()
        loss = criterion(one, targets)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(one.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert (gradients[0][:, :, 2:4] == 0).all()
    assert gradients[0].abs().sum() > 0
    kept = torch.cat([logits[:, :, :2], logits[:, :, 4:]], dim=2).detach()
    without = criterion(kept, torch.cat([targets[:, :2], targets[:, 4:]], dim=1))
    torch.testing.assert_close(losses[0], without)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_which_nothing_is_known_teaches_nothing(name: str, weights: list[float] | None) -> None:
    logits = example()[0].requires_grad_()
    loss = build_dense_loss(name, num_classes=3, class_weights=weights)(logits, torch.full((2, 6, 5), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_another_number_may_stand_for_unknown() -> None:
    logits, targets = example()
    hidden = torch.where(targets == 2, -1, targets)
    shown = torch.where(targets == 2, 255, targets)
    for name in EVERY:
        one = build_dense_loss(name, num_classes=3, ignore_index=-1)(logits, hidden)
        assert torch.equal(one, build_dense_loss(name, num_classes=3)(logits, shown))


def test_a_loss_of_ones_own_is_used_as_it_is() -> None:
    logits, targets = example()
    assert isinstance(build_dense_loss(num_classes=3), PixelCrossEntropy)
    assert build_dense_loss(lambda found, wanted: found.sum(), num_classes=3)(logits, targets) == logits.sum()
    named = build_dense_loss("torch.nn.CrossEntropyLoss", num_classes=3)
    torch.testing.assert_close(named(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dise"}, r"`loss` of a segmenter must be one of ce, .* Did you mean 'dice'"),
        ({"loss": "ce+"}, r"`loss` of a segmenter must be one of ce"),
        ({"ignore_index": 2}, r"`ignore_index` of the loss must be an integer that is no class"),
        ({"class_weights": [1.0, 2.0]}, r"`class_weights` of the loss must be 3 numbers"),
        ({"loss": torch.nn.CrossEntropyLoss(), "class_weights": WEIGHTS}, r"left out with a loss of your own"),
        ({"loss": 3}, r"`loss` of a classifier must be a name|must be a name, an import path"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_dense_loss(**{"num_classes": 3, **options})
