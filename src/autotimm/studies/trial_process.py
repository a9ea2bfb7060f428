"""The process of one run of a study: ``python -m autotimm.studies.trial_process CONFIG.yaml [--watch]``.

It trains or resumes the run, and evaluates it on test data. With ``--watch`` it ends when its standard input is closed,
that is, when the study that started it has died: a killed study leaves no process that would write into a run together
with the study's next start.

No other module imports this one: a module that the package imports cannot be run as a program without a warning.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from autotimm.config import FitConfig, read_yaml
from autotimm.errors import AutotimmError, RunError, printable
from autotimm.records.own_modules import search_also
from autotimm.records.run_folder import RunFolder
from autotimm.runs.run import Run, fit_config
from autotimm.studies.trials import has_test_data, is_tested, run_status

__all__ = ["main", "work"]

_LOCK_TIMEOUT = 120.0  # seconds for a process of a killed study to finish its step and its checkpoint


def work(config: FitConfig) -> Run:
    """Train or resume a run, and evaluate it on test data if there is any."""
    folder = Path(config.out) / str(config.name)
    _wait_for_lock(folder)
    run = _train(config, folder)
    if has_test_data(folder) and not is_tested(folder):
        run.test()
    return run


def main(argv: Sequence[str]) -> int:
    """Process one run; return the exit code."""
    if "--watch" in argv:
        threading.Thread(target=_terminate_with_input, daemon=True).start()
    values, _ = read_yaml(argv[0])
    try:
        work(FitConfig.layered([(f"file {argv[0]}", values)]))
    except AutotimmError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _train(config: FitConfig, folder: Path) -> Run:
    status = run_status(folder)
    if status is not None and (status == "finished" or [*folder.glob("checkpoints/*.ckpt")]):
        return Run(folder).resume()
    # Interrupted before its first checkpoint. The plan may be somebody else's: only what a run writes is removed.
    if folder.exists() and not RunFolder(folder, folder.parent).discard():
        raise RunError(
            f"{folder} must be a new folder, or that of a run of the study. It holds other files. Move them away."
        )
    return fit_config(config)


def _wait_for_lock(folder: Path) -> None:
    """Wait until no other process writes to the run."""
    if not (folder / ".lock").exists():
        return
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_TIMEOUT):
            pass
    except Timeout:
        raise RunError(f"Another process is writing to the run {folder}. Stop that process.") from None


def _terminate_with_input() -> None:
    while os.read(0, 1024):  # not sys.stdin: its lock would still be held when the interpreter shuts down
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    search_also(os.getcwd())
    sys.exit(main(sys.argv[1:]))
