"""What a run is made with: versions, hardware, switches and variables that change numbers, and the state of the code.

Nothing is imported for its version, and no variable is recorded that is not in the list below: an environment may hold
keys and passwords.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import autotimm
from autotimm.records.digest import files_digest

__all__ = ["VARIABLES", "code_state", "environment", "package_digest", "volatile"]

_PACKAGES = ("torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow")

#: The environment variables that change numbers. Which GPUs are visible does not, nor do folders, caches and logs.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "OMP_SCHEDULE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "VECLIB_MAXIMUM_THREADS",
)

# Where torch keeps what changes numbers, below `torch.`; functions are called. One that a release lacks is recorded as
# null. The older names of TF32 (`allow_tf32`) raise once a program has used the newer ones, which never do.
_SWITCHES = (
    "are_deterministic_algorithms_enabled",
    "is_deterministic_algorithms_warn_only_enabled",
    "utils.deterministic.fill_uninitialized_memory",
    "get_default_dtype",
    "get_float32_matmul_precision",
    "backends.fp32_precision",
    "backends.cuda.matmul.fp32_precision",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.cudnn_sdp_enabled",
    "backends.cuda.flash_sdp_enabled",
    "backends.cuda.math_sdp_enabled",
    "backends.cuda.mem_efficient_sdp_enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.deterministic",
    "backends.cudnn.enabled",
    "backends.mkl.is_available",
    "backends.mkldnn.conv.fp32_precision",
    "backends.mkldnn.deterministic",
    "backends.mkldnn.enabled",
    "backends.mkldnn.is_available",
    "backends.mkldnn.matmul.fp32_precision",
    "backends.openmp.is_available",
)


def environment(threads: int, devices: Iterable[str]) -> dict[str, Any]:
    """Describe what a run is made with, as plain data.

    Args:
        threads: How many CPU threads the run computes with.
        devices: Where it computes, for example ``["cpu"]`` or ``["cuda:0", "cuda:1"]``.

    Returns:
        ``versions``, ``hardware``, ``threads``, ``switches`` and ``variables``, as in the
        manifest's schema. What cannot be found out is ``None``. A few milliseconds; no library is loaded for it.

    Example:
        >>> environment(threads=2, devices=["cpu"])["hardware"]["devices"]
        ['cpu']
    """
    found = [torch.device(name) for name in devices]
    cuda = any(one.type == "cuda" for one in found)
    return {
        "versions": {
            "python": platform.python_version(),
            "autotimm": autotimm.__version__,
            "torch": str(torch.__version__),  # with the build, for example +cu130
            **{name: _version(name) for name in _PACKAGES},
        },
        "hardware": {
            "cpu": _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "system": platform.system(),
            "devices": [_device_name(one) for one in found],
            "driver": _driver() if cuda else None,
            "cuda": torch.version.cuda if cuda else None,
            "cudnn": torch.backends.cudnn.version() if cuda else None,  # loads cuDNN
        },
        "threads": threads,
        "switches": {name: _switch(name) for name in _SWITCHES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _switch(path: str) -> bool | int | str | None:
    value: Any = torch
    try:
        for name in path.split("."):
            value = getattr(value, name)
        value = value() if callable(value) else value
    except (AttributeError, RuntimeError):
        return None
    return value if isinstance(value, (bool, int, str)) else str(value)


def _first(path: str, pattern: str) -> str | None:
    """The first group of the first line of a file that a pattern matches."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((match[1].strip() for line in file if (match := re.search(pattern, line))), None)
    except OSError:
        return None


def _processor() -> str | None:
    # On Linux platform.processor() is empty or says what platform.machine() says.
    return _first("/proc/cpuinfo", r"^model name\s*:(.+)") or platform.processor() or None


def _driver() -> str | None:
    return _first("/proc/driver/nvidia/version", r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return device.type


def volatile() -> dict[str, str | None]:
    """The names of this machine and its user: recorded for people, and left out of every digest."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user need not have a name
        user = None
    return {"host": platform.node() or None, "user": user}


def code_state(folder: str | Path) -> dict[str, Any] | None:
    """The state of the git repository that a folder lies in.

    Returns:
        ``commit`` (``None`` before the first one), ``dirty``, and ``diff``: the digest of all changes since the commit
        and of the names of new Python files, ``None`` if there are none. New files of other kinds do not count: a run's
        own folder is one. ``None`` without a repository or without git.
    """
    root = _git(folder, "rev-parse", "--show-toplevel")
    if not root:
        return None
    top = Path(os.fsdecode(root.removesuffix(b"\n")))
    commit = _git(top, "rev-parse", "--verify", "--quiet", "HEAD")
    # What a user's settings may change about a diff is fixed here: it must depend on the code alone.
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--binary", "--no-renames",
               "--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--diff-algorithm=myers")  # fmt: skip
    changes = _git(top, "diff", "HEAD", *options) if commit else b""
    new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py")
    if changes is None or new is None:
        return None
    digest = hashlib.sha256(b"%d:" % len(changes) + changes + b"\0".join(sorted(new.split(b"\0")))).hexdigest()
    dirty = bool(changes or new)
    return {"commit": commit.decode().strip() if commit else None, "dirty": dirty, "diff": digest if dirty else None}


def _git(folder: str | Path, *arguments: str) -> bytes | None:
    """What git says, or ``None`` if it fails, is not there, or takes more than 5 seconds."""
    # A hook of git runs with variables that point to its own repository; and nothing here may lock one.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, env=variables | {"GIT_OPTIONAL_LOCKS": "0"}, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, ValueError):  # ValueError: a path with a null character
        return None
    return done.stdout if done.returncode == 0 else None


def package_digest() -> str:
    """The digest of the Python files of autotimm itself, by path and content."""
    root = Path(autotimm.__file__).parent
    return files_digest(root.rglob("*.py"), root)
