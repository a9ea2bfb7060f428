"""The numbers of a study: the metrics of its runs, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotimm.errors import DataError
from autotimm.repro.manifest import Manifest
from autotimm.run import Run
from autotimm.studies.plan import Plan, Trial
from autotimm.studies.statistics import Paired, Share, Summary, compare_pairs, least_p, share_variance, summarize

__all__ = ["Results"]


@dataclass(frozen=True)
class Results:
    """What came out.

    Attributes:
        plan: The study's runs.
        metrics: The metrics of each run, by its name: those of its best epoch on validation data, and those on test
            data if there is any; without either those of training.
        summaries: By configuration (``a``, ``b``) and metric, how it scatters.
        paired: By metric, what B does differently.
        shares: By metric and stream, how much of the variance it makes alone.
        splits: How many different splits the runs were measured on.
    """

    plan: Plan
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)
    paired: dict[str, Paired] = field(default_factory=dict)
    shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    splits: int = 1

    @classmethod
    def read(cls, plan: Plan) -> Results:
        """Read the results of runs that are all finished.

        Raises:
            DataError: If they were not measured with the same metrics.
        """
        metrics = {trial.name: _measured(trial) for trial in plan.trials}
        named = {tuple(sorted(one)) for one in metrics.values()}
        if len(named) > 1:
            raise DataError(f"The runs of {plan.folder} must have the same metrics. They have not. Use one list.")
        found = cls(plan, metrics)
        arms = {arm: {name: summarize(found.values(arm, name)) for name in found.names} for arm in found.arms}
        paired, shares = {}, {}
        for name in found.names:
            if "b" in arms:
                paired[name] = compare_pairs(found.values("a", name), found.values("b", name))
            if plan.single:
                alone = {stream: found.values("a", name, stream) for stream in plan.single}
                shares[name] = share_variance(alone, found.values("a", name))
        return cls(plan, metrics, arms, paired, shares, _splits(plan))

    @property
    def arms(self) -> list[str]:
        """``a``, and ``b`` if there are two configurations."""
        return [*dict.fromkeys(arm for arm, _ in self.plan.groups)]

    @property
    def names(self) -> list[str]:
        """The names of the metrics: test before validation, and losses last."""
        found = next(iter(self.metrics.values()), {})
        return sorted(found, key=lambda name: (not name.startswith("test/"), name.endswith("loss"), name))

    def values(self, arm: str, name: str, vary: str = "") -> list[float]:
        """The values of a metric, one per seed in the order of the seeds."""
        return [self.metrics[trial.name][name] for trial in self.plan.groups[arm, vary or self.plan.whole]]

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the numbers rightly."""
        n = len(self.plan.seeds)
        lines = ["The interval is that of the mean; single runs scatter as far as minimum and maximum say."]
        if self.splits > 1:
            lines.append("The split varies with the seed: each run was measured on images of its own.")
        if self.paired:
            lines.append(f"p is that of an exact permutation test, which with {n} seeds gives {least_p(n):.2g} at best."
                         if all(one.exact for one in self.paired.values()) else
                         "p is that of a permutation test of 100,000 choices of signs.")  # fmt: skip
            lines.append("Seeds needed: to see such a difference four times out of five at p = 0.05, if it is real.")
        if self.shares:
            lines.append(f"With {n} seeds per stream a share is a rough guess, as its interval says. Shares need not "
                         "sum to 100 %. Another order also pairs images with other augmentations.")  # fmt: skip
        return lines


def _splits(plan: Plan) -> int:
    trials = plan.groups["a", plan.whole]
    return len({Manifest.load(trial.folder / "manifest.json").inputs["splits"] for trial in trials})


def _measured(trial: Trial) -> dict[str, float]:
    found = Run(trial.folder).metrics
    kept = {name: float(value) for name, value in found.items() if name.startswith(("val/", "test/"))}
    return kept or {name: float(value) for name, value in found.items()}
