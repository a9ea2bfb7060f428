"""How many threads and processes a training may use on this machine: a wrong number must not stop the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

from autotimm.errors import ModelError, is_whole
from autotimm.repro.seed import most_on_cpu

__all__ = ["machine_problem", "require_machine_for"]


def machine_problem(threads: object, devices: object, accelerator: object, num_workers: object = None) -> str | None:
    """What this machine cannot do of what a trainer was asked for, as a sentence; ``None`` if it can do all of it.

    Values of wrong types pass: others refuse them.

    Args:
        threads: CPU threads.
        devices: As in Lightning. On a CPU each of them is a process; the number of GPUs is checked by Lightning.
        accelerator: As in Lightning.
        num_workers: Loading processes.
    """
    cores, most = os.cpu_count() or 1, most_on_cpu()
    has = f"on this machine, which has {cores} CPU core{'' if cores == 1 else 's'}"
    if is_whole(threads, most + 1):
        return f"The `threads` must be at most {most} {has}. Got {threads} instead."
    if is_whole(num_workers, most + 1):
        return f"The `num_workers` must be at most {most} {has}. Got {num_workers} instead."
    if isinstance(devices, str) and devices.isdecimal() and len(devices) < 20:
        devices = int(devices)
    most = max(cores, 2)  # two processes on one core are slow, and enough for a trial
    if is_whole(devices, most + 1) and _on_cpu(accelerator):
        return f"The `devices` must be at most {most} {has}: on a CPU each is a process. Got {devices} instead."
    return None


def require_machine_for(recorded: Mapping[str, object]) -> None:
    """Refuse to replay a run with more threads or processes than this machine can start: both change results.

    Args:
        recorded: The options or the arguments of the run's trainer.

    Raises:
        ModelError: With their number, and that of the machine.
    """
    if problem := machine_problem(*(recorded.get(name) for name in ("threads", "devices", "accelerator"))):
        raise ModelError(f"{problem} The run is recorded with it, since it changes results. Use a larger machine.")


def _on_cpu(accelerator: object) -> bool:
    if accelerator in (None, "auto"):
        return not (CUDAAccelerator.is_available() or MPSAccelerator.is_available())
    return accelerator == "cpu" or isinstance(accelerator, CPUAccelerator)
