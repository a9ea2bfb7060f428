"""One table of what changes the bits of a run outside its options: variables, switches, libraries, hardware, threads.

The manifest records these factors, ``autotimm doctor`` shows them, causes are looked up in them, and a replay sets back
those that it can. A factor that is missing here is recorded nowhere, and a difference that it makes is blamed on
something else.

Left out on purpose:

- ``torch.get_num_interop_threads``: such threads run whole operators side by side, and no sum is shared among them.
- zlib, libpng: they decode without loss, so every version yields the same pixels.
- folders, caches, logs, and which GPUs are visible: they change no number, and may name what is nobody's business.
- ``torch.backends.quantized``: nothing is trained with quantized weights.
- timm's ``set_no_jit`` and ``TIMM_FOREACH_CHUNK_SIZE``: the one is read by no layer, the other cuts work that is done
  element by element.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any, NamedTuple

import torch

import autotimm

__all__ = [
    "FACTORS", "PIXEL_FACTORS", "VARIABLES", "BitFactor", "Place", "factor_named", "factors_in", "known_to_both",
    "rank",
]  # fmt: skip

Value = bool | int | str | list[str] | None


class Place(NamedTuple):
    """Where a run computes: what some factors are read from.

    Attributes:
        threads: CPU threads of the run.
        devices: Its devices.
    """

    threads: int
    devices: Sequence[torch.device]

    @property
    def has_cuda(self) -> bool:
        """Whether one of the devices is a CUDA device."""
        return any(device.type == "cuda" for device in self.devices)


@dataclass(frozen=True)
class BitFactor:
    """Something outside the options that changes bits.

    Attributes:
        section: The part of the manifest's ``environment`` that holds it: ``variables``, ``switches``, ``libraries``,
            ``versions`` or ``hardware``; empty for a value of its own.
        name: Its key there. A switch is named by where it lies: below ``torch.`` unless it begins with another package.
        stages: The stages of training in which it acts, see :mod:`autotimm.records.ledger_diff`.
        read: Gives its value as plain data; ``None`` if this process does not have it.
        words: What it is called in a sentence.
        restore: Sets it to a recorded value while Python runs; ``None`` where nothing can.
        device: The kind of device whose arithmetic it changes; empty for any.
        sets: Keys of factors whose values it decides: a variable when a library is loaded, a switch that others follow.
    """

    section: str
    name: str
    stages: frozenset[str]
    read: Callable[[Place], Value]
    words: str
    restore: Callable[[Any], object] | None = None
    device: str = ""
    sets: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its dotted name in the manifest's ``environment``: ``switches.backends.mkldnn.enabled``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def acts(self, stage: str, device: str | None = None) -> bool:
        """Whether it can make a difference in a stage, on a kind of device if that is known."""
        return stage in self.stages and (not self.device or device is None or self.device == device)


_ALL = frozenset({"start", "order", "inputs", "forward", "rate", "update", "validation"})
_STEP = frozenset({"forward", "update", "validation"})  # the network's arithmetic
_CPU = _STEP | {"start", "inputs"}  # weights are drawn, and images transformed, on the CPU
_IMAGES = frozenset({"inputs", "validation"})
_MODEL = _STEP | {"start"}


# Variables


def _variable(name: str, stages: frozenset[str], device: str = "", sets: str = "") -> BitFactor:
    words = f"the environment variable {name}"
    targets = (sets,) if sets else ()
    return BitFactor("variables", name, stages, lambda _: os.environ.get(name), words, device=device, sets=targets)


# Libraries read them once, when they are loaded: none can be set back while Python runs. What they set sometimes can.
_INSTRUCTIONS = (
    _variable("ATEN_CPU_CAPABILITY", _CPU, sets="hardware.instructions"),
    *(
        _variable(name, _CPU)
        for name in (
            "DNNL_CPU_ISA_HINTS", "DNNL_MAX_CPU_ISA", "GLIBC_TUNABLES", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
            "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "ONEDNN_CPU_ISA_HINTS",
            "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
        )
    ),
)  # fmt: skip
_THREADS = tuple(
    _variable(name, _CPU)
    for name in (
        "MKL_DOMAIN_NUM_THREADS", "MKL_DYNAMIC", "MKL_NUM_STRIPES", "MKL_NUM_THREADS", "OMP_DYNAMIC", "OMP_NUM_THREADS",
        "OMP_SCHEDULE", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    )
)  # fmt: skip
_CPU_KERNELS = tuple(
    _variable(name, _STEP)
    for name in (
        "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "TORCH_LINEAR_FLATTEN_3D",
        "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE",
    )
)  # fmt: skip
_TIMM_VARIABLES = (
    _variable("TIMM_FUSED_ATTN", _STEP, sets="switches.timm.layers.use_fused_attn"),
    _variable("TIMM_REENTRANT_CKPT", _STEP, sets="switches.timm.layers.use_reentrant_ckpt"),
    # These choose another class or structure for the same name of a model.
    *(_variable(name, _MODEL) for name in ("FORK_LAST3", "TIMM_USE_NAFLEX", "TIMM_USE_NAFLEXVIT")),
    _variable("TIMM_USE_SCIPY_INTERP", _MODEL),
)
_GPU_VARIABLES = (
    _variable("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", _STEP, "cuda", "switches.backends.cuda.matmul.fp32_precision"),
    _variable("TORCH_BLAS_PREFER_CUBLASLT", _STEP, "cuda", "switches.backends.cuda.preferred_blas_library"),
    _variable("TORCH_BLAS_PREFER_HIPBLASLT", _STEP, "cuda", "switches.backends.cuda.preferred_blas_library"),
    _variable("TORCH_LINALG_PREFER_CUSOLVER", _STEP, "cuda", "switches.backends.cuda.preferred_linalg_library"),
    _variable("TORCH_ROCM_FA_PREFER_CK", _STEP, "cuda", "switches.backends.cuda.preferred_rocm_fa_library"),
    _variable("PYTORCH_TUNABLEOP_ENABLED", _STEP, "cuda", "switches.cuda.tunable.is_enabled"),
    *(
        _variable(name, _STEP, "cuda")
        for name in (
            "CUBLASLT_WORKSPACE_SIZE", "CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_EMULATE_SINGLE_PRECISION",
            "CUBLAS_EMULATION_STRATEGY", "CUBLAS_WORKSPACE_CONFIG", "CUDNN_CONV_WSCAP_DBG", "DISABLE_ADDMM_CUDA_LT",
            "MIOPEN_FIND_ENFORCE", "MIOPEN_FIND_MODE", "NVIDIA_TF32_OVERRIDE", "PYTORCH_ALLOC_CONF",
            "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_MIOPEN_SUGGEST_NHWC", "PYTORCH_TUNABLEOP_TUNING",
            "TORCH_CUBLASLT_UNIFIED_WORKSPACE", "TORCH_CUDNN_SDPA_DEPRIORITIZED", "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
            "TORCH_CUDNN_V8_API_DISABLED",
        )
    ),
    *(
        _variable(name, _STEP, "mps")
        for name in ("PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL")
    ),
    *(_variable(name, frozenset({"update"}), "cuda") for name in ("NCCL_ALGO", "NCCL_PROTO")),
)  # fmt: skip
# Of the compiler's many variables those that change which kernels are generated, or how they round.
_COMPILER_VARIABLES = tuple(
    _variable(name, _STEP)
    for name in (
        "TORCHDYNAMO_DISABLE", "TORCHDYNAMO_SUPPRESS_ERRORS", "TORCHINDUCTOR_BENCHMARK_FUSION",
        "TORCHINDUCTOR_COMPREHENSIVE_PADDING", "TORCHINDUCTOR_COOPERATIVE_REDUCTIONS",
        "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS",
        "TORCHINDUCTOR_CPP_ENABLE_FLOATING_POINT_CONTRACT_FLAG", "TORCHINDUCTOR_CPP_ENABLE_TILING_HEURISTIC",
        "TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG", "TORCHINDUCTOR_CPP_FALLBACK_SCATTER_REDUCE_SUM",
        "TORCHINDUCTOR_CPP_GEMM_CACHE_BLOCKING", "TORCHINDUCTOR_CPP_GEMM_MAX_K_SLICES",
        "TORCHINDUCTOR_CPP_GEMM_THREAD_FACTORS", "TORCHINDUCTOR_CPP_MARCH", "TORCHINDUCTOR_CPP_MIN_CHUNK_SIZE",
        "TORCHINDUCTOR_CPP_SIMDLEN", "TORCHINDUCTOR_CPP_USE_DECOMPOSE_TANH", "TORCHINDUCTOR_CPP_WEIGHT_PREPACK",
        "TORCHINDUCTOR_DECOMPOSE_K_THRESHOLD", "TORCHINDUCTOR_DISABLED_PASSES",
        "TORCHINDUCTOR_EMULATE_DIVISION_ROUNDING", "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
        "TORCHINDUCTOR_EMULATE_PRECISION_CASTS_ON_SAVED_TENSORS", "TORCHINDUCTOR_FORCE_LAYOUT_OPT",
        "TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_LAYOUT_OPTIMIZATION", "TORCHINDUCTOR_MAX_AUTOTUNE",
        "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS",
        "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE", "TORCHINDUCTOR_MIN_NUM_SPLIT", "TORCHINDUCTOR_MIX_ORDER_REDUCTION",
        "TORCHINDUCTOR_MULTI_KERNEL", "TORCHINDUCTOR_NESTED_REDUCTION", "TORCHINDUCTOR_ONLINE_SOFTMAX",
        "TORCHINDUCTOR_PERSISTENT_REDUCTIONS", "TORCHINDUCTOR_PROLOGUE_FUSION", "TORCHINDUCTOR_SHAPE_PADDING",
        "TORCHINDUCTOR_USE_FAST_MATH", "TORCH_COMPILE_DISABLE",
    )
)  # fmt: skip
# The order of sets and dictionaries in code of the user's own. The seed sets it for child processes.
_HASHES = (_variable("PYTHONHASHSEED", _ALL - {"start", "rate"}),)


# Switches


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value).__module__ == torch._C.__name__:  # an enumeration: _BlasBackend.Cublas
        return str(value).rpartition(".")[2].lower()
    return str(value)


def _look_up(owner: Any, path: str) -> Value:
    """The value at a dotted path; functions are called."""
    try:
        value = attrgetter(path)(owner)
        return _plain(value() if callable(value) else value)
    except (AttributeError, RuntimeError):  # what a release or a build lacks
        return None


def _loaded(module: str, path: str) -> Value:
    # Never imported for it: a run that has not loaded a package does not depend on it.
    return _look_up(sys.modules[module], path) if module in sys.modules else None


def _assign(path: str, value: Any) -> None:
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(torch), name, value)


def _switch(
    name: str, stages: frozenset[str] = _STEP, restore: Callable[[Any], object] | None = None, device: str = "",
    read: Callable[[], Value] | None = None, sets: Iterable[str] = (),
) -> BitFactor:  # fmt: skip
    """A switch of torch, by its name below ``torch.``."""
    value = read or partial(_look_up, torch, name)
    targets = tuple(f"switches.{target}" for target in sets)
    return BitFactor("switches", name, stages, lambda _: value(), f"the switch torch.{name}", restore, device, targets)


def _attributes(*names: str, device: str = "") -> Iterable[BitFactor]:
    """Switches of torch that are attributes, so that they are set back by assigning them."""
    return (_switch(name, restore=partial(_assign, name), device=device) for name in names)


def _flushes_denormals() -> bool:
    """Whether this thread rounds denormal numbers to zero: tested with one of them, since torch has no getter.

    The state belongs to the thread: worker processes, and threads that were started before, may have another.
    """
    denormal = torch.tensor(2e-39, dtype=torch.float32, device="cpu")
    return bool((denormal * 0.5).item() == 0)


def _sdp_order() -> Value:
    read = getattr(torch._C, "_get_sdp_priority_order", None)
    return None if read is None else " ".join(map(str, read()))


def _set_sdp_order(value: str) -> None:
    torch._C._set_sdp_priority_order([int(number) for number in value.split()])


def _nnpack() -> Value:
    read = getattr(torch._C, "_get_nnpack_enabled", None)
    return None if read is None else bool(read())


def _set_dtype(value: str) -> None:
    torch.set_default_dtype(getattr(torch, value.removeprefix("torch.")))


def _set_device(value: str) -> None:
    torch.set_default_device(None if value == "cpu" else value)  # a given device slows every call


def _autocast(device: str) -> BitFactor:
    return _switch(
        f"is_autocast_enabled.{device}", restore=partial(torch.set_autocast_enabled, device), device=device,
        read=partial(torch.is_autocast_enabled, device),
    )  # fmt: skip


_FP32_MATMUL = ("backends.mkldnn.matmul.fp32_precision", "backends.cuda.matmul.fp32_precision")
_FP32 = (
    "get_float32_matmul_precision", *_FP32_MATMUL, "backends.mkldnn.fp32_precision",
    "backends.mkldnn.conv.fp32_precision", "backends.mkldnn.rnn.fp32_precision", "backends.cudnn.fp32_precision",
    "backends.cudnn.conv.fp32_precision", "backends.cudnn.rnn.fp32_precision",
)  # fmt: skip
# `allow_tf32`, the older name of TF32, raises once a program has used a newer one; these never do. Parents come before
# children, whose values are theirs unless they have one of their own.
_TORCH_SWITCHES = (
    # The option `deterministic` decides on these four.
    *(
        _switch(name, _CPU)
        for name in ("are_deterministic_algorithms_enabled", "is_deterministic_algorithms_warn_only_enabled")
    ),
    _switch("backends.cudnn.deterministic", device="cuda"),
    _switch("backends.cudnn.benchmark", device="cuda"),
    _switch("utils.deterministic.fill_uninitialized_memory", _CPU),
    _switch("set_flush_denormal", _CPU, torch.set_flush_denormal, read=_flushes_denormals),
    _switch("get_default_dtype", _CPU, _set_dtype),
    _switch("get_default_device", _CPU, _set_device),
    _autocast("cpu"),
    _autocast("cuda"),
    _switch("backends.fp32_precision", restore=partial(_assign, "backends.fp32_precision"), sets=_FP32),
    _switch("get_float32_matmul_precision", restore=torch.set_float32_matmul_precision, sets=_FP32_MATMUL),
    *_attributes(
        "backends.mkldnn.enabled", "backends.mkldnn.deterministic", "backends.mkldnn.fp32_precision",
        "backends.mkldnn.matmul.fp32_precision", "backends.mkldnn.conv.fp32_precision",
        "backends.mkldnn.rnn.fp32_precision", device="cpu",
    ),
    _switch("backends.mkldnn.is_available", device="cpu"),
    _switch("backends.mkl.is_available", _CPU),
    _switch("backends.openmp.is_available", _CPU),
    _switch("backends.nnpack.set_flags", restore=torch.backends.nnpack.set_flags, device="cpu", read=_nnpack),
    *_attributes("backends.opt_einsum.enabled", "backends.opt_einsum.strategy"),
    _switch("backends.mha.get_fastpath_enabled", restore=torch.backends.mha.set_fastpath_enabled),
    # Attention: which of its kernels may be used, and which is asked first. The CPU has two of them.
    _switch("backends.cuda.flash_sdp_enabled", restore=torch.backends.cuda.enable_flash_sdp),
    _switch("backends.cuda.math_sdp_enabled", restore=torch.backends.cuda.enable_math_sdp),
    _switch("backends.cuda.mem_efficient_sdp_enabled", restore=torch.backends.cuda.enable_mem_efficient_sdp,
            device="cuda"),
    _switch("backends.cuda.cudnn_sdp_enabled", restore=torch.backends.cuda.enable_cudnn_sdp, device="cuda"),
    _switch("backends.cuda.fp16_bf16_reduction_math_sdp_allowed",
            restore=torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp),
    _switch("nn.attention.sdpa_kernel", restore=_set_sdp_order, read=_sdp_order, device="cuda"),
    *_attributes(
        "backends.cuda.matmul.fp32_precision", "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
        "backends.cuda.matmul.allow_fp16_reduced_precision_reduction", "backends.cuda.matmul.allow_fp16_accumulation",
        "backends.cuda.matmul.prefer_cublaslt_grouped_gemm", "backends.cudnn.enabled",
        "backends.cudnn.fp32_precision", "backends.cudnn.conv.fp32_precision", "backends.cudnn.rnn.fp32_precision",
        "backends.cudnn.benchmark_limit", "backends.cudnn.depthwise_kernel", "backends.miopen.immediate",
        device="cuda",
    ),
    # Assigned together with the two above: `= (reduced precision, split k)`.
    _switch("backends.cuda.matmul.allow_bf16_reduced_precision_reduction_split_k", device="cuda"),
    _switch("backends.cuda.matmul.allow_fp16_reduced_precision_reduction_split_k", device="cuda"),
    *(
        _switch(f"backends.cuda.{name}", restore=getattr(torch.backends.cuda, name, None), device="cuda")
        for name in ("preferred_blas_library", "preferred_linalg_library", "preferred_rocm_fa_library")
    ),
    _switch("cuda.tunable.is_enabled", restore=torch.cuda.tunable.enable, device="cuda"),
)  # fmt: skip


def _fused_attention() -> Value:
    experimental = _loaded("timm.layers.config", "_USE_FUSED_ATTN")
    return {0: "off", 1: "on", 2: "experimental"}.get(experimental) if isinstance(experimental, int) else None


def _set_fused_attention(value: str) -> None:
    sys.modules["timm.layers.config"].set_fused_attn(value != "off", value == "experimental")


def _other_switch(
    name: str, stages: frozenset[str], module: str, restore: Callable[[Any], object], read: Any = None
) -> BitFactor:
    """A switch of another package, by its full name; ``None`` while that package is not loaded."""
    value = read or partial(_loaded, module, name.rpartition(".")[2])
    return BitFactor("switches", name, stages, lambda _: value(), f"the switch {name}", restore)


def _call(module: str, function: str, value: Any) -> None:
    getattr(sys.modules[module], function)(value)


def _set_truncated(value: bool) -> None:
    sys.modules["PIL.ImageFile"].LOAD_TRUNCATED_IMAGES = value  # type: ignore[attr-defined]  # of a module by name


# timm's layers read them when a network is built: what counts is the value at that time.
_TIMM = "timm.layers.config"
_OTHER_SWITCHES = (
    _other_switch("timm.layers.use_fused_attn", _STEP, _TIMM, _set_fused_attention, _fused_attention),
    _other_switch("timm.layers.is_exportable", _STEP, _TIMM, partial(_call, _TIMM, "set_exportable")),
    _other_switch("timm.layers.is_scriptable", _STEP, _TIMM, partial(_call, _TIMM, "set_scriptable")),
    _other_switch("timm.layers.use_reentrant_ckpt", _STEP, _TIMM, partial(_call, _TIMM, "set_reentrant_ckpt")),
    _other_switch("torchvision.get_image_backend", _IMAGES, "torchvision",
                  partial(_call, "torchvision", "set_image_backend")),
    _other_switch("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", _IMAGES, "PIL.ImageFile", _set_truncated),
)  # fmt: skip


# Versions of packages, and of libraries inside them


def _package(name: str, stages: frozenset[str], read: Callable[[], Value] | None = None) -> BitFactor:
    return BitFactor("versions", name, stages, lambda _: (read or partial(_installed, name))(),
                     f"the version of {name}")  # fmt: skip


@cache  # each is read from a file of its own, and what was imported stays what it is
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_PACKAGES = (
    _package("autotimm", _ALL, lambda: autotimm.__version__),
    _package("torch", _ALL - {"order"}, lambda: str(torch.__version__)),  # with the build, for example +cu130
    _package("timm", _MODEL),
    _package("torchvision", _CPU),
    _package("pillow", _IMAGES),
    _package("pillow-heif", _IMAGES),  # reads photographs of iPhones where it is installed
    _package("simplejpeg", _IMAGES),  # reads JPEGs where it is installed, with the pixels of Pillow as far as is known
    _package("numpy", frozenset({"order", "inputs", "forward", "validation"})),
    _package("segmentation-models-pytorch", _MODEL),
    _package("torchmetrics", frozenset({"validation"})),
    _package("pycocotools", frozenset({"inputs", "validation"})),
    _package("faster-coco-eval", frozenset({"validation"})),  # used for average precision where it is installed
    _package("pytorch-lightning", _ALL - {"start", "inputs"}),
    _package("python", frozenset({"order", "inputs"}), platform.python_version),
)


def _of_pillow(feature: str) -> str | None:
    # Not imported for it: a run that has not loaded Pillow does not depend on it.
    if "PIL.Image" not in sys.modules:
        return None
    from PIL import features

    release = features.version(feature)
    return None if release is None else str(release)


def _of_torch(pattern: str) -> str | None:
    match = re.search(pattern, torch.__config__.show())
    return match[1] if match else None


def _library(name: str, stages: frozenset[str], read: Callable[[], Value], words: str) -> BitFactor:
    return BitFactor("libraries", name, stages, lambda _: read(), words)


# The same release of Pillow is built with other decoders, and the same release of torch with other libraries.
_LIBRARIES = (
    _library("libjpeg-turbo", _IMAGES, partial(_of_pillow, "libjpeg_turbo"), "the version of libjpeg-turbo in Pillow"),
    _library("libjpeg", _IMAGES, partial(_of_pillow, "jpg"), "the version of libjpeg in Pillow"),
    _library("libwebp", _IMAGES, partial(_of_pillow, "webp"), "the version of libwebp in Pillow"),
    _library("libavif", _IMAGES, partial(_of_pillow, "avif"), "the version of libavif in Pillow"),
    _library("openjpeg", _IMAGES, partial(_of_pillow, "jpg_2000"), "the version of openjpeg in Pillow"),
    _library("libtiff", _IMAGES, partial(_of_pillow, "libtiff"), "the version of libtiff in Pillow"),
    _library("blas", _CPU, partial(_of_torch, r"BLAS_INFO=(\w+)"), "the BLAS library of torch"),
    _library("mkl", _CPU, partial(_of_torch, r"Math Kernel Library Version ([\d.]+)"), "the version of MKL in torch"),
    _library("onednn", _STEP, partial(_of_torch, r"MKL-DNN v([\d.]+)"), "the version of oneDNN in torch"),
)


PIXEL_FACTORS: tuple[BitFactor, ...] = tuple(factor for factor in (*_PACKAGES, *_LIBRARIES) if factor.stages == _IMAGES)
"""The packages and libraries that make pixels of files, and act nowhere else."""


# Hardware and threads


def _first_match(path: str, pattern: str) -> str | None:
    """The first group of the first line of a file that a pattern matches."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((match[1].strip() for line in file if (match := re.search(pattern, line))), None)
    except OSError:
        return None


