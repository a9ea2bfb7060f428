"""Small pictures of samples, each in the page once: a rule of its style sheet with a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_pil_image

from autotimm.data.image_channels import read_picture
from autotimm.data.image_io import BROKEN
from autotimm.data.table import Table
from autotimm.errors import DataError
from autotimm.records.run_folder import FOLDS
from autotimm.report.class_colors import Color

__all__ = ["Pictures"]

_MOST_BYTES = 3_000_000  # of all data URIs: a page of 1,000 images stays below 5 MB


class Pictures:
    """The pictures of a page.

    Args:
        tables: The samples of each split; without them there are no pictures.
        side: Pixels of a square picture, or of the longer side of one that keeps its shape.
        square: Whether pictures are cut to their central square.

    Attributes:
        left_out: How many pictures were asked for and do not fit into the page, or cannot be read.
    """

    def __init__(self, tables: Mapping[str, Table], side: int, *, square: bool) -> None:
        self._side, self._square = side, square
        named = dict(tables)
        if "train" in tables:
            named[FOLDS] = tables["train"]  # its samples are those that the folds have predicted
        self._tables = {split: (table, {id: at for at, id in enumerate(table.ids)}) for split, table in named.items()}
        self._rules: dict[str, str] = {}
        self._bytes = 0
        self.left_out = 0

    @property
    def style(self) -> str:
        """The rules of the style sheet: base64 and our own names, nothing that others have written."""
        return "".join(f".{name}{{background-image:url({uri})}}" for name, uri in self._rules.items())

    def of_sample(self, split: str, id: str) -> str:
        """The class of the picture of a sample; empty if there is none."""
        image = self._read(split, id)
        return "" if image is None else self._add(image, "WEBP", quality=62, method=2)

    def of_labels(self, labels: NDArray[np.uint8], colors: list[Color], hidden: int) -> str:
        """The class of a picture of a label map in the colors of its classes; what is ``hidden`` is transparent."""
        image = Image.fromarray(labels, "P")
        levels = [level for color in colors[:256] for level in color]
        image.putpalette(levels + [0] * (768 - len(levels)))  # of fewer colors Pillow writes fewer bits per pixel
        return self._add(image, "PNG", optimize=False, transparency=hidden)

    def _add(self, image: Image.Image, format: str, **options: Any) -> str:
        file = io.BytesIO()
        image.save(file, format, **options)
        uri = f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
        if self._bytes + len(uri) > _MOST_BYTES:
            self.left_out += 1
            return ""
        self._bytes += len(uri)
        name = f"i{len(self._rules)}"
        self._rules[name] = uri
        return name

    def _read(self, split: str, id: str) -> Image.Image | None:
        table, places = self._tables.get(split, (None, {}))
        if table is None or id not in places:
            return None
        files = table.files()
        try:
            if files:
                reading = table.reading._replace(least=(2 * self._side, 2 * self._side))
                return self._shrunk(to_pil_image(read_picture(files[places[id]], reading)))
            return self._shrunk(to_pil_image(table.load(places[id]).image))
        except (*BROKEN, DataError):  # it was readable when the run began
            self.left_out += 1
            return None

    def _shrunk(self, image: Image.Image) -> Image.Image:
        if self._square:
            return ImageOps.fit(image, (self._side, self._side), Image.Resampling.BILINEAR)
        image.thumbnail((self._side, self._side), Image.Resampling.BILINEAR)
        return image
