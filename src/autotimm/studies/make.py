"""Making a study: its runs, one after the other or side by side, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotimm.config import FitConfig, read_yaml
from autotimm.config.kinds import Kind, Whole, Words
from autotimm.errors import DataError, RunError, UsageError, missing_extra, require_choice, sentence
from autotimm.repro.manifest import Manifest
from autotimm.run import Run
from autotimm.studies.cluster import require_ray, run_on_ray
from autotimm.studies.local import run_local
from autotimm.studies.one import finished
from autotimm.studies.plan import VARIED, Plan, keep_config, make_plan
from autotimm.studies.plot import draw
from autotimm.studies.report import as_text, write_csv, write_json
from autotimm.studies.results import Results
from autotimm.train.progress import say

__all__ = ["LAUNCHERS", "Study", "compared_with", "study", "study_configs"]

LAUNCHERS = ("local", "ray")


@dataclass(frozen=True)
class Study:
    """A finished study. Printed, it is the table of results.

    Attributes:
        path: Its folder, with ``study.json``, ``study.csv``, ``plot.png`` and ``runs/``.
        results: The numbers: ``summaries``, ``paired`` and ``shares``, see
            :class:`autotimm.studies.results.Results`.
    """

    path: Path
    results: Results

    def __str__(self) -> str:
        return as_text(self.results)

    @property
    def runs(self) -> list[Run]:
        """Every run, in the order in which they were planned."""
        return [Run(trial.folder) for trial in self.results.plan.trials]


def study(
    path: str | Path | None = None,
    seeds: int | str | list[int] | tuple[int, ...] = 5,
    *,
    vary: str | list[str] | tuple[str, ...] = "all",
    vs: str | Path | Mapping[str, object] | None = None,
    decompose: bool = False,
    jobs: int = 1,
    launcher: str = "local",
    out: str | Path = "studies",
    name: str | None = None,
    **options: Any,
) -> Study:
    """Train with several seeds, and say how far the results scatter.

    A study that was stopped goes on when the same call is made again; what is finished is not trained again.

    Args:
        path: A folder of images, as for :func:`autotimm.fit`.
        seeds: How many, counted from the configuration's own on, or which.
        vary: What the seeds are given to: ``"all"``, or some of ``split``, ``init``, ``order``, ``augment``, ``step``.
            All other streams keep the configuration's ``seed``.
        vs: A YAML file, or options, with what is different in a configuration B, to compare with the same seeds.
        decompose: Vary each stream alone too, to find its share of the variance.
        jobs: Runs at a time on this machine; they share its cores.
        launcher: ``"local"`` or ``"ray"``.
        out: Where studies are.
        name: The study's folder there; ``None`` names it after data and configuration.
        options: Any field of :class:`autotimm.FitConfig`.

    Raises:
        UsageError: If an argument is wrong.
        RunError: If a run fails.
        DataError: If the data or the code were changed between runs.
    """
    a = FitConfig.from_options(path, options)
    b = None if vs is None else compared_with(a, vs)
    return study_configs(
        a, b, seeds=seeds, vary=vary, decompose=decompose, jobs=jobs, launcher=launcher, out=out, name=name
    )


def compared_with(a: FitConfig, vs: str | Path | Mapping[str, object]) -> FitConfig:
    """The configuration B: what ``vs`` says, and for the rest what A says.

    Raises:
        UsageError: If the file or an option is wrong.
    """
    if isinstance(vs, Mapping):
        source, values = "argument", dict(vs)
    else:
        source = f"file {vs}"
        values, nested = read_yaml(str(vs))
        if nested:
            raise UsageError(f"A study needs options of fit. {vs} names classes instead. Write lines like `lr: 0.01`.")
    checked = FitConfig.layered([("default", {"path": "."}), (source, values)])
    own = {key: getattr(checked, key) for key in (key.replace("-", "_") for key in values)}
    return a.resolved({**own, "seed": a.seed, "stream_seeds": a.stream_seeds}, source)


def study_configs(
    a: FitConfig, b: FitConfig | None, *, seeds: object, vary: object, decompose: bool, jobs: int,
    launcher: str, out: str | Path, name: str | None,
) -> Study:  # fmt: skip
    """Make a study of configurations; see :func:`study`."""
    require_choice("launcher", "a study", launcher, LAUNCHERS)
    if launcher == "ray":
        require_ray()
    jobs, words = _read("jobs", Whole(1), jobs), _read("vary", Words(VARIED), vary)
    plan = make_plan(a, b, seeds=seeds, vary=words, decompose=decompose, jobs=jobs, out=out, name=name)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / ".lock", timeout=0):
            return _make(plan, jobs, launcher)
    except Timeout:
        raise RunError(f"The study {plan.folder} is being made by another process. Wait until it is done.") from None


def _read(name: str, kind: Kind, value: object) -> Any:
    try:
        return kind.read(value)
    except (TypeError, ValueError):
        cure = kind.suggest(value) or "Leave it out."
        raise UsageError(sentence(name, "a study", kind.must, value, cure)) from None


def _make(plan: Plan, jobs: int, launcher: str) -> Study:
    files = {trial.name: keep_config(trial, plan.folder) for trial in plan.trials}
    write_json(plan.folder / "study.json", Results(plan))  # the threads are fixed from now on
    trials = {trial.name: trial for trial in plan.trials if not finished(trial.folder)}
    waiting = {name: files[name] for name in trials}
    done = len(files) - len(waiting)
    say(f"study: {plan.folder}, {len(files)} runs{f', {done} of them are finished' if done else ''}")
    logs = plan.folder / "logs"
    making = run_local(waiting, jobs, logs) if launcher == "local" else run_on_ray(trials, waiting, logs)
    for name in making if waiting else ():
        done += 1
        say(f"  {done}/{len(files)}  {name}  {_shown(Run(trials[name].folder).metrics)}")
    _check_inputs(plan)
    results = Results.read(plan)
    write_json(plan.folder / "study.json", results)
    write_csv(plan.folder / "study.csv", results)
    if not draw(plan.folder / "plot.png", results):
        say(str(missing_extra("The picture plot.png", "plot")))
    return Study(plan.folder, results)


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if not name.startswith("train/"))


def _check_inputs(plan: Plan) -> None:
    """Refuse to compare runs that were made from other data or by other code."""
    for what in ("data", "transforms", "code"):
        for arm in ("a", "b"):
            found = {str(inputs[what]): name for name, inputs in _inputs(plan, arm)}
            if len(found) > 1:
                first, second = sorted(found.values())[:2]
                raise DataError(f"The runs of a study must be made from the same {what}. {first} and {second} of "
                                f"{plan.folder} are not. Give another `name` to make all of them again.")  # fmt: skip


def _inputs(plan: Plan, arm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for (one, _), trials in plan.groups.items():
        for trial in trials if one == arm else ():
            yield trial.name, Manifest.load(trial.folder / "manifest.json").inputs