def _processor(_: Place) -> str | None:
    # On Linux platform.processor() is empty or says what platform.machine() says.
    return _first_match("/proc/cpuinfo", r"^model name\s*:(.+)") or platform.processor() or None


def _driver(place: Place) -> str | None:
    pattern = r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s"
    return _first_match("/proc/driver/nvidia/version", pattern) if place.has_cuda else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return device.type


def _hardware(name: str, stages: frozenset[str], read: Callable[[Place], Value], words: str = "") -> BitFactor:
    return BitFactor("hardware", name, stages, read, words or f"the hardware ({name})")


_HARDWARE = (
    _hardware("instructions", _CPU, lambda _: torch.backends.cpu.get_cpu_capability(), "the instruction set"),
    _hardware("cpu", _CPU, _processor, "the processor"),
    _hardware("machine", _CPU, lambda _: platform.machine()),
    _hardware("system", frozenset(), lambda _: platform.system()),
    _hardware("devices", _STEP, lambda place: [_device_name(device) for device in place.devices]),
    _hardware("driver", _STEP, _driver),
    _hardware("cuda", _STEP, lambda place: torch.version.cuda if place.has_cuda else None),
    # Reading it loads cuDNN.
    _hardware("cudnn", _STEP, lambda place: torch.backends.cudnn.version() if place.has_cuda else None),
)
# An option sets them back.
_THREAD_COUNT = BitFactor("", "threads", _CPU, lambda place: place.threads, "the number of threads")

