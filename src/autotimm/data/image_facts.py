"""One pass over image files: each is read once, and its digest, its header and its check come from the same bytes.

A complete check decodes the image. A check of headers reads the size, and finds files that are empty, cut off or no
images; damage within the data is found by whoever decodes the image later.

What was found is remembered with the stamp of the file, by the rules of :mod:`autotimm.data.file_facts`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from autotimm.data.decoder_messages import listening
from autotimm.data.fact_pages import FactPages, Known
from autotimm.data.file_facts import (
    Oddity,
    Problem,
    Stamp,
    absolute_paths,
    are_settled,
    file_digests,
    stamp_rows,
    stamps_of,
)
from autotimm.data.image_look import MOST_THREADS, Looked, look_at
from autotimm.data.image_reading import ImageReading, current_reading
from autotimm.data.progress_bar import ProgressBar
from autotimm.data.texts import file_names

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["MANY_BYTES", "MANY_IMAGES", "Facts", "checks_fully", "image_digests", "image_facts", "rules_of", "scan"]

MANY_IMAGES = 20_000
"""More images than these are not decoded before training, unless somebody asks for it."""

MANY_BYTES = 5 * 10**9
"""Nor are images that take more than these together."""

_RULES = 1  # raised with every change of our own code that finds something else
_WINDOW = 1 << 16  # files that are sorted and looked up together
_BLOCKS = {True: 2048, False: 8192}  # files that are remembered at once, decoded or not: what an interruption loses
_TASK = 32  # files that a thread takes at once
_ALONE = 128  # files after which one thread asks whether others would help
_LARGE = 1 << 15  # bytes of a file, the mean, from which on hashing takes longer than all the rest

_STORE = FactPages("images")


class Facts(NamedTuple):
    """What is known of some of many files.

    Attributes:
        start: The number of files before them.
        known: What is known of each; nothing of those that cannot be read.
        problems: Those, by their places among these files.
    """

    start: int
    known: Known
    problems: dict[int, Problem]


def checks_fully(check: str, files: Sequence[str]) -> bool:
    """Whether all images are decoded before training.

    Args:
        check: ``full``, ``headers``, or ``auto``: ``full`` up to :data:`MANY_IMAGES` and :data:`MANY_BYTES`.
        files: The files.
    """
    if check != "auto":
        return check == "full"
    if len(files) > MANY_IMAGES:
        return False
    return sum(stamp.size for stamp in stamps_of(files) if stamp is not None) <= MANY_BYTES


def scan(
    files: Sequence[Path], progress: bool = True, oddities: dict[Path, Oddity] | None = None, *, full: bool = True
) -> list[Problem]:
    """Check every file and list those that fail, in the order of ``files``.

    Args:
        files: The files; one that is listed twice is listed once.
        progress: Whether a bar may appear.
        oddities: Receives what is odd about files that can be read.
        full: Whether to decode them completely.
    """
    problems: dict[Path, Problem] = {}
    for facts in image_facts(file_names(files), full=full, progress=progress):
        for problem in facts.problems.values():
            problems.setdefault(problem.path, problem)
        if oddities is not None:
            oddities |= {files[facts.start + place]: Oddity(*note) for place, note in facts.known.notes.items()}
    return list(problems.values())


def image_digests(
    files: Sequence[str], progress: bool = True, *, cached: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, Problem]]:
    """The SHA-256 of each file, (files, 32), the stamps before, and what cannot be read, by its place in ``files``.

    Args:
        files: The files.
        progress: Whether a bar may appear.
        cached: Whether what was found before may be used; if not, every file is read, and what was wrong forgotten.
    """
    digests = np.zeros((len(files), 32), np.uint8)
    stamps = np.zeros((len(files), len(Stamp._fields) - 1), np.int64)
    is_known = np.zeros(len(files), bool)
    for window in _windows(files):
        now = time.time_ns()  # before the files are read: what happens to them later gives them other stamps
        stamps[window.places] = of_window = stamp_rows(window.names)
        if cached:
            facts = _STORE.find(window.paths).facts
            is_known[window.places] = holds = _hold(window.names, facts, of_window, now)
            digests[window.places[holds]] = facts["digest"][holds]
    unknown = np.flatnonzero(~is_known).tolist()
    paths = [Path(files[place]) for place in unknown]
    read = file_digests(paths, progress, cached=cached) if paths else {}
    problems: dict[int, Problem] = {}
    for place, path in zip(unknown, paths, strict=True):
        digest = read[path]
        if isinstance(digest, Problem):
            problems[place] = digest
        else:
            digests[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    if not cached:
        _forget_others(files, digests)
    return digests, stamps, problems


def _forget_others(files: Sequence[str], digests: NDArray[np.uint8]) -> None:
    """Forget what is known of files that have other digests."""
    for window in _windows(files):
        facts = _STORE.find(window.paths).facts
        wrong = (facts["rules"] > 0) & (facts["digest"] != digests[window.places]).any(axis=1)
        if wrong.any():
            _STORE.remove([window.paths[place] for place in np.flatnonzero(wrong).tolist()])


def rules_of(reading: ImageReading) -> str:
    """By which rules something is found out about images that are read so."""
    own = "" if reading.channels == 3 and reading.upright else f" {tuple(reading)}"
    return f"{_RULES} {PIL.__version__}{own}"


def image_facts(
    files: Sequence[str], *, full: bool, progress: bool = True, title: str = "checking images"
) -> Iterator[Facts]:
    """What is known of the files, in order and many at once; what is not is found out.

    Args:
        files: The files.
        full: Whether they must have been decoded completely.
        progress: Whether a progress bar may appear, on a terminal, if it takes more than 2 seconds.
        title: The title of the bar.
    """
    reading = current_reading()
    rules = rules_of(reading)
    readers = _Readers(partial(look_at, reading, full), full)
    with readers, ProgressBar(len(files), progress, title) as bar:
        yield from map(_Check(rules, full, readers, bar).window, _windows(files))


class _Window(NamedTuple):
    """Some of many files, in the order of their paths.

    Attributes:
        start: The number of files before them.
        order: The place of each among them as they were given.
        names: Their names.
        paths: Their absolute paths; empty for a name that no file can have.
    """

    start: int
    order: NDArray[np.int64]
    names: list[str]
    paths: list[bytes]

    @property
    def places(self) -> NDArray[np.int64]:
        """The place of each among all files."""
        return self.start + self.order


def _windows(files: Iterable[str]) -> Iterator[_Window]:
    remaining, start = iter(files), 0
    while names := list(itertools.islice(remaining, _WINDOW)):
        paths = absolute_paths(names)
        order: Sequence[int] = range(len(names))
        if (ordered := sorted(paths)) != paths:
            order = sorted(order, key=paths.__getitem__)
            names, paths = [names[place] for place in order], ordered
        yield _Window(start, np.array(order, np.int64), names, paths)
        start += len(names)


def _hold(names: Sequence[str], facts: NDArray[Any], stamps: NDArray[np.int64], now_ns: int) -> NDArray[np.bool_]:
    """Whether what was found out about files before still holds, and each can still be read."""
    holds: NDArray[np.bool_] = (
        (facts["rules"] > 0) & (facts["stamp"] == stamps).all(axis=1) & are_settled(stamps, now_ns)
    )
    for place in np.flatnonzero(holds).tolist():
        # A file that was read before may be unreadable for this user.
        if not os.access(names[place], os.R_OK):
            holds[place] = False
    return holds


class _Check:
    """A check of files.

    Args:
        rules: What is remembered was found out under the same.
        full: Whether they are decoded completely.
        readers: Who looks at them.
        bar: Receives the progress.
    """

    def __init__(self, rules: str, full: bool, readers: _Readers, bar: ProgressBar) -> None:
        self._rules, self._full, self._readers, self._bar = rules, full, readers, bar

    def window(self, window: _Window) -> Facts:
        """What is known of the files, or found out."""
        found, known = _STORE.find(window.paths), Known.nothing(len(window.names))
        problems: dict[int, Problem] = {}
        size = _BLOCKS[self._full]
        for start in range(0, len(window.names), size):
            now = time.time_ns()  # before the files are read: what happens to them later gives them other stamps
            block = np.arange(start, min(start + size, len(window.names)))
            holds = self._holds(window, found, block, now)
            self._bar.advance(int(holds.sum()))
            known = known.put(window.order[block[holds]], found.at(block[holds]))
            todo = block[~holds]
            looked = self._look(window, todo, now)
            known = known.put(window.order[todo], looked.known(self._rules))
            problems |= {int(window.order[todo[place]]): problem for place, problem in looked.problems.items()}
        return Facts(window.start, known, dict(sorted(problems.items())))

    def _holds(self, window: _Window, found: Known, block: NDArray[np.int64], now_ns: int) -> NDArray[np.bool_]:
        """Whether what was remembered of some files was found out so, and still holds."""
        facts = found.facts[block]
        fits: NDArray[np.bool_] = found.has_rules(self._rules)[block] & (facts["decoded"] >= self._full)
        names = [window.names[place] for place in block[fits].tolist()]
        fits[fits] = _hold(names, facts[fits], stamp_rows(names), now_ns)
        return fits

    def _look(self, window: _Window, places: NDArray[np.int64], now_ns: int) -> Looked:
        """Look at some files, and remember what was found out. A problem never is: the cure may leave the file."""
        names = [window.names[place] for place in places.tolist()]
        parts: list[Looked] = []
        try:
            with listening():
                for part in self._readers(names):
                    parts.append(part)
                    self._bar.advance(part.files)
        finally:  # an interruption keeps what was found
            looked = Looked.joined(parts)
            known = looked.known(self._rules)
            good = np.flatnonzero((known.facts["rules"] > 0) & are_settled(known.facts["stamp"], now_ns))
            if len(good):
                _STORE.keep([window.paths[place] for place in places[good].tolist()], known.at(good))
        return looked


class _Readers:
    """Looks at files, in threads where that saves time.

    Small files in memory are read faster by one thread: several wait for the lock of the interpreter. Decoding and
    hashing release it, and so does waiting for a disk.

    Args:
        look: Looks at some files.
        decodes: Whether it decodes them.
    """

    def __init__(self, look: Callable[[Sequence[str]], Looked], decodes: bool) -> None:
        self._look = look
        self._threads_pay = decodes or resource is None
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), thread_name_prefix="images")

    def __call__(self, names: Sequence[str]) -> Iterator[Looked]:
        """What is found out about the files, in order, about some of them at a time."""
        start = 0
        while not self._threads_pay and start < len(names):
            part, waited = names[start : start + _ALONE], _waits()
            looked = self._look(part)
            self._threads_pay = looked.size >= _LARGE * len(part) or _waits() - waited >= len(part) / 4
            start += len(part)
            yield looked
        yield from self._pool.map(self._look, (names[at : at + _TASK] for at in range(start, len(names), _TASK)))

    def __enter__(self) -> _Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _waits() -> int:
    """How often this thread, or where that is not known the process, has waited for something such as a disk."""
    return int(resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw)
