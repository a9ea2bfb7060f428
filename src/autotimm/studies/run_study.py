"""Run a study: train all of its runs, and collect the results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotimm.config import FitConfig, options, read_yaml
from autotimm.config.value_types import Kind, Whole, Words
from autotimm.constants import LAUNCHERS
from autotimm.errors import (
    AutotimmError,
    DataError,
    RunError,
    UsageError,
    missing_extra,
    require,
    require_choice,
    sentence,
)  # fmt: skip
from autotimm.records.atomic import sweep
from autotimm.records.manifest import Manifest
from autotimm.runs.factory import settle_data
from autotimm.runs.names_of_file import require_known_names
from autotimm.runs.ray_cluster import require_ray
from autotimm.runs.run import Run
from autotimm.studies.execution import run_local, run_on_ray
from autotimm.studies.study_report import Results, as_data, as_text, draw, write_csv, write_json
from autotimm.studies.trials import VARIED, Plan, finished, keep_config, make_plan
from autotimm.train.machine_limits import machine_problem
from autotimm.train.progress import say

__all__ = ["Study", "compared_with", "study", "study_configs"]


@dataclass(frozen=True)
class Study:
    """A finished study. Printed, it is a table of the results.

    Attributes:
        path: Its folder, with ``study.json``, ``study.csv``, ``plot.png`` and ``runs/``.
        results: The numbers: ``summaries``, ``paired`` and ``shares``, see
            :class:`autotimm.studies.study_report.Results`.
    """

    path: Path
    results: Results

    def __str__(self) -> str:
        return as_text(self.results)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in ``study.json``."""
        return as_data(self.results)

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order of the plan."""
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
    """Train with several seeds, and report the spread of the results.

    To resume an interrupted study, repeat the call; finished runs are not trained again.

    Args:
        path: A folder of images, as for :func:`autotimm.fit`.
        seeds: The number of seeds, counted from the configuration's ``seed``, or the seeds themselves.
        vary: The random streams that get the seeds: ``"all"``, or some of ``split``, ``init``, ``order``, ``augment``,
            ``step``. The others keep the configuration's ``seed``.
        vs: A configuration B to compare with on the same seeds: the options that differ, or a YAML file of them.
        decompose: Also vary each stream alone, to find its share of the variance.
        jobs: Number of parallel runs on this machine; they share its cores.
        launcher: ``"local"`` or ``"ray"``.
        out: Parent folder of studies.
        name: Name of the study's folder; ``None`` names it after data and configuration.
        options: Any field of :class:`autotimm.FitConfig`.

    Raises:
        UsageError: If an argument is wrong.
        RunError: If a run fails.
        DataError: If the data or the code changed between runs.
    """
    a = FitConfig.from_options(path, options)
    b = None if vs is None else compared_with(a, vs)
    return study_configs(
        a, b, seeds=seeds, vary=vary, decompose=decompose, jobs=jobs, launcher=launcher, out=out, name=name
    )


def compared_with(a: FitConfig, vs: str | Path | Mapping[str, object]) -> FitConfig:
    """The configuration B: A with the options of ``vs``.

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
    if not isinstance(vs, Mapping):
        require_known_names(str(vs), checked)
    own = {name: getattr(checked, name) for name, said in checked.sources.items() if said != "default"}
    source = next((said for said in checked.sources.values() if said.startswith("record ")), source)
    return a.resolved({**own, "seed": a.seed, "stream_seeds": a.stream_seeds}, source)


def study_configs(
    a: FitConfig, b: FitConfig | None, *, seeds: object, vary: object, decompose: bool, jobs: int,
    launcher: str, out: str | Path, name: str | None,
) -> Study:  # fmt: skip
    """Run a study of configurations; see :func:`study`."""
    require_choice("launcher", "a study", launcher, LAUNCHERS)
    if launcher == "ray":
        require_ray()
    for config in filter(None, (a, b)):
        if config.folds is not None and config.fold is None:
            cure = "Vary the stream `split`, or study one `fold`."
            raise UsageError(sentence("folds", "a study", "left out, since each of its runs is one training",
                                      config.folds, cure))  # fmt: skip
    jobs, streams = _read("jobs", Whole(1), jobs), _read("vary", Words(VARIED), vary)
    if launcher == "local":
        _require_machine(jobs, a, b)
    plan = make_plan(a, b, seeds=seeds, vary=streams, decompose=decompose, jobs=jobs, out=out, name=name)
    for config in filter(None, (a, b)):
        settle_data(config)[1].setup("fit")  # data that no run could use leave no study
    made = [folder for folder in (plan.folder, *plan.folder.parents) if not folder.exists()]
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(plan.folder / ".lock", timeout=0):
            sweep(plan.folder)
            return _run(plan, jobs, launcher)
    except Timeout:
        raise RunError(f"Another process is running the study {plan.folder}. Wait until it has finished.") from None
    except OSError as error:
        raise RunError(
            f"The study {plan.folder} must be writable. It is not ({error.strerror}). Give another `out`."
        ) from error
    except AutotimmError as error:
        if plan.folder in made and _is_unused(plan, error):
            shutil.rmtree(plan.folder, ignore_errors=True)
            for folder in made[1:]:
                with suppress(OSError):  # not empty
                    folder.rmdir()
        raise


