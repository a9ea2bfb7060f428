"""The surroundings of a run: versions, hardware, switches and variables that change numbers, and the state of the code.

What is recorded is listed in :mod:`autotimm.records.bit_factors`. Nothing is imported for its version, and no variable
is recorded that is not listed there: an environment may hold keys and passwords.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import autotimm
from autotimm.records.bit_factors import Place, factors_in
from autotimm.records.digest import files_digest
from autotimm.records.replay_versions import CURRENT

__all__ = ["code_patch", "code_state", "environment", "package_digest", "volatile"]


def environment(threads: int, devices: Iterable[str]) -> dict[str, Any]:
    """Describe the surroundings of a run as plain data.

    Args:
        threads: Number of CPU threads of the run.
        devices: Its devices, for example ``["cpu"]`` or ``["cuda:0", "cuda:1"]``.

    Returns:
        ``versions``, ``hardware``, ``libraries``, ``threads``, ``switches``, ``variables`` and ``replay_versions``, as
        in the manifest's schema. What cannot be determined is ``None``. It takes some 20 ms, and imports no
        package.

    Example:
        >>> environment(threads=2, devices=["cpu"])["hardware"]["devices"]
        ['cpu']
    """
    place = Place(threads, [torch.device(name) for name in devices])
    sections: dict[str, dict[str, Any]] = {
        name: {factor.name: factor.read(place) for factor in factors_in(name)}
        for name in ("versions", "hardware", "libraries", "switches", "variables")
    }
    # Which variables are not set would be the longest part of every manifest.
    sections["variables"] = {name: value for name, value in sections["variables"].items() if value is not None}
    return {**sections, "threads": threads, "replay_versions": dict(CURRENT)}


def volatile() -> dict[str, str | None]:
    """The names of this machine and its user: recorded for people, excluded from every digest."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user of a container may have no name
        user = None
    return {"host": platform.node() or None, "user": user}


def code_state(folder: str | Path) -> dict[str, Any] | None:
    """The state of the git repository that contains a folder.

    Returns:
        ``commit`` (``None`` before the first one), ``dirty``, and ``diff``: the digest of all changes since the commit
        and of the names of new Python files, ``None`` if there are none. Other new files do not count: a run's own
        folder may be among them. ``None`` without a repository or without git.
    """
    if (top := _top(folder)) is None:
        return None
    commit = _git(top, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _patch(top) if commit else b""
    new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py")
    if changes is None or new is None:
        return None
    digest = hashlib.sha256(b"%d:" % len(changes) + changes + b"\0".join(sorted(new.split(b"\0")))).hexdigest()
    dirty = bool(changes or new)
    return {"commit": commit.decode().strip() if commit else None, "dirty": dirty, "diff": digest if dirty else None}


def code_patch(folder: str | Path) -> bytes | None:
    """The changes of tracked files since the commit, as git applies them; ``None`` without a repository or git."""
    return None if (top := _top(folder)) is None else _patch(top)


def _patch(top: Path) -> bytes | None:
    # The user's git settings must not change the diff: it depends on the code alone.
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--binary", "--no-renames",
               "--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--diff-algorithm=myers", "--submodule=short",
               "--ignore-submodules=dirty")  # fmt: skip
    if (filters := _own_filters(top)) is None:
        return None
    return _git(top, *filters, "diff", "HEAD", *options)


def _top(folder: str | Path) -> Path | None:
    root = _git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(root.removesuffix(b"\n"))) if root else None


def _own_filters(top: Path) -> list[str] | None:
    """Options of git that switch off the filters of a repository's own settings, which would run on changed files.

    A repository may have come with a run of somebody else. Filters of the user's own settings, such as that of Git LFS,
    are not touched. ``None`` if the settings cannot be read, or a filter cannot be switched off.
    """
    listed = _git(top, "config", "--list", "--show-scope", "--name-only", "-z")
    if listed is None:
        return None
    options: list[str] = []
    words = os.fsdecode(listed).split("\0")
    for scope, name in zip(words[::2], words[1::2], strict=False):
        if scope in ("local", "worktree") and name.startswith("filter."):
            if "=" in name:
                return None
            options += ["-c", f"{name}={'false' if name.endswith('.required') else ''}"]
    return options


def _git(folder: str | Path, *arguments: str) -> bytes | None:
    """The output of git, or ``None`` if it fails, is not installed, or takes more than 5 seconds."""
    # In a git hook, variables point to the repository of the hook.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Nothing here may lock a repository, run its hooks, or fetch what it lacks: it may be that of a stranger.
    variables |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        done = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):  # ValueError: a path with a null character
        return None
    return done.stdout if done.returncode == 0 else None


def package_digest() -> str:
    """The digest of the Python files of autotimm itself, by path and content.

    A process reads them again when one of them has changed.
    """
    root = os.path.dirname(autotimm.__file__)
    return _digest_of_package(root, tuple(_stamps(root)))


@lru_cache(maxsize=1)
def _digest_of_package(root: str, stamps: tuple[tuple[str, int, int, int, int], ...]) -> str:
    return files_digest((path for path, *_ in stamps), root)


def _stamps(folder: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Path, size, mtime, ctime and inode of every Python file in a folder and below."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _stamps(entry.path)
            elif entry.name.endswith(".py"):
                about = entry.stat()
                yield entry.path, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
