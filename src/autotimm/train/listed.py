"""``files.csv`` and ``splits.csv``: which samples a run was made with, their digests and their sides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from autotimm.data.content import Content, content, seen_in_training
from autotimm.data.module import DataModule
from autotimm.errors import DataError
from autotimm.repro.files import write_text

__all__ = ["Listed"]


class Listed:
    """The two tables in a run's folder.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, data: DataModule, progress: bool) -> Content:
        """Digest the samples that there are now, and compare with those that are listed, if any are.

        Raises:
            DataError: If a file cannot be read, or if the run began with other data.
        """
        data.setup("fit")
        try:
            found = content([*data.tables.values()], progress)
        except OSError as error:
            # Not left to the caller, who would take it for a folder of the run that cannot be written to.
            raise DataError(
                f"The file {error.filename or 'of a sample'} must be readable. It is not "
                f"({error.strerror or error}). Replace it or take it out of the data."
            ) from error
        self._require_same(found)
        return found

    def _require_same(self, found: Content) -> None:
        """Refuse to go on with other data: half of the run would be of one set, and half of another."""
        if (before := self.content()) is not None and (changed := before.changed(found)):
            some = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise DataError(
                f"The data of {self.folder} must be what the run began with. It is not: {some}. "
                "Put it back as it was, or begin another run."
            )

    def write(self, data: DataModule, found: Content) -> None:
        """Write both tables."""
        write_text(self.folder / "splits.csv", _table(("id", "class", "split"), sorted(data.assignments())))
        write_text(self.folder / "files.csv", _table(("id", "sha256"), found.items()))

    def content(self) -> Content | None:
        """The digests of the samples that the run was made with, or ``None`` if it was made from loaders."""
        path = self.folder / "files.csv"
        if not path.exists():
            return None
        with path.open(newline="", encoding="utf-8") as file:
            return Content((row["id"], row["sha256"]) for row in csv.DictReader(file))

    def content_of(self, split: str) -> Mapping[str, str]:
        """The digests of the samples of one split by id; nothing if the run was made from loaders."""
        found, path = self.content(), self.folder / "splits.csv"
        if found is None or not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            names = [row["id"] for row in csv.DictReader(file) if row["split"] == split]
        return {name: found[name] for name in names if name in found}

    def overlaps(self) -> list[str]:
        """A line for each side that holds samples which are trained on too."""
        trained = self.content_of("train")
        sides = {split: self.content_of(split) for split in ("val", "test")}
        return [line for split, side in sides.items() for line in seen_in_training(trained, side, f"{split} images")]


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
