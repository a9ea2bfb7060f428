"""One run of a study: made, or gone on with, and looked at.

The process of one run: ``python -m autotimm.studies.trial_process CONFIG.yaml [--watch]``.

With ``--watch`` it ends when its standard input does, that is, when the study that started it has died: a killed study
leaves no process behind that would write into a run together with the study's next start.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from autotimm.config import FitConfig, read_yaml
from autotimm.errors import AutotimmError, ModelError, RunError
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run, fit_config

__all__ = ["command", "finished", "main", "work"]


_WAIT = 120.0  # seconds for a process of a killed study to finish its step and its checkpoint


def command(config: str | Path) -> list[str]:
    """The words that start a process for a run; it ends when its standard input does."""
    # By its name: a module that is imported here could not be run as a program as well.
    return [sys.executable, "-m", "autotimm.studies.trial_process", str(config), "--watch"]


def work(config: FitConfig) -> Run:
    """Train, or go on, and measure on test data if there is any."""
    folder = Path(config.out) / str(config.name)
    _wait_for(folder)
    run = _train(config, folder)
    if _has_test(folder) and not _tested(folder):
        run.test()
    return run


def _train(config: FitConfig, folder: Path) -> Run:
    status = _status(folder)
    if status is not None and (status == "finished" or [*folder.glob("checkpoints/*.ckpt")]):
        return Run(folder).resume()
    if folder.exists():
        shutil.rmtree(folder)  # stopped before there was anything to go on from
    return fit_config(config)


def _wait_for(folder: Path) -> None:
    """Wait until no other process writes to the run."""
    if not (folder / ".lock").exists():
        return
    try:
        with FileLock(folder / ".lock", timeout=_WAIT):
            pass
    except Timeout:
        raise RunError(f"The run {folder} must have one writer. Another process is writing to it. End that.") from None


def _status(folder: Path) -> str | None:
    """How the run in a folder ended; ``None`` if there is none, or its record is damaged."""
    try:
        return str(Manifest.load(folder / "manifest.json").results.get("status"))
    except ModelError:
        return None


def _has_test(folder: Path) -> bool:
    with (folder / "splits.csv").open(encoding="utf-8") as lines:
        return any(line.rstrip().endswith(",test") for line in lines)


def _tested(folder: Path) -> bool:
    return any(name.startswith("test/") for name in Run(folder).metrics)


def finished(folder: Path) -> bool:
    """Whether nothing is left to do for the run in a folder."""
    return _status(folder) == "finished" and (not _has_test(folder) or _tested(folder))


def main(argv: Sequence[str]) -> int:
    """Make one run; return the exit code."""
    if "--watch" in argv:
        threading.Thread(target=_end_with_input, daemon=True).start()
    values, _ = read_yaml(argv[0])
    try:
        work(FitConfig.layered([(f"file {argv[0]}", values)]))
    except AutotimmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_input() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when the interpreter shuts down
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
