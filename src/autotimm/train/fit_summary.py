"""The lines at the end of a fit: what is best, what it is worth, what may be claimed, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotimm.data.module import DataModule
from autotimm.records.checked_levels import level_claims
from autotimm.records.run_folder import CALIBRATION, RunFolder, name_of_weights
from autotimm.tasks import Task
from autotimm.train.progress import duration, metrics_text

__all__ = ["summary"]


def summary(folder: RunFolder, trainer: Any, seconds: float, *, resumed: bool = False) -> list[str]:
    """The lines at the end of a fit.

    Args:
        folder: The run's folder.
        trainer: The trainer, which has finished.
        seconds: How long it took.
        resumed: Whether that is since the run was resumed.
    """
    module, results = trainer.lightning_module, folder.results()
    since = " since it was resumed" if resumed else ""
    done = trainer.current_epoch  # 0 in a process that has spawned others to train
    epochs = f"{done} epoch{'' if done == 1 else 's'}, " if done else ""
    lines = [f"finished: {epochs}{duration(seconds)}{since}"]
    best: dict[str, Any] = getattr(trainer.checkpoint_callback, "best", None) or {}
    if best:
        validated = {name: value for name, value in best["metrics"].items() if name.startswith("val/")}
        lines.append(f"{_name_of_best(best)}  {metrics_text(validated or best['metrics'], module)}")
    if calibration := results.get(CALIBRATION):
        lines.append(f"calibration, measured on other samples: {_worth(calibration, module)}")
    if "test" in results:
        lines.append(f"test: {metrics_text(results['test'], module)}")
    return [*lines, _claims(folder), f"run folder: {folder.path}", f"next: {_next_command(folder, trainer)}"]


def _worth(measured: dict[str, float], module: Any) -> str:
    """What a temperature and thresholds are worth, and which threshold the metrics of the training had."""
    parts = []
    if "ece" in measured:
        temperature = measured["temperature"]
        used = f"temperature {temperature:.3g}" if temperature != 1 else "not used: the loss would be no lower"
        parts.append(f"error of confidence {measured['ece']:.3f} -> {measured['calibrated_ece']:.3f} ({used})")
    if "f1" in measured:
        used = "a threshold for each class" if measured["fitted"] else "not used"
        before = f"{measured['f1']:.3f} from {module.threshold:g} on, as in the metrics"
        parts.append(f"F1 {before} -> {measured['fitted_f1']:.3f} ({used})")
    return ", ".join(parts)


def _name_of_best(best: Mapping[str, Any]) -> str:
    """What the weights that are kept are of, in the words of the report."""
    kept = best.get("averaged") or [best["epoch"] + 1]
    return f"best epoch: {kept[0]}" if len(kept) == 1 and kept[0] else f"best: {name_of_weights(kept)}"


def _claims(folder: RunFolder) -> str:
    """What the run may claim of its reproducibility, in one line."""
    levels: dict[str, list[str]] = {}
    for level, claim in level_claims(folder.path).items():
        levels.setdefault(claim.partition(" ")[0].rstrip(","), []).append(level)
    no = levels.pop("no", [])
    claims = [f"{' '.join(names)} {claim}" for claim, names in levels.items()]
    claims += [f"not {' '.join(no)}"] if no else []
    return f"reproducibility: {', '.join(claims)} (autotimm levels {folder.path})"


def _next_command(folder: RunFolder, trainer: Any) -> str:
    data = trainer.datamodule
    if not isinstance(data, DataModule):
        return f"autotimm diff {folder.path} ANOTHER_RUN"  # no command can build the caller's own loaders again
    if not isinstance(trainer.lightning_module, Task):
        return f"autotimm verify {folder.path}"
    if "test" in data.tables and "test" not in folder.results():
        return f"autotimm test {folder.path}"
    return f"autotimm predict {folder.path} IMAGES"
