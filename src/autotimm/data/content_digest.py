"""The content of a data set: a digest per sample, so that a changed pixel is noticed, and its file named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from autotimm.data.file_facts import Problem, file_digests
from autotimm.data.table import Table
from autotimm.errors import DataError
from autotimm.records.digest import state_digest
from autotimm.records.sample_index import Content
from autotimm.repro.streams import scope

__all__ = ["content"]


def content(tables: Sequence[Table], progress: bool = True) -> Content:
    """Digest all samples of some tables: files in parallel, with a progress bar if it takes long.

    Args:
        tables: The tables; an id that occurs in several has the digest of the last.
        progress: Whether a progress bar may appear.

    Raises:
        DataError: If a file cannot be read.
    """
    by_id: dict[str, str] = {}
    for table in tables:
        files = table.files()
        digests = _with_targets(table, _digests(files, progress)) if files else _samples(table)
        by_id |= zip(table.ids, digests, strict=True)
    return Content({id: by_id[id] for id in sorted(by_id, key=lambda id: id.encode("utf-8", "surrogatepass"))})


def _with_targets(table: Table, images: Sequence[str]) -> Iterator[str]:
    for index, image in enumerate(images):
        target = table.target_digest(index)
        yield hashlib.sha256(f"{image} {target}".encode()).hexdigest() if target else image


def _samples(table: Table) -> Iterator[str]:
    for index, id in enumerate(table.ids):
        with scope(0, "content", id):  # a table of the user's own may draw random numbers while it loads
            sample = table.load(index)
        yield state_digest({"image": sample.image, "target": sample.target})


def _digests(files: Sequence[Path], progress: bool) -> list[str]:
    digests: list[str] = []
    known = file_digests(files, progress)
    for path in files:
        digest = known[path]
        if isinstance(digest, Problem):
            raise DataError(
                f"The file {path} must be readable. It is not ({digest.reason}). Replace it or remove it from the data."
            )
        digests.append(digest)
    return digests
