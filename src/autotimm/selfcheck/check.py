"""Run the trainings, compare them, and train once more for each variation that made a difference."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from autotimm.config import read_yaml
from autotimm.constants import STREAMS
from autotimm.data.module import DataModule
from autotimm.errors import UsageError
from autotimm.runs.verdict import describe
from autotimm.selfcheck.processes import PLAN, Child, TrainingProcesses
from autotimm.selfcheck.setup import Setup, import_class
from autotimm.selfcheck.variations import CHECKS, Check, available_cores
from autotimm.selfcheck.verdicts import (
    Report,
    Result,
    TrainingRecord,
    compare_trainings,
    judge_next_epoch,
    judge_pairs,
    judge_stream,
)
from autotimm.tasks import Task

__all__ = ["check", "selfcheck"]


def selfcheck(
    config: str | Path | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Check that a setup is reproducible, by about thirty short trainings in separate processes.

    Args:
        config: A YAML file with options of ``fit``; by default a small network.
        model: Import path of a task class, instead of the model.
        data: Import path of a data module, instead of the data. If it takes ``data_dir``, it gets a folder of toy
            images: 28 images of 32 x 32 pixels in four class folders.
        say: Called with a line of text whenever a process has finished.

    Raises:
        UsageError: If a class or the file cannot be used.
        RunError: If the training without variations fails.
    """
    values, nested = ({}, False) if config is None else read_yaml(str(config))
    if nested:
        raise UsageError(f"The `config` of selfcheck must be a file with options of fit. {config} names classes. "
                         "Give it to `autotimm selfcheck --config`.")  # fmt: skip
    return check(
        Setup(
            options=values,
            file=str(config or ""),
            place=os.path.abspath(config) if config else "",
            model=model or "",
            data=data or "",
        ),
        say,
    )


def check(setup: Setup, say: Callable[[str], None] = lambda line: None) -> Report:
    """Check a setup; see :func:`selfcheck`."""
    for path, flag, base in ((setup.model, "--model", Task), (setup.data, "--data", DataModule)):
        if path:
            import_class(path, flag, base)  # report mistakes before anything is trained
    with tempfile.TemporaryDirectory(prefix="autotimm-selfcheck-", ignore_cleanup_errors=True) as folder:
        return _Checker(TrainingProcesses(Path(folder).resolve(), setup, say)).report()


# A second training in one process, and a resumed one, cannot be repeated in a process of their own.
_NOT_ISOLATED = ("again", "resumed")


def _isolated_name(check: Check) -> str:
    """The name of the training that varies only what this check varies."""
    return f"alone {CHECKS.index(check)}"


class _Checker:
    def __init__(self, processes: TrainingProcesses) -> None:
        self.processes = processes

    def report(self) -> Report:
        self.processes.run(PLAN[:2])
        first = self._compare(CHECKS[0], CHECKS[0].trained)
        if first.verdict == "problem":
            # Two equal trainings differ, so that a difference of others could not be attributed to what they vary.
            text = "not checked: equal trainings differ already"
            results = [first, *(Result(check.name, check.level, "skipped", text) for check in CHECKS[1:])]
        else:
            self.processes.run(PLAN[2:])
            results = [first, *self._compare_all(CHECKS[1:]), *self._compare_pairs(), *self._compare_seeds()]
        return Report(tuple(results), self._levels(results))

    def _training(self, name: str) -> TrainingRecord:
        return TrainingRecord(self.processes.run_dir(name))

    def _compare_all(self, checks: Sequence[Check]) -> list[Result]:
        """Compare trainings; for each difference, train once more with only this variation."""
        results = {check: self._skip(check) or self._compare(check, check.trained) for check in checks}
        suspects = [
            check
            for check, result in results.items()
            if result.verdict == "problem" and check.trained not in _NOT_ISOLATED
        ]
        isolated = {
            check: Child(f"{check.name}, alone", {_isolated_name(check): check.variation}, check.world)
            for check in suspects
        }
        # Separately, since file times are changed in place, where the other processes would see them.
        self.processes.run([child for check, child in isolated.items() if not check.world.touched])
        self.processes.run([child for check, child in isolated.items() if check.world.touched])
        return [
            self._compare(check, _isolated_name(check)) if check in isolated else result
            for check, result in results.items()
        ]

    def _skip(self, check: Check) -> Result | None:
        """The result of a check that is impossible here, or ``None``."""
        if (check.world.moved or check.world.touched) and not self.processes.setup.toy:
            return Result(check.name, check.level, "skipped", "not checked: the images are your own")
        if check.world.one_core and available_cores() == 1:
            return Result(check.name, check.level, "skipped", "not checked: only one core is available")
        return None

    def _compare(self, check: Check, training: str) -> Result:
        for name in (check.against, training):
            if name in self.processes.failures:
                cause = f"The training fails: {self.processes.failures[name]}"
                return Result(check.name, check.level, "problem", "fails", cause)
        if not all(map(self._finished, (check.against, training))):
            cause = "An earlier training in the same process failed."
            return Result(check.name, check.level, "problem", "fails", cause)
        difference = compare_trainings(self._training(check.against), self._training(training), check.metrics)
        if difference is None:
            return Result(check.name, check.level, "ok", "same")
        where, cause = difference
        hint = (check.unread if where.stage == "inputs" else "") or check.hint
        return Result(check.name, check.level, "problem", describe(where), hint or cause)

    def _finished(self, training: str) -> bool:
        return self.processes.run_dir(training).with_suffix(".json").exists()

    def _compare_pairs(self) -> list[Result]:
        names = ("pair", "other_pair")
        if all(map(self._finished, names)):
            single = "hash" if self._finished("hash") else "reference"  # "hash" ran in the same environment
            return judge_pairs(*map(self._training, (single, *names)))
        why = next((self.processes.failures[name] for name in names if name in self.processes.failures), "")
        # Not every model can be trained by several processes, which is no problem by itself.
        return [Result("2 processes, twice", "R1", "skipped", f"not checked: training fails there ({why})")]

    def _compare_seeds(self) -> list[Result]:
        reference, results = self._training("reference"), []
        for stream in STREAMS:
            name = f"seed_{stream}"
            if self._finished(name):
                results.append(judge_stream(stream, reference, self._training(name)))
            else:
                why = self.processes.failures.get(name, "an earlier training in the same process failed")
                cause = f"The training fails: {why}"
                results.append(Result(f"another seed of `{stream}`", "", "problem", "fails", cause))
        if self._finished("seed_augment"):
            results.append(judge_next_epoch(reference, self._training("seed_augment")))
        return results

    def _levels(self, results: list[Result]) -> dict[str, str]:
        """The levels of the manifest, with the results of the checks for R1 to R3."""
        levels = dict(self._training("reference").manifest.levels)
        reason = ""
        for level in ("R1", "R2", "R3"):  # each level includes the one before
            own = [result for result in results if result.level == level]
            if broken := next((result for result in own if result.verdict == "problem"), None):
                reason = reason or f"no, because this changes the result: {broken.name}"
            levels[level] = reason or "checked"
        return levels
