"""What is measured of every image, in one pass over the files: brightness, contrast, sharpness, and a signature.

The measures are those of cleanvision (https://github.com/cleanlab/cleanvision, Apache-2.0) where it has them. They are
taken from images of at most 256 pixels, of which JPEGs are decoded at a reduced scale. They are cached with the other
facts of files, so that a second inspection reads none again. A record takes 356 bytes, whatever the image.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from autotimm.data.file_facts import Problem, facts_per_reading, file_digests, image_sizes
from autotimm.data.image_channels import read_picture
from autotimm.data.image_io import orientation_of, read_rgb
from autotimm.data.image_reading import ImageReading
from autotimm.data.table import Table

__all__ = ["LOOK", "SIGNATURE_SIDE", "look_at", "looks_of"]

SIGNATURE_SIDE = 16
"""Side of the thumbnail by which near duplicates are confirmed."""

LOOK = np.dtype(
    [
        ("width", "<i4"),  # as the network's input is made from it, upright unless that is ignored
        ("height", "<i4"),
        ("orientation", "u1"),  # of the EXIF tag; 1 is upright
        ("low", "<f4"),  # 5th percentile of brightness, in [0, 1]
        ("high", "<f4"),  # 99th percentile of brightness
        ("contrast", "<f4"),  # between the 1st and the 99th percentile of the channel where it is largest
        ("sharpness", "<f4"),  # strongest edge relative to the contrast
        ("hash", "<u8"),  # whether brightness grows from left to right, 8 x 8 bits
        ("thumbnail", "u1", (SIGNATURE_SIDE * SIGNATURE_SIDE,)),
        ("color", "u1", (3,)),  # mean
        ("digest", "S64"),  # SHA-256 of the file, or of the pixels where there is no file
    ]
)
"""One record per image."""

_SIDE = 256
_WEIGHTS = np.array([0.241, 0.691, 0.068])  # of squared channels, as cleanvision weighs them
_RULES = "1"  # counts changes of the record and of what is measured
_STEP = 2.0  # levels that a bit needs: in plain areas JPEG noise would decide otherwise


def look_at(image: Image.Image) -> NDArray[Any]:
    """Measure an RGB image: a record of :data:`LOOK`, without what depends on its file.

    Brightness is the root of a weighted mean of squared channels. Sharpness is the 99.9th percentile of a Laplacian
    relative to the contrast, in the channel with most of it: unlike the variance of the Laplacian it does not depend on
    how much of an image is plain.
    """
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    look = np.zeros((), LOOK)
    rgb = np.asarray(image, np.float32)
    brightness = np.sqrt((rgb * rgb) @ _WEIGHTS) / 255
    look["low"], look["high"] = np.percentile(brightness, (5, 99))
    darkest, brightest = np.percentile(rgb, (1, 99), axis=(0, 1))
    best = int((brightest - darkest).argmax())  # red on green of the same brightness is no contrast in gray
    contrast = float(brightest[best] - darkest[best])
    look["contrast"] = contrast / 255
    look["sharpness"] = _strongest_edge(rgb[..., best]) / max(contrast, 1.0)
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.float32)
    look["hash"] = np.packbits(small[:, 1:] > small[:, :-1] + _STEP).view(">u8")[0]
    square = image.convert("L").resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX)
    look["thumbnail"], look["color"] = np.asarray(square).ravel(), rgb.mean((0, 1)).round()
    return look


def _strongest_edge(gray: NDArray[np.float32]) -> float:
    """The 99.9th percentile of the absolute Laplacian of an image (H, W); infinite for one too small to have any."""
    if min(gray.shape) < 3:
        return float("inf")
    beside = gray[1:-1, :-2] + gray[1:-1, 2:]
    above = gray[:-2, 1:-1] + gray[2:, 1:-1]
    return float(np.percentile(np.abs(4 * gray[1:-1, 1:-1] - beside - above), 99.9))


def looks_of(tables: Mapping[str, Table], progress: bool = True) -> dict[str, NDArray[Any]]:
    """Measure every image of some tables: an array of :data:`LOOK` per split.

    Files are read in threads; images that are no files, such as those of torchvision's data sets, one after the other.
    How files are read is what :func:`autotimm.data.image_reading.reading_as` says.

    Raises:
        DataError: If an image cannot be read any more.
    """
    return {
        split: _of_files(files, progress) if (files := table.files()) else _of_samples(table)
        for split, table in tables.items()
    }


def _of_files(files: Sequence[Path], progress: bool) -> NDArray[Any]:
    measured = facts_per_reading("looks", _encoded, _RULES)(files, progress, "looking at images")
    digests, sizes = file_digests(files, progress), image_sizes(files, progress)
    looks = np.zeros(len(files), LOOK)
    for row, path in enumerate(files):
        fact, digest = measured[path], digests[path]
        if isinstance(fact, Problem) or isinstance(digest, Problem) or path not in sizes:
            continue  # it was readable when the data were checked; a size of 0 leaves it out of every check
        looks[row] = np.frombuffer(base64.b64decode(fact), LOOK)[0]
        looks[row]["width"], looks[row]["height"] = sizes[path]
        looks[row]["digest"] = digest.encode()
    return looks


def _encoded(reading: ImageReading, path: Path) -> str:
    """The record of a file as text, which the cache holds."""
    if reading.is_rgb:
        image = read_rgb(path, reading.upright, (_SIDE, _SIDE))
    else:
        image = to_pil_image(read_picture(path, reading))
    look = look_at(image)
    look["orientation"] = orientation_of(path)
    return base64.b64encode(look.tobytes()).decode()


def _of_samples(table: Table) -> NDArray[Any]:
    looks = np.zeros(len(table), LOOK)
    for row in range(len(table)):
        pixels = table.load(row).image
        shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
        looks[row] = look_at(to_pil_image(shown.contiguous()))
        looks[row]["width"], looks[row]["height"] = pixels.shape[2], pixels.shape[1]
        looks[row]["digest"] = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest().encode()
        looks[row]["orientation"] = 1
    return looks
