"""How image files become pixels: the number of channels, whether an EXIF tag turns them, and how much is decoded.

The first two are settled once for a data set. Readers of formats look them up where they list images, ask for their
sizes or make a table; a table keeps what held when it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from autotimm.types import DataSpec

__all__ = ["ARRAY_SUFFIX", "UPRIGHT_RGB", "ImageReading", "current_reading", "reading_as", "reading_of"]

ARRAY_SUFFIX = ".npy"
"""Extension of NumPy arrays, which are images where these do not have three channels."""


class ImageReading(NamedTuple):
    """How image files are read.

    Attributes:
        channels: The number of channels; 3 is RGB, to which every file can be converted.
        upright: Whether an EXIF tag turns images, as in every viewer.
        least: Height and width that an image must have: a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and
            1/8 at which it has them. ``None`` decodes all of it.
    """

    channels: int = 3
    upright: bool = True
    least: tuple[int, int] | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether images are converted to RGB."""
        return self.channels == 3


UPRIGHT_RGB = ImageReading()
"""How images are read by default."""

_CURRENT: ContextVar[ImageReading] = ContextVar("image_reading", default=UPRIGHT_RGB)


def current_reading() -> ImageReading:
    """How images are read now: as :func:`reading_as` says, or upright and as RGB."""
    return _CURRENT.get()


@contextmanager
def reading_as(reading: ImageReading) -> Iterator[None]:
    """Settle how images are read in a block, and by the tables that are made in it.

    Example:
        >>> with reading_as(ImageReading(channels=4)):
        ...     current_reading().channels
        4
    """
    token = _CURRENT.set(reading)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def reading_of(spec: DataSpec) -> ImageReading:
    """How the images of a model's data were read."""
    return ImageReading(spec.in_chans, not spec.ignore_exif)
