"""What the pages of runs, the model card and the page of a server share: templates, sources within a page, names."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["SPLIT_NAMES", "TASK_NAMES", "inlined", "templates_of", "without_surrogates"]

TASK_NAMES = {
    "classes": "image classification", "boxes": "object detection", "instances": "instance segmentation",
    "pixels": "semantic segmentation",
}  # fmt: skip
"""What a task is called, by the kind of its data."""

SPLIT_NAMES = {"val": "validation", "test": "test", "folds": "out-of-fold"}
"""What a held-out split is called."""


@cache
def templates_of(package: str, *, escaped: bool = True) -> Environment:
    """The templates in the folder ``templates`` of a package.

    Args:
        package: Its import path.
        escaped: Whether values are escaped as HTML.
    """
    return Environment(
        loader=PackageLoader(package), autoescape=escaped, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def inlined(environment: Environment, name: str) -> tuple[Markup, str]:
    """A style or script to be written into a page, and its digest as a content security policy names it."""
    loader: Any = environment.loader
    text = loader.get_source(environment, name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"sha256-{digest}"


def without_surrogates(page: str) -> str:
    """A page that can be written as UTF-8: names of files need not be."""
    return page.encode("utf-8", "backslashreplace").decode()
