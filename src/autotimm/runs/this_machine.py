"""What this machine replaces of a recorded run: processes, threads and loading processes that it cannot start.

Only where no bit depends on them: loading processes of any run, processes of one with ``shards``, threads of one that
is ``portable``. And the data may be in another place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig, defaults
from autotimm.data.loader import default_workers
from autotimm.errors import DataError, UsageError, is_whole, require
from autotimm.repro.seed import default_threads, most_on_cpu
from autotimm.train.machine_limits import machine_problem
from autotimm.train.progress import say

__all__ = ["affordable", "asking_for_moved_data", "name_of_place", "replaced_settings", "without_cache"]


def replaced_settings(settings: Mapping[str, Any], *, devices: int | None, threads: int | None) -> dict[str, int]:
    """The settings of a recorded trainer that get another value here, by name.

    Args:
        settings: The recorded ones.
        devices: Devices or processes that were asked for in place of the recorded number.
        threads: The same of threads.

    Raises:
        UsageError: If a number is given for a run whose bits depend on it, or that this machine cannot start.
    """
    replaced = {"devices": _processes(settings, devices), "threads": _threads(settings, threads)}
    return {name: number for name, number in replaced.items() if number is not None}


def _processes(settings: Mapping[str, Any], devices: int | None) -> int | None:
    """The number of devices in place of the recorded one; ``None`` for that."""
    if settings.get("shards") is None:
        must = "left out for a run without `shards`, whose bits depend on it"
        require(devices is None, "devices", "the run", must, devices, "Leave it out.")
        return None
    recorded = settings.get("devices")
    if devices is not None and (problem := machine_problem(None, devices, settings.get("accelerator"))):
        raise UsageError(f"{problem} Give less.")
    if devices is not None or machine_problem(None, recorded, settings.get("accelerator")) is None:
        return devices
    say(f"the run was made with {recorded} processes, too many for this machine; using 1")
    return 1


def _threads(settings: Mapping[str, Any], threads: int | None) -> int | None:
    """The number of threads in place of the recorded one; ``None`` for that."""
    if not settings.get("portable"):
        must = "left out for a run that is not portable, whose bits depend on it"
        require(threads is None, "threads", "the run", must, threads, "Leave it out.")
        return None
    if threads is not None and (problem := machine_problem(threads, None, None)):
        raise UsageError(f"{problem} Give less.")
    recorded = settings.get("threads")
    if threads is not None or machine_problem(recorded, None, None) is None:
        return threads
    say(f"the run was made with {recorded} threads, too many for this machine; using {default_threads()}")
    return default_threads()


def affordable(config: FitConfig | dict[str, Any]) -> FitConfig | dict[str, Any]:
    """The options of a run, with no more loading processes than this machine can start: they never change a result."""
    arguments = {} if isinstance(config, FitConfig) else (config.get("data") or {}).get("init_args") or {}
    workers = config.num_workers if isinstance(config, FitConfig) else arguments.get("num_workers")
    if not is_whole(workers, most_on_cpu() + 1):
        return config
    say(f"the run was made with {workers} loading processes, too many for this machine; using {default_workers()}")
    if isinstance(config, FitConfig):
        return config.resolved({"num_workers": None}, "this machine")
    return {**config, "data": {**config["data"], "init_args": {**arguments, "num_workers": None}}}


def without_cache(config: FitConfig | dict[str, Any]) -> FitConfig | dict[str, Any]:
    """The options of a run, which decodes all images itself."""
    if isinstance(config, FitConfig):
        return config.resolved({name: defaults()[name] for name in ("cache", "cache_size")}, "a replay")
    data = config.get("data") or {}
    arguments = data.get("init_args") or {}
    return {**config, "data": {**data, "init_args": {**arguments, "cache": "off"}}} if "cache" in arguments else config


def name_of_place(given: FitConfig | Mapping[str, Any]) -> str:
    """The name of what says where the images are: of an option, or of an argument of a data module."""
    if isinstance(given, FitConfig):
        return "image_dir" if given.train_csv else "path"
    return "image_dir" if given.get("train_csv") else "data_dir"


@contextmanager
def asking_for_moved_data(config: FitConfig | Mapping[str, Any], given: str | Path | None) -> Iterator[None]:
    """Say in an error of data that is not where a run has read it how its new place is given.

    Args:
        config: The options of the run.
        given: Its new place; if there is one, the error is about that.
    """
    try:
        yield
    except DataError as error:
        options = config if isinstance(config, FitConfig) else (config.get("data") or {}).get("init_args") or {}
        values = options.as_dict() if isinstance(options, FitConfig) else options
        recorded = values.get(name_of_place(options))
        if given is None and recorded is not None and not os.path.exists(Path(str(recorded)).expanduser()):
            error.args = (f"{error} If the data was moved, give its new place as `data` (`--data`).",)
        raise
