"""``files.csv`` and ``splits.csv``: the samples of a run, their digests and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from autotimm.errors import DataError, join_names, printable
from autotimm.records.atomic import write_text
from autotimm.records.csv_cells import csv_text
from autotimm.records.readers import read_table

__all__ = ["Content", "SampleIndex", "seen_in_training"]


class Content(dict[str, str]):
    """SHA-256 of every sample by id, in byte order of the ids.

    It is the digest of the image file; with boxes or masks from other files, of the digests of all of them; and of
    image and target where samples are not files.
    """

    @property
    def digest(self) -> str:
        """One digest of all samples."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in self.items())
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()

    def changed(self, now: Content) -> list[str]:
        """The samples that differ ``now``, a line each: changed, missing or new.

        Example:
            >>> Content(a="1", b="2").changed(Content(a="1", b="3", c="4"))
            ['changed: b', 'new: c']
        """
        names = sorted({*self, *now}, key=lambda name: name.encode("utf-8", "surrogatepass"))
        return [
            f"{'new' if name not in self else 'missing' if name not in now else 'changed'}: {printable(name)}"
            for name in names
            if self.get(name) != now.get(name)
        ]


def seen_in_training(trained: Mapping[str, str], measured: Mapping[str, str], what: str) -> list[str]:
    """Name the samples of an evaluation that were also trained on, byte for byte; no line if there are none.

    Args:
        trained: Digests of the training samples by id, as :class:`Content` has them.
        measured: Those of the samples of the evaluation.
        what: What these are called, such as ``"test images"``.

    Example:
        >>> seen_in_training({"train/a": "1", "train/b": "2"}, {"test/c": "2", "test/d": "3"}, "test images")
        ['1 of 2 test images also occur in the training set; metrics will be optimistic: test/c (train/b).']
    """
    origin = {digest: name for name, digest in trained.items()}
    both = [f"{name} ({origin[digest]})" for name, digest in measured.items() if digest in origin]
    if not both:
        return []
    return [
        f"{len(both)} of {len(measured)} {what} also occur in the training set; metrics will be optimistic: "
        f"{join_names(both)}."
    ]


_FILES, _SPLITS = ("id", "sha256"), ("id", "class", "split")  # the columns of the two tables


class SampleIndex:
    """The two tables in a run's folder.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def require_same(self, now: Content) -> None:
        """Refuse data that differs from what the run began with: the run would be trained on a mixture of both.

        Raises:
            DataError: If a sample was changed, removed or added since the tables were written.
        """
        if (before := self.content()) is not None and (changed := before.changed(now)):
            some = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise DataError(
                f"The data of {self.folder} must be what the run began with. It is not: {some}. "
                "Restore it, or begin another run."
            )

    def write(self, assignments: Iterable[tuple[str, str, str]], content: Content) -> None:
        """Write both tables.

        Args:
            assignments: Id, class and split of every sample.
            content: The digest of every sample.
        """
        write_text(self.folder / "splits.csv", csv_text([_SPLITS, *sorted(assignments)]))
        write_text(self.folder / "files.csv", csv_text([_FILES, *content.items()]))

    def content(self) -> Content | None:
        """The digests of the samples of the run, or ``None`` if it was made from loaders.

        Raises:
            ModelError: If the table is damaged.
        """
        path = self.folder / "files.csv"
        if not path.exists():
            return None
        return Content((name, digest) for name, digest in read_table(path, _FILES, "the list of samples"))

    def content_of(self, split: str) -> Mapping[str, str]:
        """The digests of the samples of one split by id; empty if the run was made from loaders."""
        content, path = self.content(), self.folder / "splits.csv"
        if content is None or not path.exists():
            return {}
        names = [name for name, _, side in read_table(path, _SPLITS, "the list of splits") if side == split]
        return {name: content[name] for name in names if name in content}

    def overlaps(self) -> list[str]:
        """A line for each split that holds samples of the training set."""
        trained = self.content_of("train")
        splits = {split: self.content_of(split) for split in ("val", "test")}
        return [line for split, part in splits.items() for line in seen_in_training(trained, part, f"{split} images")]
