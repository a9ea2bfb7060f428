"""Runs as processes on this machine, a few at a time.

Runs as tasks of a Ray cluster, for which Ray is needed: an optional extra.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from autotimm.errors import RunError, UsageError
from autotimm.studies.trial_process import command
from autotimm.studies.trials import Trial

__all__ = ["failure", "run_local", "run_on_ray"]


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


def run_on_ray(trials: Mapping[str, Trial], configs: Mapping[str, Path], logs: Path) -> Iterator[str]:
    """Give each run to a Ray cluster, and yield the names of runs as they finish.

    The cluster is the one that ``RAY_ADDRESS`` names, or that this machine belongs to; without either, Ray starts one
    on this machine. Its machines need autotimm, and the data and the study's folder under the same paths.

    Args:
        trials: The runs by name.
        configs: The configuration file of each.
        logs: Folder for what they print.

    Raises:
        UsageError: If Ray is not installed.
        RunError: If a run fails.
    """
    try:
        import ray  # an optional extra
    except ImportError:
        raise UsageError("The launcher ray needs Ray. Install it with: pip install 'autotimm[ray]'") from None
    logs.mkdir(parents=True, exist_ok=True)
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        # Ray hides GPUs from whoever did not ask for them, and the run would be trained on a CPU without a word.
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        remote = ray.remote(max_retries=3)(_run)
        waiting = {}
        for name, file in configs.items():
            config = trials[name].config
            gpus = config.devices if has_gpus and config.accelerator != "cpu" else 0
            task = remote.options(num_cpus=config.threads or 1, num_gpus=gpus, name=name)
            waiting[task.remote(str(file.resolve()), str((logs / f"{name}.log").resolve()), os.getcwd())] = name
        while waiting:
            (done, *_), _ = ray.wait([*waiting], num_returns=1)
            name = waiting.pop(done)
            if code := ray.get(done):
                raise failure(name, code, logs / f"{name}.log")
            yield name
    finally:
        if started:
            ray.shutdown()


def _run(config: str, log: str, folder: str) -> int:
    """On a machine of the cluster: a process for the run, since the task's own was started with other settings."""
    words = command(config)
    # Its input is a pipe of this process, so that it ends with it; see the worker.
    with (
        open(log, "wb") as output,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=folder) as process,
    ):
        return process.wait()
