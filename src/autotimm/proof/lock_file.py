"""The environment of a run as files that pip or uv installs: exact versions, and autotimm itself as a wheel.

The versions come from what is installed; those that the run has recorded take precedence. Only what autotimm asks for
and what the record names is listed: an environment may hold private packages. No address of an index is written.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import autotimm
from autotimm.errors import ModelError
from autotimm.proof.plain_zip import write_zip
from autotimm.records.environment import package_digest

__all__ = ["REQUIREMENTS", "is_same_package", "locked_versions", "requirements_text", "write_wheel"]

REQUIREMENTS = "requirements.txt"
_NO_PACKAGE = ("autotimm", "python")
_TORCH = ("torch", "torchvision")


def locked_versions(recorded: Mapping[str, Any]) -> dict[str, str]:
    """The version of each package that autotimm needs here, directly or not, by its canonical name.

    Args:
        recorded: The versions in the manifest of a run.
    """
    versions: dict[str, str] = {}
    names = [name for name, version in recorded.items() if isinstance(version, str) and name not in _NO_PACKAGE]
    waiting = [("autotimm", ""), *((name, "") for name in names)]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (key := (str(canonicalize_name(name)), extra)) in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # recorded, and not installed here
        versions[key[0]] = found.version
        waiting += _needed(found, extra)
    versions |= {str(canonicalize_name(name)): str(recorded[name]) for name in names}
    return {name: versions[name] for name in sorted(versions) if name not in _NO_PACKAGE}


def _needed(found: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    for text in found.requires or []:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            yield from ((needed.name, each) for each in ("", *needed.extras))


def requirements_text(versions: Mapping[str, str], wheel: str, python: str) -> str:
    """The lock file.

    Args:
        versions: Versions by name.
        wheel: The path of the wheel of autotimm, from where the file is.
        python: The version of Python.
    """
    lines = [
        f"# Python {python}. Install from this folder, in a new environment: pip install -r {REQUIREMENTS}",
        "# With uv: uv venv && uv pip install -r requirements.txt",
    ]
    for name in _TORCH:
        public, _, local = versions.get(name, "").partition("+")
        if local:
            lines += [f"# {name} was {public}+{local}: if your package index has another build of {public}, add",
                      f"#   --extra-index-url with the index of PyTorch for {local}, see pytorch.org"]  # fmt: skip
    lines.append(f"./{wheel}")
    # A version with a local part, such as 2.14.1+cpu, is in no general index.
    lines += [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    return "\n".join(lines) + "\n"


def is_same_package(recorded: object) -> bool:
    """Whether the installed code of autotimm is the one that a manifest names."""
    return package_digest()[:16] == recorded


def write_wheel(folder: Path) -> Path:
    """Write the installed autotimm as a wheel, with the same bytes each time.

    Args:
        folder: Where it is written; it is made.

    Raises:
        ModelError: If autotimm is not installed as a package.
    """
    try:
        metadata = distribution("autotimm").read_text("METADATA") or ""
        entries = distribution("autotimm").read_text("entry_points.txt") or ""
    except PackageNotFoundError:
        raise ModelError("autotimm must be installed to be put into an archive. Install it with pip.") from None
    version, root = autotimm.__version__, Path(autotimm.__file__).parent
    about = f"autotimm-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: autotimm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files: dict[str, bytes] = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".tmp")
    }
    files |= {f"{about}/METADATA": metadata.encode(), f"{about}/WHEEL": tags.encode()}
    files[f"{about}/entry_points.txt"] = entries.encode()
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in sorted(files.items())]
    files[f"{about}/RECORD"] = "\n".join([*lines, f"{about}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"autotimm-{version}-py3-none-any.whl"
    write_zip(wheel, files)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
