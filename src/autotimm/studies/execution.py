"""Execute the runs of a study: as processes on this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from autotimm.errors import AutotimmError, error_of
from autotimm.runs.ray_cluster import ClusterTask, on_cluster
from autotimm.studies.trials import Trial

__all__ = ["run_local", "run_on_ray"]


def run_local(configs: Mapping[str, Path], jobs: int, logs: Path) -> Iterator[str]:
    """Start one process per run, and yield the names of runs as they finish.

    Args:
        configs: The configuration file of each run.
        jobs: The number of parallel runs.
        logs: Folder for the output of the processes.

    Raises:
        AutotimmError: If a run fails, of the class of its error. Other runs that have started are finished first, and
            no more are started.
    """
    logs.mkdir(parents=True, exist_ok=True)
    processes = _Processes()
    with ThreadPoolExecutor(jobs) as pool:
        names = {pool.submit(processes.run, file, logs / f"{name}.log"): name for name, file in configs.items()}
        try:
            for future in as_completed(names):
                name = names[future]
                code = future.result()
                if code is None:  # not started, since another has failed, which is yet to come
                    continue
                if code:
                    raise _failure(name, code, logs / f"{name}.log")
                yield name
        except AutotimmError:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise


class _Processes:
    """The running processes."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(self, config: Path, log: Path) -> int | None:
        """Run one process, and return its exit code. Its standard input is closed when this process dies.

        After a failure, or once all were asked to stop, none is started: returns None.
        """
        with self._lock:
            if self._ended:
                return None
            with log.open("wb") as output:
                process = subprocess.Popen(
                    _command(config), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=_environment()
                )
            self._running.add(process)
        with process:
            code = process.wait()
        with self._lock:
            self._running.discard(process)
            if code:
                self._ended = True
        return code

    def end(self) -> None:
        """Ask all processes to stop after their current step, and wait for them."""
        with self._lock:
            self._ended = True
            running = [*self._running]
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def run_on_ray(trials: Mapping[str, Trial], configs: Mapping[str, Path], logs: Path) -> Iterator[str]:
    """Run each trial as a task of a Ray cluster, and yield the names of runs as they finish.

    The machines of the cluster need the data and the study's folder under the same paths, see
    :func:`autotimm.runs.ray_cluster.on_cluster`.

    Args:
        trials: The runs by name.
        configs: The configuration file of each run.
        logs: Folder for the output of the runs.

    Raises:
        AutotimmError: If a run fails, of the class of its error.
    """
    logs.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for name, file in configs.items():
        config, log = trials[name].config, logs / f"{name}.log"
        gpus = config.devices if config.accelerator != "cpu" else 0
        arguments = str(file.resolve()), str(log.resolve()), os.getcwd()
        tasks[name] = ClusterTask(_run_on_node, arguments, config.threads or 1, gpus)
    for name, code in on_cluster(tasks):
        if code:
            raise _failure(name, code, logs / f"{name}.log")
        yield name


def _run_on_node(config: str, log: str, folder: str) -> int:
    """Run one process on a machine of the cluster: the Ray worker itself was started with other settings."""
    # The pipe closes when the Ray worker dies, which ends the process; see trial_process.
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            _command(config),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(),
        ) as process,
    ):
        return process.wait()


def _command(config: str | Path) -> list[str]:
    """The command that starts the process of a run; the process ends when its standard input is closed."""
    # Named, not imported: runpy warns about a program that the package has imported already.
    return [sys.executable, "-m", "autotimm.studies.trial_process", str(config), "--watch"]


def _environment() -> dict[str, str]:
    # Without the safe path the working directory would come before all packages; Python 3.10 does not know it.
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def _failure(name: str, code: int, log: Path) -> AutotimmError:
    """The error for a failed run, with the last line of its output and its exit code."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else f"It ended with exit code {code} and no output"
    return error_of(code)(f"The run {name} of the study failed: {last.rstrip('.')}.")
