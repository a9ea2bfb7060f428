"""The page of a run as it was written; light, since a training makes its page at the end."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REPORT", "Report"]

REPORT = "report.html"
"""The page in a run folder; the tables of its charts are in the folder ``report`` beside it."""


@dataclass(frozen=True)
class Report:
    """A page that was written; a notebook shows it.

    Attributes:
        path: The file.
    """

    path: Path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style does not change the notebook."""
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        frame = 'style="width:100%;height:760px;border:1px solid #8884;border-radius:8px"'
        return f'<iframe sandbox="allow-scripts allow-modals" {frame} srcdoc="{page}"></iframe>'
