"""Runs as tasks of a Ray cluster, for which Ray is needed: an optional extra."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from autotimm.errors import missing_extra
from autotimm.studies.local import failure
from autotimm.studies.one import command
from autotimm.studies.plan import Trial

__all__ = ["require_ray", "run_on_ray"]


def require_ray() -> None:
    """Raise a :class:`UsageError` if Ray is not installed, before a study leaves a folder."""
    if find_spec("ray") is None:
        raise missing_extra("The launcher ray", "ray")


def run_on_ray(trials: Mapping[str, Trial], configs: Mapping[str, Path], logs: Path) -> Iterator[str]:
    """Give each run to a Ray cluster, and yield the names of runs as they finish.

    The cluster is the one that ``RAY_ADDRESS`` names, or that this machine belongs to; without either, Ray starts one
    on this machine. Its machines need autotimm, and the data and the study's folder under the same paths.

    Args:
        trials: The runs by name.
        configs: The configuration file of each.
        logs: Folder for what they print.

    Raises:
        RunError: If a run fails.
    """
    import ray  # an optional extra

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
