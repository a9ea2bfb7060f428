"""What the tests of detectors and segmenters share: images with objects, and looks at what CUDA would be asked for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autotimm import Batch, MetricConfig, Prediction, Stage, Step, Task
from autotimm.doctor.documented import Operator
from autotimm.doctor.places import Places
from autotimm.doctor.trace import Trace, _Recorder, trace

Targets = list[dict[str, Tensor]]


def images(number: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (number, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def squares(number: int = 2, side: int = 64, seed: int = 0) -> tuple[Tensor, Targets]:
    """Gray images with 1, 2, 3, 1 ... bright squares, red ones of class 0 and green ones of class 1."""
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randint(90, 110, (number, 3, side, side), dtype=torch.uint8, generator=rng)
    targets = []
    for at in range(number):
        boxes, labels, masks = [], [], []
        for _ in range(1 + at % 3):
            size = int(torch.randint(side // 4, side // 2, (), generator=rng))
            x, y = torch.randint(0, side - size, (2,), generator=rng).tolist()
            label = int(torch.randint(0, 2, (), generator=rng))
            pictures[at, :, y : y + size, x : x + size] = 0
            pictures[at, label, y : y + size, x : x + size] = 255
            mask = torch.zeros(side, side, dtype=torch.uint8)
            mask[y : y + size, x : x + size] = 1
            boxes.append([x, y, x + size, y + size])
            labels.append(label)
            masks.append(mask)
        targets.append(
            {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "masks": torch.stack(masks)}
        )
    return pictures, targets


def nothing(side: int = 64) -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, side, side, dtype=torch.uint8),
    }


class _AsTask(Task):
    """Whatever gives a loss, as a task."""

    def __init__(self, network: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], **options) -> None:
        super().__init__(lambda seed: network, lr=0.1, **options)
        self._loss = [loss]  # in a list: a module would become a part of the task

    def step(self, batch: Batch, stage: Stage) -> Step:
        return Step({"loss": self._loss[0](self.network, batch)})

    def decode(self, output, batch) -> list[Prediction]:
        return []

    def default_metrics(self) -> list[MetricConfig]:
        return []


def traced(network: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> Trace:
    """A training step with fake CUDA tensors; it must not depend on numbers."""
    return trace(_AsTask(network, loss), batch)


def recorded(network: nn.Module, run: Callable[[], Tensor]) -> list[Operator]:
    """What a real step on the CPU asks for of that which raises on CUDA.

    The operators that torch documents have the same names on both; what differs (batch normalization, say) is seen by
    :func:`traced`.
    """
    recorder = _Recorder(Places(network))
    with recorder:
        run().backward()
    assert "aten::convolution_backward" in recorder.seen
    return recorder.operators()
