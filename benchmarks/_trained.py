"""A run of a few photographs, for benchmarks that need a run folder but not what it has learned."""

from __future__ import annotations

import os
from pathlib import Path

import autotimm
from autotimm import Run

__all__ = ["briefly_trained"]


def briefly_trained(photos: Path, scratch: Path, network: str, size: int, threads: int) -> Run:
    """Train a classifier with random weights for one epoch on four images of each class.

    Args:
        photos: A folder of class folders.
        scratch: Where the images are linked and the run is written.
        network: The backbone.
        size: The side of its input in pixels.
        threads: CPU threads, also of predictions of the run.
    """
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        (scratch / "photos" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:4]:
            os.symlink(file.resolve(), scratch / "photos" / folder.name / file.name)
    return autotimm.fit(
        scratch / "photos", backbone=network, pretrained=False, image_size=size, epochs=1, batch_size=8, val_split=0.5,
        threads=threads, num_workers=0, accelerator="cpu", progress=False, out=scratch / "runs",
    )  # fmt: skip
