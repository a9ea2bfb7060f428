"""Runs as processes on this machine, a few at a time."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from autotimm.errors import RunError
from autotimm.studies.one import command

__all__ = ["failure", "run_local"]


def run_local(configs: Mapping[str, Path], jobs: int, logs: Path) -> Iterator[str]:
    """Start one process per run, and yield the names of runs as they finish.

    Args:
        configs: The configuration file of each run.
        jobs: How many run at a time.
        logs: Folder for what they print.

    Raises:
        RunError: If one of them fails. Those that are running are finished first, no other is started.
    """
    logs.mkdir(parents=True, exist_ok=True)
    processes = _Processes()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(processes.run, file, logs / f"{name}.log"): name for name, file in configs.items()}
        try:
            for done in as_completed(waiting):
                if code := done.result():
                    raise failure(waiting[done], code, logs / f"{waiting[done]}.log")
                yield waiting[done]
        except RunError:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise


def failure(name: str, code: int, log: Path) -> RunError:
    """The error for a run that failed, with what it said last."""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = said[-1].removeprefix("error: ") if said else f"It ended with code {code} without a word"
    return RunError(f"The run {name} of the study failed: {last.rstrip('.')}. All that it printed is in {log}. "
                    "The same command goes on with the others once that is mended.")  # fmt: skip


class _Processes:
    """The processes that are running."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(self, config: Path, log: Path) -> int:
        """Run one process to its end; its standard input ends when this process dies."""
        with self._lock:
            if self._ended:
                return 130
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command(config), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
                )
            self._running.add(process)
        with process:
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def end(self) -> None:
        """Ask all of them to stop after their step, and wait for that."""
        with self._lock:
            self._ended = True
            running = [*self._running]
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
