"""The processes of the check: which trainings each of them makes, and in what surroundings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autotimm.constants import STREAMS
from autotimm.data.toy import write_toy_folder
from autotimm.errors import AutotimmError, DataError, ModelError, RunError, UsageError
from autotimm.selfcheck.setup import TOY, Setup
from autotimm.selfcheck.variations import CHECKS, Variation, World, available_cores

__all__ = ["PLAN", "Child", "Workshop"]

_AT_ONCE = 2  # processes, of one thread each
_KINDS: dict[int, type[AutotimmError]] = {one.exit_code: one for one in (UsageError, DataError, ModelError)}


@dataclass(frozen=True)
class Child:
    """One process.

    Attributes:
        name: What to call it.
        trainings: Variations by name, in order.
        world: Its surroundings.
        then: The process that follows it.
    """

    name: str
    trainings: dict[str, Variation]
    world: World = field(default_factory=World)
    then: Child | None = None


_BY_NAME = {one.trained: one.variation for one in CHECKS}
_PLAIN, _TWO_THREADS = Variation(), Variation(trainer={"threads": 2})


def _shared(*names: str) -> dict[str, Variation]:
    return {name: _BY_NAME[name] for name in names}


_RESUMED = Child("resumed after SIGKILL", _shared("resumed"))
_KILLED = Child("killed with SIGKILL", {"resumed": Variation(killed=True)}, then=_RESUMED)
_HERE = _shared("again", "polluted", "callback", "metric", "unvalidated")
PLAN: tuple[Child, ...] = (
    Child("the plain training", {"reference": _PLAIN, **_HERE}),
    Child("workers", _shared("restart", "workers1", "workers2", "leaving", "prefetch")),
    # The pairs come first: a process that has trained cannot be forked.
    Child("two processes", {**dict.fromkeys(("pair", "other_pair"), Variation(processes=2)), "hash": _PLAIN}, World(2)),
    _KILLED,
    Child("other surroundings", {"surrounded": _PLAIN, "cores": _TWO_THREADS}, World(1, *[True] * 6)),
    Child("other seeds", {**{f"seed_{name}": Variation(stream=name) for name in STREAMS}, "threads": _TWO_THREADS}),
)
"""What is run when all goes well; without the first two being equal the rest says nothing."""


class Workshop:
    """Runs children in a folder.

    Args:
        folder: Where they write.
        setup: What is checked.
        say: Called with a line for people.
    """

    def __init__(self, folder: Path, setup: Setup, say: Callable[[str], None]) -> None:
        self.folder, self.setup, self.say = folder, setup, say
        self.toy = write_toy_folder(folder / "here" / "toy", n=TOY[0], num_classes=TOY[1], image_size=TOY[2], seed=7)
        self.failures: dict[str, str] = {}
        self._elsewhere = folder / "another working directory"

    def run_dir(self, training: str) -> Path:
        """Where a training leaves its records."""
        return self.folder / "runs" / training

    def run(self, children: Sequence[Child]) -> None:
        """Run children, two at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # list(): an error in a thread is raised here
            list(pool.map(self._chain, children))

    def _chain(self, child: Child | None) -> None:
        while child is not None:
            self._one(child)
            child = child.then

    def _one(self, child: Child) -> None:
        place = self.folder / "jobs" / child.name
        place.mkdir(parents=True)
        trainings = [
            {"variation": asdict(one), "run_dir": str(self.run_dir(name))} for name, one in child.trainings.items()
        ]
        toy = self._images(child.world)
        here = [os.path.abspath(one) for one in sys.path]
        job = {"setup": asdict(self.setup), "toy": str(toy), "path": here, "trainings": trainings}
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "autotimm.selfcheck.training_process", str(place / "job.json")]
        with open(place / "out.txt", "wb") as out, open(place / "err.txt", "wb") as err:
            # Files and no pipes: loading processes of one that was killed keep what they have open for a while.
            code = subprocess.run(
                _on_one_core(command) if child.world.one_core else command,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False,
                cwd=self._working_directory(child.world), env=_variables(child.world),
            ).returncode  # fmt: skip
        self._note(child, code, (place / "err.txt").read_text(encoding="utf-8", errors="replace"))

    def _note(self, child: Child, code: int, errors: str) -> None:
        """Remember which trainings were not made, and why."""
        missing = [name for name in child.trainings if not self.run_dir(name).with_suffix(".json").exists()]
        was_killed = code == -signal.SIGKILL and [*child.trainings.values()][-1].killed
        if missing and not (was_killed and missing == [[*child.trainings][-1]]):
            last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"it ended with {code}")
            self.failures[missing[0]] = last.strip()
            if missing[0] == "reference":
                raise _KINDS.get(code, RunError)(
                    last
                    if code in _KINDS
                    else f"The short training of the check must run. It fails ({last.strip()}). "
                    "Train with `autotimm fit` first, or with a script of your own."
                )
        self.say(f"trained: {child.name}")

    def _images(self, world: World) -> Path:
        if not (world.moved or world.touched):
            return self.toy
        copied = self.folder / "in another place" / "toy" if world.moved else self.toy
        if world.moved and not copied.exists():
            shutil.copytree(self.toy, copied)  # with the times of the files
        if world.touched:
            for number, path in enumerate(sorted(copied.rglob("*"), reverse=True)):
                os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
        return copied

    def _working_directory(self, world: World) -> Path:
        if not world.elsewhere:
            return Path.cwd()
        if not self._elsewhere.exists():
            self._elsewhere.mkdir()
            for one in Path.cwd().iterdir():
                (self._elsewhere / one.name).symlink_to(one)
        return self._elsewhere


def _on_one_core(command: list[str]) -> list[str]:
    """Start a program so that it never sees another core: libraries count them when they are loaded."""
    if available_cores() == 1:
        return command
    code = (
        "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *command]


def _variables(world: World) -> dict[str, str]:
    found = dict(os.environ) | {"PYTHONHASHSEED": str(world.hash_seed)}
    if world.locale:
        found |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    if world.zone:
        found["TZ"] = "Asia/Kathmandu"  # a quarter of an hour beside all others
    return found
