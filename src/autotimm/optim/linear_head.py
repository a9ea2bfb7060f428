"""A linear classifier of fixed features: convex, so that there is one solution, which no order of the data changes.

It is computed in ``float64`` on the CPU, from zero, and its regularization is chosen by cross-validation with folds
that are keyed by sample id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from autotimm.repro.streams import key

__all__ = ["FOLDS", "PENALTIES", "LinearHead", "assign_folds", "fit_linear_head"]

FOLDS = 5
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(1, -7, -1))
"""The penalties that are tried, about 3 to 0.001, from the smoothest head on."""

_MOST_SAMPLES = 2_000  # in the cross-validation; more would take longer than they make the choice better
_PATIENCE = 2  # penalties in a row that are worse than the best so far, after which no smaller one is tried
_STEPS = 50  # of L-BFGS for each penalty


class LinearHead(NamedTuple):
    """A linear classifier of features.

    Attributes:
        weight: (C, D), ``float64``.
        bias: (C,), ``float64``.
        penalty: The factor of the regularization that was chosen.
        losses: The mean loss of held-out samples by penalty, for those that were tried.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    losses: dict[float, float]


def assign_folds(ids: Sequence[str], strata: Sequence[int], seed: int, folds: int = FOLDS) -> list[int]:
    """Assign each sample to a fold, by its id: the order of the samples does not matter.

    Args:
        ids: One id per sample.
        strata: The class of each sample; every fold gets about as many of each.
        seed: Root seed of the stream ``split``.
        folds: The number of folds.

    Returns:
        The number of the fold of each sample, from 0.

    Example:
        >>> assign_folds(["a", "b", "c", "d"], [0, 0, 1, 1], seed=42, folds=2)
        [1, 0, 1, 0]
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index in _shuffled(ids, seed):
        members[strata[index]].append(index)
    assigned = [0] * len(ids)
    for place, index in enumerate(index for stratum in sorted(members) for index in members[stratum]):
        assigned[index] = place % folds
    return assigned


def _shuffled(ids: Sequence[str], seed: int) -> list[int]:
    """The samples in an order that depends on their ids alone."""
    return sorted(range(len(ids)), key=lambda index: (key(seed, "split", "fold", ids[index]), ids[index]))


def fit_linear_head(
    features: Tensor, targets: Tensor, ids: Sequence[str], strata: Sequence[int], seed: int, *, num_classes: int
) -> LinearHead:
    r"""Fit a linear classifier with an L2 penalty that cross-validation chooses.

    For one class per sample it is the multinomial logistic regression, for several labels one logistic regression per
    label. Features are centered and scaled to a variance of 1 in the mean over all of them; what is minimized is

    .. math:: \frac{1}{N} \sum_i \text{loss}(W x_i + b, y_i) + \frac{\lambda}{2} \lVert W \rVert^2

    The penalty is that with the least loss over five folds. Where there are more than 2,000 samples, 2,000 of them
    choose it; all of them fit the head.

    Args:
        features: (N, D).
        targets: Class indices (N,), or zeros and ones (N, C).
        ids: The N ids.
        strata: The class of each sample, for the folds.
        seed: Root seed of the stream ``split``.
        num_classes: C.
    """
    centered, shift, scale = _standardized(features.double())
    chosen = sorted(_shuffled(ids, seed)[:_MOST_SAMPLES])  # in their own order, which is that of the table
    problem = _Problem.of(centered[chosen], targets[chosen], num_classes)
    folds = torch.tensor(assign_folds([ids[i] for i in chosen], [strata[i] for i in chosen], seed))
    losses = _held_out_losses(problem, folds)
    penalty = min(losses, key=lambda tried: (losses[tried], -tried))
    whole = _Problem.of(centered, targets, num_classes)
    solution = None
    for larger in (each for each in PENALTIES if each >= penalty):  # the path that the folds went
        solution = whole.solve(larger, solution)
    assert solution is not None
    weight = whole.in_features(solution[:-1]).T * scale
    return LinearHead(weight, solution[-1] - weight @ shift, penalty, losses)


def _standardized(features: Tensor) -> tuple[Tensor, Tensor, float]:
    """Features with a mean of 0 each and a mean variance of 1, and the shift and the scale that make them so.

    One scale for all: to give each a variance of 1 would make the most of those that hardly vary.
    """
    shift = features.mean(dim=0)
    centered = features - shift
    variance = float(centered.square().mean())
    scale = variance**-0.5 if variance > 0 else 1.0
    return centered * scale, shift, scale


class _Problem(NamedTuple):
    """Samples to classify, in the coordinates of the space that they span.

    Attributes:
        points: (N, R), with R the smaller of N and D.
        basis: (R, D), orthonormal rows; ``None`` where the points are the features themselves.
        targets: Class indices (N,), or zeros and ones (N, C).
        num_classes: C.
    """

    points: Tensor
    basis: Tensor | None
    targets: Tensor
    num_classes: int

    @classmethod
    def of(cls, features: Tensor, targets: Tensor, num_classes: int) -> _Problem:
        """Reduce features to as many numbers as there are samples: the solution lies in the space that they span."""
        if len(features) >= features.shape[1]:
            return cls(features, None, targets, num_classes)
        basis, points = torch.linalg.qr(features.T)
        return cls(points.T.contiguous(), basis.T, targets, num_classes)

    def only(self, mask: Tensor) -> _Problem:
        """The samples for which a mask is true."""
        return self._replace(points=self.points[mask], targets=self.targets[mask])

    def in_features(self, weight: Tensor) -> Tensor:
        """Weights (R, C) as weights of the features, (D, C)."""
        return weight if self.basis is None else self.basis.T @ weight

    def loss(self, solution: Tensor) -> Tensor:
        """The mean loss of the samples; over labels it is summed, as over independent problems."""
        logits = self.points @ solution[:-1] + solution[-1]
        if self.targets.ndim == 1:
            return F.cross_entropy(logits, self.targets)
        losses = F.binary_cross_entropy_with_logits(logits, self.targets.double(), reduction="none")
        return losses.sum(dim=1).mean()

    def solve(self, penalty: float, start: Tensor | None = None) -> Tensor:
        """The weights, and below them the bias: (R + 1, C)."""
        shape = (self.points.shape[1] + 1, self.num_classes)
        solution = torch.zeros(shape, dtype=torch.float64) if start is None else start.clone()
        solution.requires_grad_()
        solver = torch.optim.LBFGS(
            [solution], max_iter=_STEPS, tolerance_grad=1e-4, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def evaluate() -> Tensor:
            solver.zero_grad()
            objective = self.loss(solution) + penalty / 2 * solution[:-1].square().sum()
            objective.backward()
            return objective

        with torch.enable_grad():
            solver.step(evaluate)
        return solution.detach()


def _held_out_losses(problem: _Problem, folds: Tensor) -> dict[float, float]:
    """The mean loss of held-out samples by penalty, from the largest on until it rises."""
    sides = [(problem.only(folds != fold), problem.only(folds == fold)) for fold in folds.unique().tolist()]
    sides = [(seen, held) for seen, held in sides if len(seen.points)]
    solutions: list[Tensor | None] = [None] * len(sides)
    losses: dict[float, float] = {}
    for penalty in PENALTIES:
        solutions = [seen.solve(penalty, start) for (seen, _), start in zip(sides, solutions, strict=True)]
        held = [
            (float(side.loss(solution)), len(side.points))
            for (_, side), solution in zip(sides, solutions, strict=True)
            if solution is not None
        ]
        losses[penalty] = sum(loss * count for loss, count in held) / max(sum(count for _, count in held), 1)
        tried = list(losses.values())
        if len(tried) > _PATIENCE and min(tried[-_PATIENCE:]) > min(tried):
            break
    return losses