def _require_machine(jobs: int, *configs: FitConfig | None) -> None:
    """Refuse more processes or threads than this machine can start, before a study creates its folder."""
    cores = os.cpu_count() or 1
    must = f"at most {max(cores, 2)} on this machine, which has {cores} CPU cores"
    require(jobs <= max(cores, 2), "jobs", "a study", must, jobs, "Each is a training of its own: give less.")
    for config in configs:
        if config is None:
            continue
        if problem := machine_problem(config.threads, config.devices, config.accelerator, config.num_workers):
            raise UsageError(f"{problem} Give less.")


def _read(name: str, kind: Kind, value: object) -> Any:
    try:
        return kind.read(value)
    except (TypeError, ValueError):
        cure = kind.suggest(value) or "Leave it out."
        raise UsageError(sentence(name, "a study", kind.must, value, cure)) from None


def _run(plan: Plan, jobs: int, launcher: str) -> Study:
    files = {trial.name: keep_config(trial, plan.folder) for trial in plan.trials}
    write_json(plan.folder / "study.json", Results(plan))  # records the number of threads
    trials = {trial.name: trial for trial in plan.trials if not finished(trial.folder)}
    remaining = {name: files[name] for name in trials}
    done = len(files) - len(remaining)
    say(f"study: {plan.folder}, {len(files)} runs{f', {done} of them finished' if done else ''}")
    logs = plan.folder / "logs"
    completed = run_local(remaining, jobs, logs) if launcher == "local" else run_on_ray(trials, remaining, logs)
    try:
        for name in completed if remaining else ():
            done += 1
            say(f"  {done}/{len(files)}  {name}  {_metrics_text(Run(trials[name].folder).metrics)}")
    except AutotimmError as error:
        if _is_unused(plan, error):
            raise
        raise type(error)(
            f"{error} Its output is in {logs}. Repeat the command to continue the study once the cause is fixed."
        ) from None
    _check_inputs(plan)
    results = Results.read(plan)
    write_json(plan.folder / "study.json", results)
    write_csv(plan.folder / "study.csv", results)
    if not draw(plan.folder / "plot.png", results):
        say(str(missing_extra("The picture plot.png", "plot")))
    return Study(plan.folder, results)


def _is_unused(plan: Plan, error: AutotimmError) -> bool:
    """Whether no run of a study has begun, for a reason that no run could avoid: the folder is of no use."""
    return not isinstance(error, RunError) and not [*plan.folder.glob("runs/*")]


def _metrics_text(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if not name.startswith("train/"))


def _check_inputs(plan: Plan) -> None:
    """Refuse to compare runs with other data or other code, unless B is a configuration of other data."""
    apart, together = ("a", "b"), ("ab",)
    other_data = any(options()[name].recorded == "data" for name in plan.changed)
    for what, groups in (("data", apart if other_data else together), ("transforms", apart), ("code", together)):
        for arms in groups:
            runs: dict[str, str] = {}  # the first one of each value
            for name, inputs in _inputs(plan, arms):
                runs.setdefault(str(inputs[what]), name)
            if len(runs) > 1:
                first, second = [*runs.values()][:2]
                raise DataError(f"The runs of a study must have the same {what}. {first} and {second} of "
                                f"{plan.folder} differ. Give another `name` to train all of them again.")  # fmt: skip


def _inputs(plan: Plan, arms: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for (group_arm, _), trials in plan.groups.items():
        for trial in trials if group_arm in arms else ():
            yield trial.name, Manifest.load(trial.folder / "manifest.json").inputs
