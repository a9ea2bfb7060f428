"""Environments of their own for tests of the installed package, made in a second of links to what is installed here."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]


def linked_environment(folder: Path, without: Iterable[str]) -> Path:
    """Make a virtual environment of links to the packages that are installed here, but some; return its Python.

    A package that is left out is neither importable nor listed, as if it had never been installed.

    Args:
        folder: The environment.
        without: Names of distributions, such as ``scikit-learn``.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    hidden = {entry for name in without for entry in _entries(name)}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for source in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for entry in source.iterdir():
            if entry.name not in hidden and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def _entries(name: str) -> set[str]:
    """What a distribution has put into the folder of packages; nothing if it is not installed."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return set()
    return {file.parts[0] for file in files} - {"..", "__pycache__"}


def run(python: Path, *words: str | Path, cwd: Path, sources: bool) -> subprocess.CompletedProcess[str]:
    """Run the Python of an environment; ``sources`` says whether autotimm comes from this checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if sources:
        variables["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run(
        [str(python), *map(str, words)], cwd=cwd, env=variables, capture_output=True, text=True, timeout=1800
    )
