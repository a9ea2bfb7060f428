"""ZIP files with equal bytes for equal contents: sorted names, one time, no compression, whose bytes depend on zlib."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from autotimm.records.atomic import atomic_path

__all__ = ["write_zip"]

_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of a ZIP file
_LARGE = 1 << 30


def write_zip(path: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write a ZIP file atomically.

    Args:
        path: The file.
        files: The contents, or the files that have them, by their path in the archive.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix; a file that everybody may read
            content = files[name]
            large = isinstance(content, Path) and content.stat().st_size > _LARGE
            with archive.open(entry, "w", force_zip64=large) as target:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
                else:
                    target.write(content)
