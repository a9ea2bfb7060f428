"""One training step, looked at by whichever judge this machine has, and the stand-in for data that it needs."""

from __future__ import annotations

import torch

from autotimm.config import FitConfig, defaults
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.doctor.documented import Operator, entries, unknown
from autotimm.doctor.finding import Finding, note, ok, problem
from autotimm.doctor.real import judge
from autotimm.doctor.trace import quietly, trace
from autotimm.errors import RunError
from autotimm.runs.factory import build_task, settle
from autotimm.tasks import Task
from autotimm.types import Batch, Sample

__all__ = ["check_documentation", "check_step", "settled", "stand_in_task"]

_MODEL = 4  # the exit code of what is wrong with a model
_CLASSES = 10
_NEWER = "Upgrade autotimm, or train on a GPU to see what raises."


class _NoTable(Table):
    """Two samples of each of ten classes that are never loaded."""

    draws_random = False

    def __init__(self, multi_label: bool) -> None:
        self.class_names = tuple(str(index) for index in range(_CLASSES))
        self.multi_label = multi_label
        self.strata = [index % _CLASSES for index in range(2 * _CLASSES)]
        self.ids = tuple(map(str, range(len(self.strata))))

    def load(self, index: int) -> Sample:
        """Not called: a step is traced with a batch of its own."""
        raise NotImplementedError


class _NoData(DataModule):
    def __init__(self, multi_label: bool, image_size: int) -> None:
        super().__init__(val_split=0, image_size=image_size)
        self._multi_label = multi_label

    def read(self, split: str) -> Table | None:
        """Only what a task asks for: names and numbers of classes."""
        return _NoTable(self._multi_label) if split == "train" else None


def settled(config: FitConfig) -> FitConfig:
    """The configuration with its task settled: classification, if nothing says another."""
    # A path that nobody gave stands for none, and says nothing of the task.
    unsaid = config.sources["path"] == "default" and config.task == "auto"
    return config.for_task("classification") if unsaid else settle(config)


def stand_in_task(config: FitConfig) -> Task:
    """The task that ``fit`` would train, without data and pretrained weights, which do not change its operators.

    Compiling and mixing images are left out: the one makes other kernels, the other happens before the step.

    Args:
        config: With its task settled, see :func:`settled`.
    """
    multi_label = bool(config.multi_label) or config.threshold != defaults()["threshold"]
    plain = {"pretrained": False, "compile": False, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    with quietly():
        return build_task(config.resolved(plain, "doctor"), _NoData(multi_label, config.image_size))


def check_documentation() -> list[Finding]:
    """Whether this library knows all that the installed torch documents; nothing if it does."""
    found = entries()
    if not found:
        return [note(f"torch {torch.__version__} documents its operators in other words, and none is known", _NEWER)]
    if missing := unknown(found):
        return [
            note(f"torch {torch.__version__} documents what this autotimm does not know: {', '.join(missing)}", _NEWER)
        ]
    return []


def check_step(task: Task, batch: Batch, deterministic: bool) -> list[Finding]:
    """Look at one training step: for real where there is a GPU, else by a trace.

    Args:
        task: Any task.
        batch: A batch of its kind.
        deterministic: Whether training will insist on deterministic kernels.
    """
    size = " x ".join(map(str, batch.images.shape))
    try:
        if torch.cuda.is_available():
            with quietly():
                return _listed(judge(task, batch), deterministic, f"a step of {size} on the GPU")
        traced = trace(task, batch)
    except RunError as error:
        return [note(str(error).rstrip("."))]
    how = "calculated on the CPU as if on CUDA" if traced.calculated else "traced for CUDA"
    what = f"a step of {size}, {how} ({len(traced.seen)} operators)"
    findings = _listed(traced.operators, deterministic, what) + check_documentation()
    if traced.optimizer:
        findings.append(note(f"the optimizer's step could not be traced ({traced.optimizer})"))
    return findings


def _listed(operators: list[Operator], deterministic: bool, what: str) -> list[Finding]:
    if not operators:
        return [ok(f"{what} has a deterministic implementation throughout")]
    findings = []
    for one in operators:
        origin = f", torch's {one.documented.removeprefix('torch.')}" if one.documented else ""
        where = f", in {', '.join(one.modules)}" if one.modules else ""
        text = f"{one.name} has no deterministic CUDA implementation{origin}{where}"
        if deterministic:
            cure = "Use another layer or loss there, or train with --deterministic false."
            findings.append(problem(text, cure, _MODEL))
        else:
            findings.append(note(text, "With deterministic=False it runs, and results vary."))
    return findings
