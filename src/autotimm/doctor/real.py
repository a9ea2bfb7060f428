"""The judge where there is a GPU: the step itself, with deterministic algorithms insisted on."""

from __future__ import annotations

import copy
import re
import warnings

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from autotimm.doctor.documented import Operator
from autotimm.errors import RunError
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.tasks import Task
from autotimm.types import Batch, Stage

__all__ = ["judge"]

# torch's sentence for it, in ATen's Context.cpp. Everything else that it warns of is left alone.
_COMPLAINT = re.compile(r"^(.+?) does not have a deterministic implementation")


def judge(task: Task, batch: Batch, device: str | torch.device = "cuda") -> list[Operator]:
    """Run one real training step of a copy, and list the operators that torch complains about.

    The first pass only warns, so that one complaint does not hide the next. If it is silent, a second pass is strict.

    Args:
        task: Any task.
        batch: A batch of its kind.
        device: Where to run.

    Raises:
        RunError: If the step fails for another reason, such as too little memory.
    """
    try:
        names = _complaints(task, batch, torch.device(device), strict=False)
        names = names or _complaints(task, batch, torch.device(device), strict=True)
    except torch.OutOfMemoryError as error:
        raise RunError(f"The device ran out of memory ({_first_line(error)}). Lower `batch_size`.") from error
    except RuntimeError as error:
        if (complaint := _COMPLAINT.match(str(error))) is None:
            raise RunError(f"The training step of {type(task).__name__} fails ({_first_line(error)}).") from error
        names = {complaint[1]}
    return [Operator(name) for name in sorted(names)]


def _complaints(task: Task, batch: Batch, device: torch.device, strict: bool) -> set[str]:
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
            there = apply_to_collection(batch, Tensor, lambda tensor: tensor.to(device))
            copied.step(there, Stage.TRAIN).loss.backward()
            optimizer.step()
    found = [_COMPLAINT.match(str(warning.message)) for warning in caught]
    return {match[1] for match in found if match}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
