"""Checks of this machine: switches and variables that change bits; cores, GPU, disk and memory."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import torch

from autotimm.config.byte_size import written_bytes
from autotimm.data.module import default_workers
from autotimm.data.pixel_cache import cache_folder
from autotimm.data.pixel_store import bytes_by_name
from autotimm.doctor.finding import Finding, note, ok, problem
from autotimm.image_size import ImageSize, height_and_width
from autotimm.records.bit_factors import VARIABLES
from autotimm.repro.seed import default_threads

__all__ = ["check_machine", "check_memory", "check_switches"]

# The two values with which cuBLAS is deterministic; torch refuses others under deterministic=True.
_DETERMINISTIC = (":4096:8", ":16:8")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_GIGABYTE = 10**9
_LITTLE = 5 * _GIGABYTE
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED = Path("/dev/shm")


def check_switches() -> list[Finding]:
    """Check environment variables and switches of torch that change bits."""
    findings = [_cublas(), _hash_seed()]
    own_lines = (_CUBLAS, "PYTHONHASHSEED")
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ and name not in own_lines]
    if given:
        findings.append(
            note(f"variables that can change bits: {', '.join(given)}", "Set the same ones wherever you compare runs.")
        )
    else:
        findings.append(ok("no environment variable that changes bits is set"))
    return [*findings, _tf32()]


def _cublas() -> Finding:
    value = os.environ.get(_CUBLAS)
    if value is None:
        return ok(f"{_CUBLAS} is not set: deterministic=True sets it to {_DETERMINISTIC[0]}")
    if value in _DETERMINISTIC:
        return ok(f"{_CUBLAS}={value}")
    return problem(
        f"{_CUBLAS}={value} makes cuBLAS non-deterministic, and autotimm keeps it",
        f"Unset it, or export {_DETERMINISTIC[0]}.",
    )


def _hash_seed() -> Finding:
    value = os.environ.get("PYTHONHASHSEED", "random")
    if value == "random":
        return ok(
            "PYTHONHASHSEED is not set: autotimm does not need it; the order of sets of strings in your code varies"
        )
    return ok(f"PYTHONHASHSEED={value}")


def _tf32() -> Finding:
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        cure = 'For full precision: torch.set_float32_matmul_precision("highest").'
        return note(f"matrix products use TF32 or less (float32_matmul_precision is {precision})", cure)
    return ok("matrix products keep float32; cuDNN's convolutions may use TF32 on a GPU, torch's default")


def check_machine(folder: str, image_size: ImageSize, batch_size: int, num_workers: int | None) -> list[Finding]:
    """Check instruction set, cores, GPU, free disk space and shared memory.

    Args:
        folder: The folder for runs.
        image_size: Size of the images in pixels.
        batch_size: Images per training step.
        num_workers: Loading processes; ``None`` for the default of a run.
    """
    workers = default_workers() if num_workers is None else num_workers
    findings = [_cores(), _gpu(), _disk(folder)]
    if kept := sum(bytes_by_name(cache_folder()).values()):
        findings.append(
            ok(f"{written_bytes(kept)} of decoded images are kept in {cache_folder()}; --clear-cache removes them")
        )
    if _SHARED.is_dir():  # only Linux has it
        findings.append(check_memory(shutil.disk_usage(_SHARED).free, image_size, batch_size, workers))
    return findings


def _cores() -> Finding:
    threads, allowed = default_threads(), float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # only Linux has it
        allowed = min(allowed, len(os.sched_getaffinity(0)))
    allowed = min(allowed, _quota() or allowed)
    text = f"{threads} threads by default, {torch.backends.cpu.get_cpu_capability()} instructions"
    if allowed < threads:
        # The number of threads is not changed silently: it decides the bits of results.
        return note(
            f"{text}; this container or process may use {allowed:g} CPUs of {os.cpu_count()}",
            f"For speed give --threads {max(int(allowed), 1)}; it changes the last bits of CPU results.",
        )
    return ok(text)


def _quota() -> float | None:
    """The number of CPUs of a container, from its control group; ``None`` without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((Path("/sys/fs/cgroup") / file).read_text() for file in files).split()
        except OSError:
            continue
        if words[0] not in ("max", "-1"):
            return int(words[0]) / int(words[1])
    return None


def _gpu() -> Finding:
    if torch.cuda.is_available():
        return ok(f"GPU: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    if _DRIVER.exists():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        return problem(
            f"there is an NVIDIA driver, but torch, built for {built}, cannot use it",
            "Update the driver, or install a torch for an older CUDA: https://pytorch.org/get-started/locally",
        )
    return ok("no GPU that torch can use: training runs on the CPU")


def _disk(folder: str) -> Finding:
    existing = next(path for path in (Path(folder).resolve(), *Path(folder).resolve().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    text = f"{free / _GIGABYTE:.1f} GB are free where runs are written ({folder})"
    return (
        ok(text)
        if free > _LITTLE
        else note(text, "Checkpoints take three times a model's size each; give another --out.")
    )


def check_memory(free: int, image_size: ImageSize, batch_size: int, workers: int) -> Finding:
    """Check that shared memory holds the batches of loading processes: two float batches each, and one in transit.

    Args:
        free: Free bytes in ``/dev/shm``.
        image_size: Size of the images in pixels.
        batch_size: Images per batch.
        workers: Loading processes; with 0 nothing is shared.
    """
    needed = (2 * workers + 1) * batch_size * 3 * math.prod(height_and_width(image_size)) * 4 if workers else 0
    have, take = (f"{size / _GIGABYTE:.2g} GB" for size in (free, needed))
    text = f"{_SHARED} has {have} for {workers} loading processes, which may take {take}"
    if needed <= free:
        return ok(text)
    return problem(text, "Start the container with --shm-size=8g, or train with --num-workers 0.")
