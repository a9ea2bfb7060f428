"""Tasks on a Ray cluster, which studies and verifications share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from autotimm.errors import missing_extra

__all__ = ["ClusterTask", "on_cluster", "require_ray"]


@dataclass(frozen=True)
class ClusterTask:
    """A call on some machine of the cluster.

    Attributes:
        function: A function of a module. Its result is plain data, and so are the arguments.
        arguments: What it is called with.
        threads: CPU cores that it needs.
        gpus: GPUs that it needs, if the cluster has any.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    threads: int = 1
    gpus: int = 0


def require_ray() -> None:
    """Raise a :class:`~autotimm.errors.UsageError` if Ray is not installed, before anything is written."""
    if find_spec("ray") is None:
        raise missing_extra("The launcher ray", "ray")


def on_cluster(tasks: Mapping[str, ClusterTask]) -> Iterator[tuple[str, Any]]:
    """Run tasks on a Ray cluster, and yield names and results as they finish.

    The cluster is the one that ``RAY_ADDRESS`` names, or that this machine belongs to; without either, Ray starts one
    on this machine. Its machines need autotimm, and whatever files the tasks name under the same paths.

    Args:
        tasks: The tasks by name.
    """
    import ray  # an optional extra

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        # Ray hides the GPUs from tasks that do not request one: these would train on the CPU without a warning.
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        names = {}
        for name, task in tasks.items():
            remote = ray.remote(max_retries=3)(task.function)
            options = {"num_cpus": task.threads, "num_gpus": task.gpus if has_gpus else 0, "name": name}
            names[remote.options(**options).remote(*task.arguments)] = name
        while names:
            (reference, *_), _ = ray.wait([*names], num_returns=1)
            yield names.pop(reference), ray.get(reference)
    finally:
        if started:
            ray.shutdown()
