"""The processes of the check: the trainings that each of them runs, and its environment."""

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
from autotimm.records.own_modules import search_path
from autotimm.selfcheck.setup import TOY, Setup
from autotimm.selfcheck.variations import CHECKS, Variation, World, available_cores

__all__ = ["PLAN", "Child", "TrainingProcesses"]

_PARALLEL = 2  # processes, with one thread each
_ERRORS: dict[int, type[AutotimmError]] = {error.exit_code: error for error in (UsageError, DataError, ModelError)}


@dataclass(frozen=True)
class Child:
    """One child process.

    Attributes:
        name: Its name, for messages.
        trainings: Variations by name of the training, in order.
        world: Its environment.
        then: The process to start after it.
    """

    name: str
    trainings: dict[str, Variation]
    world: World = field(default_factory=World)
    then: Child | None = None


_BY_NAME = {check.trained: check.variation for check in CHECKS}
_PLAIN, _TWO_THREADS = Variation(), Variation(trainer={"threads": 2})


def _variations(*names: str) -> dict[str, Variation]:
    return {name: _BY_NAME[name] for name in names}


_RESUMED = Child("resumed after SIGKILL", _variations("resumed"))
_KILLED = Child("killed with SIGKILL", {"resumed": Variation(killed=True)}, then=_RESUMED)
_SAME_PROCESS = _variations("again", "polluted", "callback", "metric", "unvalidated")
PLAN: tuple[Child, ...] = (
    Child("reference training", {"reference": _PLAIN, **_SAME_PROCESS}),
    Child("workers", _variations("restart", "workers1", "workers2", "leaving", "prefetch")),
    # The pairs come first: a process that has trained already cannot be forked.
    Child("two processes", {**dict.fromkeys(("pair", "other_pair"), Variation(processes=2)), "hash": _PLAIN}, World(2)),
    _KILLED,
    Child("other environment", {"surrounded": _PLAIN, "cores": _TWO_THREADS}, World(1, *[True] * 6)),
    Child("other seeds", {**{f"seed_{name}": Variation(stream=name) for name in STREAMS}, "threads": _TWO_THREADS}),
)
"""All processes. The first two must give equal trainings; otherwise the others are not run."""


class TrainingProcesses:
    """Runs child processes in a folder.

    Args:
        folder: Where they write.
        setup: The setup to check.
        say: Called with progress messages.

    Attributes:
        failures: Error messages by name of the training.
    """

    def __init__(self, folder: Path, setup: Setup, say: Callable[[str], None]) -> None:
        self.folder, self.setup, self.say = folder, setup, say
        self.toy = write_toy_folder(folder / "here" / "toy", n=TOY[0], num_classes=TOY[1], image_size=TOY[2], seed=7)
        self.failures: dict[str, str] = {}
        self._elsewhere = folder / "another working directory"

    def run_dir(self, training: str) -> Path:
        """The run folder of a training."""
        return self.folder / "runs" / training

    def run(self, children: Sequence[Child]) -> None:
        """Run child processes, two at a time."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(self._run_chain, children))  # list() raises the errors of the threads

    def _run_chain(self, child: Child | None) -> None:
        while child is not None:
            self._run_child(child)
            child = child.then

    def _run_child(self, child: Child) -> None:
        job_folder = self.folder / "jobs" / child.name
        job_folder.mkdir(parents=True)
        trainings = [
            {"variation": asdict(variation), "run_dir": str(self.run_dir(name))}
            for name, variation in child.trainings.items()
        ]
        toy = self._images(child.world)
        places = [os.path.abspath(entry) for entry in search_path()]
        job = {"setup": asdict(self.setup), "toy": str(toy), "path": places, "trainings": trainings}
        (job_folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "autotimm.selfcheck.training_process", str(job_folder / "job.json")]
        with open(job_folder / "out.txt", "wb") as out, open(job_folder / "err.txt", "wb") as err:
            # Files, not pipes: the data loading workers of a killed process keep a pipe open for a while.
            code = subprocess.run(
                _on_one_core(command) if child.world.one_core else command,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False,
                cwd=self._working_directory(child.world), env=_environment(child.world),
            ).returncode  # fmt: skip
        self._record_failure(child, code, (job_folder / "err.txt").read_text(encoding="utf-8", errors="replace"))

    def _record_failure(self, child: Child, code: int, errors: str) -> None:
        """Store why a training did not finish; raise if it is the reference training."""
        missing = [name for name in child.trainings if not self.run_dir(name).with_suffix(".json").exists()]
        was_killed = code == -signal.SIGKILL and [*child.trainings.values()][-1].killed
        if missing and not (was_killed and missing == [[*child.trainings][-1]]):
            last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"exit code {code}")
            self.failures[missing[0]] = last.strip()
            if missing[0] == "reference":
                raise _ERRORS.get(code, RunError)(
                    last
                    if code in _ERRORS
                    else f"The short training of the self-check fails ({last.strip()}). "
                    "Make it work with `autotimm fit` or a script of your own first."
                )
        self.say(f"trained: {child.name}")

    def _images(self, world: World) -> Path:
        if not (world.moved or world.touched):
            return self.toy
        copied = self.folder / "in another place" / "toy" if world.moved else self.toy
        if world.moved and not copied.exists():
            shutil.copytree(self.toy, copied)  # keeps the file times
        if world.touched:
            for number, path in enumerate(sorted(copied.rglob("*"), reverse=True)):
                os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
        return copied

    def _working_directory(self, world: World) -> Path:
        if not world.elsewhere:
            return Path.cwd()
        if not self._elsewhere.exists():
            self._elsewhere.mkdir()
            for path in Path.cwd().iterdir():
                (self._elsewhere / path.name).symlink_to(path)
        return self._elsewhere


def _on_one_core(command: list[str]) -> list[str]:
    """Bind a command to one core before it starts: libraries count the cores when they are loaded."""
    if available_cores() == 1:
        return command
    code = (
        "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *command]


def _environment(world: World) -> dict[str, str]:
    # Without the safe path the working directory would come before all packages; Python 3.10 does not know it.
    variables = dict(os.environ) | {"PYTHONHASHSEED": str(world.hash_seed), "PYTHONSAFEPATH": "1"}
    if world.locale:
        variables |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    if world.zone:
        variables["TZ"] = "Asia/Kathmandu"  # UTC+5:45: differs from nearly every local time, even in the minutes
    return variables
