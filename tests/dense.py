"""What the tests of detectors and segmenters share: images with objects."""

import torch
from torch import Tensor

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
