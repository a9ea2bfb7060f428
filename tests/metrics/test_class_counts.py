"""Updates without memory for pairs of classes: the states and values of torchmetrics, bit for bit."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric, classification
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

from autotimm.metrics import MetricConfig, build_metrics, default_metrics
from autotimm.metrics.class_counts import linear
from autotimm.metrics.scores import RegionScores
from training import classifier

CLASSES = 7
BASES = (MulticlassStatScores, MulticlassConfusionMatrix)
METRICS = [
    value
    for name in classification.__all__
    if isinstance(value := getattr(classification, name), type) and issubclass(value, BASES)
]


def arguments(metric: type[Any]) -> dict[str, Any]:
    return {"num_classes": CLASSES} | ({"beta": 2.0} if metric is classification.MulticlassFBetaScore else {})


def batches(shape: tuple[int, ...] = (9,)) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets; class 5 is never true, and class 6 never predicted."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        logits = torch.randn(shape[0], CLASSES, *shape[1:], generator=rng)
        logits[:, 6] = -9
        targets = torch.randint(0, 6, shape, generator=rng)
        yield logits, torch.where(targets == 5, 6, targets)


def same_states(a: Any, b: Any) -> None:
    assert a._defaults.keys() == b._defaults.keys()
    for name in a._defaults:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert getattr(a, name).dtype == getattr(b, name).dtype == torch.int64


def averages(metric: type[Any]) -> list[Any]:
    with_average = issubclass(metric, (MulticlassStatScores, classification.MulticlassJaccardIndex))
    return ["macro", "weighted", "none", "micro", None] if with_average else [None]


@pytest.mark.parametrize("ignore", [None, 2, -100])
@pytest.mark.parametrize(
    ("metric", "average"),
    [pytest.param(metric, each, id=f"{metric.__name__} {each}") for metric in METRICS for each in averages(metric)],
)
def test_states_and_values_are_those_of_torchmetrics(metric: type[Any], ignore: int | None, average: Any) -> None:
    given = arguments(metric) | {"ignore_index": ignore}
    given |= {"average": average} if len(averages(metric)) > 1 else {}
    theirs, ours = metric(**given), linear(metric(**given))
    for logits, targets in batches((3, 4, 2)):
        if ignore == -100:
            targets[0] = ignore
        for each in (theirs, ours):
            each.update(logits, targets)
            each.update(logits.argmax(1), targets)
    same_states(theirs, ours)
    assert torch.equal(theirs.compute(), ours.compute())
    assert type(ours).__name__ == metric.__name__
    assert isinstance(ours, metric)


def test_targets_that_a_loss_ignores_do_not_count() -> None:
    """As with deterministic algorithms before, where torchmetrics compares pairs with numbers of pairs."""
    torch.use_deterministic_algorithms(True)
    try:
        for metric in (classification.MulticlassF1Score, classification.MulticlassCohenKappa):
            theirs, ours = (metric(CLASSES, validate_args=False) for _ in range(2))
            ours = linear(ours)
            for logits, targets in batches():
                targets[:3] = -100
                theirs.update(logits, targets)
                ours.update(logits, targets)
            same_states(theirs, ours)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("metric", [classification.MulticlassF1Score, MulticlassConfusionMatrix])
def test_inputs_are_checked_as_by_torchmetrics(metric: type[Any]) -> None:
    for each in (metric(CLASSES), linear(metric(CLASSES))):
        with pytest.raises(ValueError, match="should be equal to number of classes"):
            each.update(torch.zeros(2, CLASSES + 1), torch.zeros(2, dtype=torch.int64))
        # torchmetrics looks at the targets only where predictions are classes, too.
        with pytest.raises(RuntimeError, match="more unique values in `target`"):
            each.update(torch.zeros(9, dtype=torch.int64), torch.arange(9))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), copy.copy])
def test_copies_and_pickles_keep_states_and_update(again: Any) -> None:
    metric = linear(classification.MulticlassF1Score(CLASSES))
    first, *rest = batches()
    metric.update(*first)
    other = again(metric)
    assert type(other) is type(metric)
    for batch in rest:
        value = other(*batch)
        metric.update(*batch)
    assert value.numel() == 1
    same_states(metric, other)
    assert metric.compute() == other.compute()
    other.reset()
    assert other.tp.sum() == 0 != metric.tp.sum()


def test_metrics_that_count_no_pairs_are_left_alone() -> None:
    class Own(classification.MulticlassF1Score):
        def update(self, preds: Tensor, target: Tensor) -> None:
            """Count nothing."""

    for metric in (
        Own(CLASSES),
        classification.MulticlassAccuracy(CLASSES, average="micro"),
        classification.MulticlassAccuracy(CLASSES, top_k=2),
        classification.MulticlassRecall(CLASSES, multidim_average="samplewise"),
        classification.BinaryAccuracy(),
        classification.MulticlassAUROC(CLASSES),
    ):
        assert linear(metric) is metric


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def states(module: nn.Module) -> int:
    """The elements of all states of metrics, and of their defaults."""
    metrics = [metric for metric in module.modules() if isinstance(metric, Metric)]
    values = [(getattr(metric, name), default) for metric in metrics for name, default in metric._defaults.items()]
    return sum(tensor.numel() for pair in values for tensor in pair if isinstance(tensor, Tensor))


def test_states_of_a_classifier_are_linear_in_the_number_of_classes() -> None:
    elements = states(classifier(num_classes=2000).metrics)
    assert 0 < elements <= 2 * len(default_metrics(2000)) * 8 * 2000  # validation and test


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("chosen", ["default", "all"])
def test_no_tensor_is_quadratic_in_the_number_of_classes(chosen: str, deterministic: bool) -> None:
    classes, batch = 2000, 16
    names = [metric.__name__ for metric in METRICS if issubclass(metric, MulticlassStatScores)]
    names.remove("MulticlassFBetaScore")
    names.remove("MulticlassStatScores")  # of several values
    configs = [MetricConfig(name, metric_class=name, params={"num_classes": classes}) for name in names]
    configs = default_metrics(classes) if chosen == "default" else configs
    torch.use_deterministic_algorithms(deterministic)
    try:
        with Largest() as largest:
            metrics = build_metrics(configs, "val")
            for metric in metrics.values():
                metric.update(torch.randn(batch, classes), torch.randint(classes, (batch,)))
                metric.compute()
    finally:
        torch.use_deterministic_algorithms(False)
    assert states(metrics) <= len(configs) * 8 * classes
    assert largest.elements <= 2 * batch * classes


def test_regions_take_no_memory_for_pairs_of_pixels_and_classes() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with Largest() as largest:
            RegionScores(100).update(torch.randn(2, 100, 32, 32), torch.randint(100, (2, 32, 32)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert largest.elements == 2 * 100 * 32 * 32