#: The table; in a stage the likelier cause comes first.
FACTORS: tuple[BitFactor, ...] = (
    _THREAD_COUNT, *_INSTRUCTIONS, *_THREADS, *_TIMM_VARIABLES, *_CPU_KERNELS, *_GPU_VARIABLES, *_OTHER_SWITCHES,
    *_TORCH_SWITCHES, *_HARDWARE, *_LIBRARIES, *_PACKAGES, *_COMPILER_VARIABLES, *_HASHES,
)  # fmt: skip
_BY_KEY = {factor.key: factor for factor in FACTORS}
_RANK = {factor.key: rank for rank, factor in enumerate(FACTORS)}


def factors_in(section: str) -> list[BitFactor]:
    """The factors of a section of the manifest's ``environment``, sorted by name."""
    return sorted((factor for factor in FACTORS if factor.section == section), key=lambda factor: factor.name)


#: The environment variables that change numbers. No other is ever recorded: an environment holds keys and passwords.
VARIABLES: tuple[str, ...] = tuple(factor.name for factor in factors_in("variables"))

_UNKNOWN_STAGES = {
    "variables": _CPU,
    "switches": _CPU,
    "libraries": _CPU,
    "hardware": _STEP,
    "versions": frozenset[str](),
}


def factor_named(key: str) -> BitFactor | None:
    """The factor at a dotted name of the manifest's ``environment``; ``None`` if there is no factor.

    A name that this version does not know, from a record of another version, is a factor too if its section is one of
    factors: it is assumed to act wherever numbers are computed.
    """
    if key in _BY_KEY:
        return _BY_KEY[key]
    section, _, name = key.partition(".")
    if section not in _UNKNOWN_STAGES or not name:
        return None
    words = {
        "variables": f"the environment variable {name}", "switches": f"the switch {name}",
        "hardware": f"the hardware ({name})",
    }.get(section, f"the version of {name}")  # fmt: skip
    return BitFactor(section, name, _UNKNOWN_STAGES[section], lambda _: None, words)


def rank(factor: BitFactor) -> int:
    """Where a factor stands in the table: the smaller, the likelier a cause."""
    return _RANK.get(factor.key, len(FACTORS))


def known_to_both(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two recorded environments can be compared in a factor.

    A variable that is not set is not recorded. Any other factor always is: a record without it was written by a version
    that did not know it, and a switch or library that is ``None`` could not be read. Such a value is no difference.

    Args:
        key: Its dotted name.
        a: The one environment, as nested dictionaries.
        b: The other.
    """
    section, _, name = key.partition(".")
    if section not in _UNKNOWN_STAGES or section == "variables":
        return True
    sections = [environment.get(section) or {} for environment in (a, b)]
    if section in ("switches", "libraries"):
        return all(values.get(name) is not None for values in sections)
    return all(name in values for values in sections)
