"""The check itself: trainings, comparisons, and one more training for each thing that made a difference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from autotimm.config import read_yaml
from autotimm.constants import STREAMS
from autotimm.data.module import DataModule
from autotimm.errors import UsageError
from autotimm.runs.verdict import describe
from autotimm.selfcheck.processes import PLAN, Child, Workshop
from autotimm.selfcheck.setup import Setup, import_class
from autotimm.selfcheck.variations import CHECKS, Check, available_cores
from autotimm.selfcheck.verdicts import Report, Result, Trained, apart, judge_next_epoch, judge_pairs, judge_stream
from autotimm.tasks import Task

__all__ = ["check", "selfcheck"]

_BY_THEMSELVES = ("again", "resumed")  # what these vary cannot come from a training beside them


def _alone(one: Check) -> str:
    """The name of the training that varies this by itself."""
    return f"alone {CHECKS.index(one)}"


def selfcheck(
    config: str | Path | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Check whether a set-up is reproducible, by about thirty short trainings in processes of their own.

    Args:
        config: A file of options of ``fit``.
        model: Import path of a task class, in place of the model.
        data: Import path of a data module, in place of the data. If it takes ``data_dir``, it gets a folder of toy
            images: 28 of 32 pixels, in four class folders.
        say: Called with a line whenever a process is done.

    Raises:
        UsageError: If a class or the file cannot be used.
        RunError: If the plain training fails.
    """
    values, nested = ({}, False) if config is None else read_yaml(str(config))
    if nested:
        raise UsageError(f"The `config` of selfcheck must be a file of options of fit. {config} names classes. "
                         "Give it to `autotimm selfcheck --config`.")  # fmt: skip
    return check(Setup(options=values, file=str(config or ""), model=model or "", data=data or ""), say)


def check(setup: Setup, say: Callable[[str], None] = lambda line: None) -> Report:
    """Check a set-up; see :func:`selfcheck`."""
    for path, flag, base in ((setup.model, "--model", Task), (setup.data, "--data", DataModule)):
        if path:
            import_class(path, flag, base)  # a slip is answered before anything is trained
    with tempfile.TemporaryDirectory(prefix="autotimm-selfcheck-", ignore_cleanup_errors=True) as folder:
        return _Checking(Workshop(Path(folder).resolve(), setup, say)).report()


class _Checking:
    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def report(self) -> Report:
        self.workshop.run(PLAN[:2])
        first = self._compare(CHECKS[0], CHECKS[0].trained)
        if first.verdict == "problem":
            # Two equal trainings differ: what the others differ by would say nothing of what was varied.
            text = "not checked: equal trainings differ already"
            results = [first, *(Result(one.name, one.level, "skipped", text) for one in CHECKS[1:])]
        else:
            self.workshop.run(PLAN[2:])
            results = [first, *self._same(CHECKS[1:]), *self._pairs(), *self._seeds()]
        return Report(tuple(results), self._levels(results))

    def _trained(self, name: str) -> Trained:
        return Trained(self.workshop.run_dir(name))

    def _same(self, checks: Sequence[Check]) -> list[Result]:
        """Compare trainings; where two differ, train once more with the one thing varied by itself."""
        found = {one: self._possible(one) or self._compare(one, one.trained) for one in checks}
        doubtful = [
            one for one, result in found.items() if result.verdict == "problem" and one.trained not in _BY_THEMSELVES
        ]
        alone = {one: Child(f"{one.name}, alone", {_alone(one): one.variation}, one.world) for one in doubtful}
        # Times are changed in place, where others would see them.
        self.workshop.run([child for one, child in alone.items() if not one.world.touched])
        self.workshop.run([child for one, child in alone.items() if one.world.touched])
        return [self._compare(one, _alone(one)) if one in alone else result for one, result in found.items()]

    def _possible(self, one: Check) -> Result | None:
        """Why something cannot be checked, or ``None``."""
        if (one.world.moved or one.world.touched) and not self.workshop.setup.toy:
            return Result(one.name, one.level, "skipped", "not checked: the images are your own")
        if one.world.one_core and available_cores() == 1:
            return Result(one.name, one.level, "skipped", "not checked: there is one core only")
        return None

    def _compare(self, one: Check, training: str) -> Result:
        for name in (one.against, training):
            if name in self.workshop.failures:
                cause = f"The training fails: {self.workshop.failures[name]}"
                return Result(one.name, one.level, "problem", "fails", cause)
        if not self._finished(training):
            return Result(one.name, one.level, "problem", "fails", "The training before it in its process failed.")
        found = apart(self._trained(one.against), self._trained(training), one.metrics)
        if found is None:
            return Result(one.name, one.level, "ok", "same")
        hint = (one.unread if found[0].stage == "inputs" else "") or one.hint
        return Result(one.name, one.level, "problem", describe(found[0]), hint or found[1])

    def _finished(self, training: str) -> bool:
        return self.workshop.run_dir(training).with_suffix(".json").exists()

    def _pairs(self) -> list[Result]:
        names = ("pair", "other_pair")
        if all(map(self._finished, names)):
            alone = "hash" if self._finished("hash") else "reference"  # the former had the same surroundings
            return judge_pairs(*map(self._trained, (alone, *names)))
        why = next((self.workshop.failures[name] for name in names if name in self.workshop.failures), "")
        # Not every model can be trained by several processes; that alone is no fault.
        return [Result("2 processes, twice", "R1", "skipped", f"not checked: training fails there ({why})")]

    def _seeds(self) -> list[Result]:
        plain, results = self._trained("reference"), []
        for stream in STREAMS:
            name = f"seed_{stream}"
            if self._finished(name):
                results.append(judge_stream(stream, plain, self._trained(name)))
            else:
                why = self.workshop.failures.get(name, "the training before it in its process failed")
                results.append(Result(f"another seed of `{stream}`", "", "problem", "fails", f"It fails: {why}"))
        if self._finished("seed_augment"):
            results.append(judge_next_epoch(plain, self._trained("seed_augment")))
        return results

    def _levels(self, results: list[Result]) -> dict[str, str]:
        """What the manifest expects, with what was found in place of expectations."""
        levels = dict(self._trained("reference").manifest.levels)
        reason = ""
        for level in ("R1", "R2", "R3"):  # each contains the one before
            own = [one for one in results if one.level == level]
            if broken := next((one for one in own if one.verdict == "problem"), None):
                reason = reason or f"no, because this changes the result: {broken.name}"
            levels[level] = reason or "checked"
        return levels
