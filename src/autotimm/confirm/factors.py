"""What can be set back before a step is replayed: options, threads, and switches of torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autotimm.config import FitConfig
from autotimm.rebuild import read_config
from autotimm.repro.cause import ManifestDifference, differences
from autotimm.repro.environment import environment
from autotimm.repro.manifest import Manifest

__all__ = ["Factor", "Setup", "options_apart", "recorded_switches", "surroundings_apart", "switched", "unsettable"]


class Factor(NamedTuple):
    """Something in which two runs differ, and which a replay can have either way.

    Attributes:
        name: What it is, in words.
        here: Its value in the run that is replayed.
        there: Its value in the other one.
        option: What :func:`autotimm.rebuild.rebuild` calls it; empty for a switch.
        switch: Where torch keeps it, below ``torch.``; empty for an option.
    """

    name: str
    here: Any
    there: Any
    option: str = ""
    switch: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({_shown(self.there)} instead of {_shown(self.here)})"


class Setup(NamedTuple):
    """How a replay is made.

    Attributes:
        options: Options that are to be others than recorded.
        switches: Switches of torch to set.
    """

    options: Mapping[str, Any]
    switches: Mapping[str, Any]

    def with_(self, factors: Iterable[Factor]) -> Setup:
        """The same, with factors set back."""
        options = {one.option: one.there for one in factors if one.option}
        switches = {one.switch: one.there for one in factors if one.switch}
        return Setup({**self.options, **options}, {**self.switches, **switches})


# Options that change no number. Threads and decisions are compared where they are recorded for certain.
_SILENT = {
    "out", "name", "progress", "loggers", "keep", "checkpoint_every", "num_workers", "download", "strict", "threads",
    "lr_find", "batch_size_find", "logger", "enable_progress_bar", "enable_model_summary", "profiler", "run_dir",
    "default_root_dir", "enable_checkpointing", "log_every_n_steps", "persistent_workers", "pin_memory", "tuner",
}  # fmt: skip
_PLACES = {"path", "data_dir", "train_csv", "val_csv", "test_csv", "image_dir"}  # no matter, while the images are equal


def options_apart(replayed: Path, other: Path, manifests: tuple[Manifest, Manifest]) -> list[Factor]:
    """The options in which two runs differ; none if one was made from options and the other from objects."""
    here, there = (_options(read_config(folder)) for folder in (replayed, other))
    same_data = manifests[0].inputs.get("data") == manifests[1].inputs.get("data")
    silent = _SILENT | (_PLACES if same_data else set())
    found = []
    for key in here:
        name = key.rpartition(".")[2]
        if key in there and name not in silent and here[key] != there[key]:
            found.append(Factor(_words("inputs", f"config.{name}", here[key], there[key]), here[key], there[key], key))
    for name in ("lr", "batch_size"):  # found by a search, which no option tells
        a, b = (one.decisions.get(name) for one in manifests)
        known = any(one.option.rpartition(".")[2] in (name, "data_dir", "path") for one in found)
        if a != b and None not in (a, b) and not known:
            found.append(Factor(_words("decisions", name, a, b), a, b, name))
    return found


def _options(config: FitConfig | dict[str, Any]) -> dict[str, Any]:
    """Options by name; those of objects with the part that they belong to, as ``model.lr``."""
    if isinstance(config, FitConfig):
        return config.as_dict()
    parts = {name: config[name] for name in ("model", "data", "trainer") if name in config}
    return {
        f"{part}.{name}": value
        for part, given in parts.items()
        for name, value in ((given if part == "trainer" else given.get("init_args")) or {}).items()
    }


def _words(section: str, name: str, here: Any, there: Any) -> str:
    return ManifestDifference(section, name, here, there).words.partition(": ")[0]


def _shown(value: Any) -> str:
    words = {None: "none", True: "on", False: "off"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _attribute(path: str, value: Any) -> None:
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(torch), name, value)


# The switches that a process may set at any time. Those of `deterministic` are not here: the option decides them.
_SETTERS: dict[str, Callable[[Any], None]] = {
    "get_float32_matmul_precision": torch.set_float32_matmul_precision,
    "backends.cuda.cudnn_sdp_enabled": torch.backends.cuda.enable_cudnn_sdp,
    "backends.cuda.flash_sdp_enabled": torch.backends.cuda.enable_flash_sdp,
    "backends.cuda.math_sdp_enabled": torch.backends.cuda.enable_math_sdp,
    "backends.cuda.mem_efficient_sdp_enabled": torch.backends.cuda.enable_mem_efficient_sdp,
    **{
        name: partial(_attribute, name)
        for name in (
            "backends.fp32_precision", "backends.cuda.matmul.fp32_precision", "backends.cudnn.conv.fp32_precision",
            "backends.mkldnn.matmul.fp32_precision", "backends.mkldnn.conv.fp32_precision",
            "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
            "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
            "backends.cudnn.enabled", "backends.mkldnn.enabled", "backends.mkldnn.deterministic",
        )
    },
}  # fmt: skip


def recorded_switches(manifest: Manifest) -> dict[str, Any]:
    """The switches of a run that a replay can set."""
    found: dict[str, Any] = manifest.environment.get("switches", {})
    return {name: found[name] for name in _SETTERS if found.get(name) is not None}


def surroundings_apart(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Factor]:
    """Threads and switches in which two recorded environments differ."""
    found = []
    a, b = here.get("threads"), there.get("threads")
    if a != b and b is not None:
        found.append(Factor("the number of threads", a, b, "threads"))
    for name in _SETTERS:
        a, b = (one.get("switches", {}).get(name) for one in (here, there))
        if a != b and None not in (a, b):
            found.append(Factor(_words("environment", f"switches.{name}", a, b), a, b, switch=name))
    return found


@contextmanager
def switched(values: Mapping[str, Any]) -> Iterator[None]:
    """Set switches of torch inside, and give them back outside."""
    before = environment(1, [])["switches"]
    changed = [name for name, value in values.items() if before[name] is not None and before[name] != value]
    try:
        for name in changed:
            _SETTERS[name](values[name])
        yield
    finally:
        for name in reversed(changed):
            _SETTERS[name](before[name])


_FIXED = r"environment\.(versions|variables|hardware|package|git|callbacks)\b.*|inputs\.code\b.*"


def unsettable(here: Manifest, there: Manifest) -> list[str]:
    """What differs and cannot be set back while Python runs: versions, variables, hardware and code."""
    names = {}  # without doubles, in order
    for one in differences(here, there):
        if re.fullmatch(_FIXED, f"{one.section}.{one.name}"):
            callback = one.name.removeprefix("callbacks.")
            name = f"the callback {callback}" if callback != one.name else _words(one.section, one.name, one.a, one.b)
            names[name] = one
    return list(names)
