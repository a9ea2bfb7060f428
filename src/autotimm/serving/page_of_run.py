"""The page on which one drops an image and sees what is found. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autotimm.report.class_colors import css_colors, is_background
from autotimm.types import DataSpec

__all__ = ["page_of_run"]

_TASKS = {"classes": "Image classification", "boxes": "Object detection", "instances": "Instance segmentation",
          "pixels": "Semantic segmentation"}  # fmt: skip


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("autotimm.serving"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def page_of_run(facts: Mapping[str, Any], spec: DataSpec) -> tuple[str, str]:
    """Make the page.

    Args:
        facts: What the server says of its run.
        spec: What the model knows of its data.

    Returns:
        The page, and its content security policy: no script but its own runs, and nothing is loaded from elsewhere.
    """
    environment = _environment()
    loader: Any = environment.loader
    style, script = (loader.get_source(environment, name)[0] for name in ("upload.css", "upload.js"))
    classes = [
        {"name": name, "color": color, "painted": not is_background(name)}
        for name, color in zip(spec.class_names, css_colors(spec.class_names), strict=True)
    ]
    page = environment.get_template("upload.html").render(
        style=Markup(style), script=Markup(script), facts=facts, task=_TASKS[spec.kind], classes=classes
    )
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode("utf-8", "backslashreplace").decode(), policy
