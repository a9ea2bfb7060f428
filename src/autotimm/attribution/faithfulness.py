"""How far a map can be believed: deletion and insertion scores, and the check with shuffled weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import nan
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from autotimm.attribution.maps import mean_color
from autotimm.repro.streams import generator
from autotimm.types import ExplainedScore

__all__ = ["Faithfulness", "ShuffledWeights", "measured_faithfulness"]

_STEPS = 16
_AT_ONCE = 16


class Faithfulness(NamedTuple):
    """What was measured of the map of one image.

    Attributes:
        deletion: Mean score, in [0, 1], while the pixels are replaced by the mean color, those with the largest values
            first; small for a good map.
        insertion: Mean score while the pixels return into a blurred image in the same order; large for a good map.
        random_deletion: The same as ``deletion`` in a random order.
        random_insertion: The same as ``insertion`` in a random order.
        shuffled_head: Rank correlation of the map with that of the network whose head has shuffled weights, in
            [-1, 1]; NaN if one of the maps is constant.
        shuffled_weights: The same with all weights shuffled; near 0 for a map that shows what was learned.
    """

    deletion: float = nan
    insertion: float = nan
    random_deletion: float = nan
    random_insertion: float = nan
    shuffled_head: float = nan
    shuffled_weights: float = nan


def measured_faithfulness(
    network: nn.Module,
    shuffled: ShuffledWeights,
    score: ExplainedScore,
    image: Tensor,
    values: Tensor,
    visible: Tensor,
    seed: int,
    id: str,
    again: Callable[[], Tensor],
) -> Faithfulness:
    """Measure a map.

    Args:
        network: The network.
        shuffled: Its weights, shuffled.
        score: What was explained.
        image: The input, floats in [0, 1], (1, C, H, W).
        values: The map, (H, W).
        visible: Which pixels of the input the image covers, bool (H, W); the others are left alone.
        seed: Root seed of the stream ``(eval, explain)``.
        id: The id of the image, which decides the random order.
        again: Computes the map anew, with the weights that the network then has.

    Source:
        Petsiuk, Das and Saenko, "RISE", BMVC 2018 (deletion, insertion); Adebayo et al., "Sanity checks for saliency
        maps", NeurIPS 2018 (shuffled weights).
    """
    places = visible.flatten().nonzero()[:, 0]
    random = torch.randperm(len(places), generator=generator(seed, "eval", "explain", "order", id)).to(places.device)
    # A stable sort of pixels in a random order: equal values, such as those of a constant map, are in that order.
    by_value = random[values.flatten()[places][random].argsort(descending=True, stable=True)]
    gray, blurred = mean_color(network, image), F.gaussian_blur(image, [11, 11], [5.0, 5.0])
    curves = [
        _mean_score(score, start, end, places[order])
        for order in (by_value, random)
        for start, end in ((image, gray), (blurred, image))
    ]
    correlations = []
    for weights in (shuffled.head(), shuffled.all()):
        with weights:
            correlations.append(_rank_correlation(values[visible], again()[visible]))
    return Faithfulness(*curves, *correlations)


@torch.no_grad()
def _mean_score(score: ExplainedScore, start: Tensor, end: Tensor, order: Tensor) -> float:
    """The mean of the score while pixels of one image take the place of those of another, by the trapezoid rule."""
    steps = []
    for step in range(_STEPS + 1):
        mixed = start.flatten(2).clone()
        taken = order[: round(len(order) * step / _STEPS)]
        mixed[..., taken] = end.flatten(2)[..., taken]
        steps.append(mixed.reshape(start.shape))
    scores = torch.cat(
        [score.probability(torch.cat(steps[at : at + _AT_ONCE])) for at in range(0, len(steps), _AT_ONCE)]
    )
    return float(np.trapezoid(scores.double().cpu().numpy(), dx=1 / _STEPS))


def _rank_correlation(values: Tensor, others: Tensor) -> float:
    a, b = values.double().cpu().numpy(), others.double().cpu().numpy()
    if not (np.isfinite(b).all() and np.ptp(a) > 0 and np.ptp(b) > 0):
        return nan
    return float(spearmanr(a, b).statistic)


class ShuffledWeights:
    """A network with its weights in a random order for a while: each tensor keeps its numbers, and loses what it knew.

    Args:
        network: The network.
        head: The part of it that turns features into predictions.
        seed: Root seed of the stream ``(eval, explain, weights)``.
    """

    def __init__(self, network: nn.Module, head: nn.Module, seed: int) -> None:
        self._network, self._head, self._seed = network, head, seed
        self._shuffled: dict[str, Tensor] = {}

    @contextmanager
    def all(self) -> Iterator[None]:
        """All weights are shuffled in this block."""
        with self._exchanged(self._network):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """The weights of the head are shuffled in this block."""
        with self._exchanged(self._head):
            yield

    @contextmanager
    def _exchanged(self, part: nn.Module) -> Iterator[None]:
        within = {id(parameter) for parameter in part.parameters()}
        named = {name: each for name, each in self._network.named_parameters() if id(each) in within}
        own = {name: parameter.detach().clone() for name, parameter in named.items()}
        try:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(self._of(name, parameter))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(own[name])

    def _of(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self._shuffled:
            order = torch.randperm(
                parameter.numel(), generator=generator(self._seed, "eval", "explain", "weights", name)
            )
            self._shuffled[name] = parameter.flatten()[order.to(parameter.device)].reshape(parameter.shape).clone()
        return self._shuffled[name]
