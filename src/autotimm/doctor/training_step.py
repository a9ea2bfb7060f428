"""Check one training step for non-deterministic operators: run it on a GPU, or trace it where there is none."""

from __future__ import annotations

import copy
import re
import warnings

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from autotimm.config import FitConfig, defaults
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.doctor.documented import Operator, entries, unknown
from autotimm.doctor.finding import Finding, note, ok, problem
from autotimm.doctor.trace import quietly, trace
from autotimm.errors import RunError
from autotimm.image_size import ImageSize
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.runs.factory import build_task, settle
from autotimm.tasks import Task
from autotimm.types import Batch, Sample, Stage

__all__ = ["check_documentation", "check_step", "judge", "settle_task", "stand_in_task"]

_MODEL_PROBLEM = 4  # exit code
_CLASSES = 10
_UPGRADE = "Upgrade autotimm, or train on a GPU to see which operators raise."


def check_step(task: Task, batch: Batch, deterministic: bool) -> list[Finding]:
    """Check one training step: run it where there is a GPU, otherwise trace it.

    Args:
        task: Any task.
        batch: A batch for this task.
        deterministic: Whether training will require deterministic kernels.
    """
    shape = " x ".join(map(str, batch.images.shape))
    try:
        if torch.cuda.is_available():
            with quietly():
                return _findings(judge(task, batch), deterministic, f"a step of {shape} on the GPU")
        traced = trace(task, batch)
    except RunError as error:
        return [note(str(error).rstrip("."))]
    how = "calculated on the CPU as if on CUDA" if traced.calculated else "traced for CUDA"
    step = f"a step of {shape}, {how} ({len(traced.seen)} operators)"
    findings = _findings(traced.operators, deterministic, step) + check_documentation()
    if traced.optimizer:
        findings.append(note(f"the optimizer's step could not be traced ({traced.optimizer})"))
    return findings


def _findings(operators: list[Operator], deterministic: bool, step: str) -> list[Finding]:
    if not operators:
        return [ok(f"{step} calls only deterministic operators")]
    findings = []
    for operator in operators:
        origin = f", torch's {operator.documented.removeprefix('torch.')}" if operator.documented else ""
        where = f", in {', '.join(operator.modules)}" if operator.modules else ""
        text = f"{operator.name} has no deterministic CUDA implementation{origin}{where}"
        if deterministic:
            cure = "Use another layer or loss there, or train with --deterministic false."
            findings.append(problem(text, cure, _MODEL_PROBLEM))
        else:
            findings.append(note(text, "With deterministic=False it runs, and results vary."))
    return findings


def check_documentation() -> list[Finding]:
    """Check that every operation in the installed torch's list is known; return nothing if so."""
    documented = entries()
    if not documented:
        text = f"torch {torch.__version__} documents its non-deterministic operators in a way that could not be read"
        return [note(text, _UPGRADE)]
    if missing := unknown(documented):
        text = f"torch {torch.__version__} documents operations that this autotimm does not know: {', '.join(missing)}"
        return [note(text, _UPGRADE)]
    return []


# The beginning of torch's message, in ATen's Context.cpp. Other warnings are ignored.
_COMPLAINT = re.compile(r"^(.+?) does not have a deterministic implementation")


def judge(task: Task, batch: Batch, device: str | torch.device = "cuda") -> list[Operator]:
    """Run one training step of a copy, and list the operators that torch reports as non-deterministic.

    The first pass only warns, so that one operator does not hide the next. If it is silent, a second pass is strict.

    Args:
        task: Any task.
        batch: A batch for this task.
        device: Where to run.

    Raises:
        RunError: If the step fails for another reason, such as too little memory.
    """
    try:
        names = _reported_operators(task, batch, torch.device(device), strict=False)
        names = names or _reported_operators(task, batch, torch.device(device), strict=True)
    except torch.OutOfMemoryError as error:
        raise RunError(f"The device ran out of memory ({_first_line(error)}). Lower `batch_size`.") from error
    except RuntimeError as error:
        if (complaint := _COMPLAINT.match(str(error))) is None:
            raise RunError(f"The training step of {type(task).__name__} fails ({_first_line(error)}).") from error
        names = {complaint[1]}
    return [Operator(name) for name in sorted(names)]


def _reported_operators(task: Task, batch: Batch, device: torch.device, strict: bool) -> set[str]:
    copied = copy.deepcopy(task).to(device).train()
    options, pretrained = task.optimizer_options, task.weights.pretrained
    recipe = choose_recipe(
        copied.network, pretrained=pretrained, batch_size=len(batch.images), options=options, kind=task.kinds[0]
    )
    optimizer = build_optimizer(copied.network, recipe)
    with warnings.catch_warnings(record=True) as caught, preserve_switches():
        warnings.simplefilter("always")
        set_deterministic(True)
        torch.use_deterministic_algorithms(True, warn_only=not strict)
        with scope(task.root_seed, "step", 0, 0, 0, devices=[device]):
            on_device = apply_to_collection(batch, Tensor, lambda tensor: tensor.to(device))
            copied.step(on_device, Stage.TRAIN).loss.backward()
            optimizer.step()
    matches = [_COMPLAINT.match(str(warning.message)) for warning in caught]
    return {match[1] for match in matches if match}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def settle_task(config: FitConfig) -> FitConfig:
    """The configuration with its task decided: classification, unless something names another."""
    # The default path stands for no path, so that the task cannot be detected from the data.
    undecided = config.sources["path"] == "default" and config.task == "auto"
    return config.for_task("classification") if undecided else settle(config)


def stand_in_task(config: FitConfig) -> Task:
    """The task that ``fit`` would train, without data and pretrained weights, which do not change its operators.

    Compiling, mixup and CutMix are left out: compiling replaces kernels, and images are mixed before the step.

    Args:
        config: A configuration with a decided task, see :func:`settle_task`.
    """
    multi_label = bool(config.multi_label) or config.threshold != defaults()["threshold"]
    simplified = {"pretrained": False, "compile": False, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    with quietly():
        return build_task(config.resolved(simplified, "doctor"), _StandInData(multi_label, config.image_size))


class _StandInTable(Table):
    """Two samples of each of ten classes, without images."""

    draws_random = False

    def __init__(self, multi_label: bool) -> None:
        self.class_names = tuple(str(index) for index in range(_CLASSES))
        self.multi_label = multi_label
        self.strata = [index % _CLASSES for index in range(2 * _CLASSES)]
        self.ids = tuple(map(str, range(len(self.strata))))

    def load(self, index: int) -> Sample:
        """Never called: the step gets a batch of its own."""
        raise NotImplementedError


class _StandInData(DataModule):
    """Provides class names and class counts, which a task reads from its data."""

    def __init__(self, multi_label: bool, image_size: ImageSize) -> None:
        super().__init__(val_split=0, image_size=image_size)
        self._multi_label = multi_label

    def read(self, split: str) -> Table | None:
        """The table without images, for training."""
        return _StandInTable(self._multi_label) if split == "train" else None
