"""What a training costs: wall and CPU time, peak memory, and energy where the machine tells.

It stands in the volatile part of a manifest, so that equal runs stay equal: no digest and no verdict depends on it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from autotimm.config.byte_size import written_bytes

__all__ = ["COMPUTE", "Meter", "compute_lines"]

COMPUTE = "compute"
"""The entry of a manifest's ``volatile``: a measurement for each process that trained, a resumed run has several."""

_RAPL = Path("/sys/class/powercap")  # running average power limit: the energy counters of processors


class Meter:
    """Measures from its construction on.

    Args:
        rapl: The folder of the energy counters of the processors.
    """

    def __init__(self, rapl: Path = _RAPL) -> None:
        self._rapl = rapl
        self._began, self._cpu = time.monotonic(), _cpu_seconds()
        self._joules, self._gpu_joules = _rapl_joules(rapl), _gpu_joules()
        if torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)

    def read(self) -> dict[str, Any]:
        """The measurement until now, as plain data; what the machine does not tell is left out.

        ``wall_s`` and ``cpu_s`` are seconds, the second of all threads and of loading processes that have ended.
        ``peak_memory`` is the largest resident memory of this process since it started, without loading processes, and
        ``peak_gpu_memory`` what torch has allocated, in bytes. ``cpu_energy_j`` and ``gpu_energy_j``
        are joules of the whole processors and devices, whoever else was using them.
        """
        measured: dict[str, Any] = {
            "wall_s": round(time.monotonic() - self._began, 3), "cpu_s": round(_cpu_seconds() - self._cpu, 3),
            **_peak_memory(),
        }  # fmt: skip
        if torch.cuda.is_initialized():
            peaks = [torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())]
            measured["peak_gpu_memory"] = max(peaks, default=0)
        processors, used = _rapl_joules(self._rapl), _used_gpus()
        if self._joules and self._joules.keys() == processors.keys():
            measured["cpu_energy_j"] = _spent(self._joules, processors)
        gpus = {name: counter for name, counter in (_gpu_joules() if used else {}).items() if name in used}
        if gpus and gpus.keys() <= self._gpu_joules.keys():
            measured["gpu_energy_j"] = _spent(self._gpu_joules, gpus)
        return measured


def compute_lines(volatile: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a manifest says of the cost of a run, for people: what it is, and how much; nothing if it says nothing."""
    sessions = volatile.get(COMPUTE)
    sessions = [each for each in sessions if isinstance(each, Mapping)] if isinstance(sessions, list) else []
    numbers = [{name: value for name, value in each.items() if isinstance(value, (int, float))} for each in sessions]

    def total(name: str) -> float:
        return sum(each.get(name, 0) for each in numbers)

    def largest(name: str) -> float:
        return max((each.get(name, 0) for each in numbers), default=0)

    lines = [
        ("Wall time", _hours(total("wall_s"))), ("CPU time", _hours(total("cpu_s"))),
        ("Peak memory", _bytes(largest("peak_memory"))),
        ("Peak memory of a GPU", _bytes(largest("peak_gpu_memory"))),
        ("Energy of the processors", _energy(total("cpu_energy_j"))),
        ("Energy of the GPUs", _energy(total("gpu_energy_j"))),
    ]  # fmt: skip
    lines = [(name, text) for name, text in lines if text]
    return [*lines, ("Processes one after the other", f"{len(numbers)}")] if lines and len(numbers) > 1 else lines


def _hours(seconds: float) -> str:
    if not seconds:
        return ""
    sizes = ((3600, f"{seconds / 3600:.2f} h"), (60, f"{seconds / 60:.1f} min"), (0, f"{seconds:.1f} s"))
    return next(text for least, text in sizes if seconds >= least)


def _bytes(size: float) -> str:
    return written_bytes(size) if size else ""


def _energy(joules: float) -> str:
    return "" if not joules else f"{joules / 3.6e6:.3g} kWh"


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _peak_memory() -> dict[str, int]:
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    # Not that of children: each of them begins as a copy of this process, so that even git seems to need as much.
    return {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


Counter = tuple[float, float]  # joules, and where the counter begins anew; 0 if it never does


def _rapl_joules(folder: Path) -> dict[str, Counter]:
    """The energy counters of the processors. Most systems let only root read them."""
    counters: dict[str, Counter] = {}
    for zone in sorted(folder.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a processor, which the processor's own counter contains
            continue
        with suppress(OSError, ValueError):
            values = [float((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj")]
            counters[zone.name] = (values[0], values[1])
    return counters


def _gpu_joules() -> dict[str, Counter]:
    """The energy counters of all GPUs, by NVML, which is asked without torch: it must not start CUDA before a fork."""
    try:
        import pynvml
    except ImportError:
        return {}
    counters: dict[str, Counter] = {}
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-")
            counters[uuid] = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)
    return counters


def _used_gpus() -> set[str]:
    """The GPUs that torch sees, if it has used one."""
    if not torch.cuda.is_initialized() or torch.version.hip:
        return set()
    return {str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())}


def _spent(before: dict[str, Counter], now: dict[str, Counter]) -> float:
    """Joules between two readings of counters, each of which may have begun anew once."""
    total = 0.0
    for name, (joules, end) in now.items():
        spent = joules - before[name][0]
        total += spent if spent >= 0 else spent + end
    return round(total, 3)
