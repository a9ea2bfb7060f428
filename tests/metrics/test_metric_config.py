import io

import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics import Metric

from autotimm.errors import UsageError
from autotimm.metrics import (
    MetricConfig,
    Monitor,
    build_metrics,
    choose_monitor,
    default_metrics,
    default_monitor,
    named_metric,
)
from autotimm.types import Stage

GUIDE = {
    "name": "accuracy",
    "backend": "torchmetrics",
    "metric_class": "Accuracy",
    "params": {"task": "multiclass", "num_classes": 10},
    "stages": ["val"],
}


class Count(Metric):
    """Counts samples."""

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", torch.tensor(0))

    def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        self.seen += len(predictions)

    def compute(self) -> torch.Tensor:
        return self.seen


def measured(configs: list[MetricConfig], predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    metrics = build_metrics(configs, "val")
    for part, truth in zip(predictions.split(7), targets.split(7), strict=True):
        for metric in metrics.values():
            metric.update(part, truth)
    return {name: metric.compute().item() for name, metric in metrics.items()}


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_single_label_metrics_agree_with_scikit_learn(classes: int) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=draw)
    targets = torch.randint(0, classes, (50,), generator=draw)
    found = measured(default_metrics(classes), logits, targets)
    predicted = logits.argmax(1)
    wanted = {
        "accuracy": sklearn.accuracy_score(targets, predicted),
        "f1": sklearn.f1_score(targets, predicted, average="macro"),
    }
    if classes > 5:
        wanted["top5_accuracy"] = sklearn.top_k_accuracy_score(targets, logits, k=5, labels=range(classes))
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_multi_label_metrics_agree_with_scikit_learn(threshold: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=draw)
    targets = torch.randint(0, 2, (60, 4), generator=draw).float()
    found = measured(default_metrics(4, multi_label=True, threshold=threshold), logits, targets.long())
    probabilities = logits.sigmoid()
    wanted = {
        "mAP": sklearn.average_precision_score(targets, probabilities, average="macro"),
        "f1": sklearn.f1_score(targets, probabilities > threshold, average="macro"),
    }
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_class_that_does_not_occur_does_not_count() -> None:
    logits = torch.eye(4)[[0, 1, 1, 0]] + 0.1 * torch.eye(4)[[1, 0, 0, 1]]
    targets = torch.tensor([0, 1, 0, 0])
    found = measured(default_metrics(4), logits, targets)
    assert found["f1"] == pytest.approx(sklearn.f1_score(targets, logits.argmax(1), average="macro"))


def test_the_guide_s_metric_is_what_it_says() -> None:
    config = MetricConfig(**GUIDE)
    assert (config.log_on_step, config.log_on_epoch, config.prog_bar) == (False, True, False)
    assert list(build_metrics([config], Stage.VAL)) == ["accuracy"]
    assert [len(build_metrics([config], stage)) for stage in (Stage.TRAIN, "test", Stage.PREDICT)] == [0, 0, 0]
    assert choose_monitor([config]) == Monitor("val/accuracy", "max")


def test_it_is_plain_data_in_a_checkpoint() -> None:
    config = MetricConfig(**GUIDE)
    file = io.BytesIO()
    torch.save([config.to_dict()], file)
    file.seek(0)
    (loaded,) = torch.load(file, weights_only=True)
    assert loaded == {**GUIDE, "log_on_step": False, "log_on_epoch": True, "prog_bar": False}
    assert MetricConfig.of(loaded) == MetricConfig.of(config) == config


def test_a_stage_may_be_a_word_a_stage_or_several() -> None:
    assert MetricConfig(**{**GUIDE, "stages": "val"}).stages == ("val",)
    assert MetricConfig(**{**GUIDE, "stages": (Stage.VAL, "test")}).stages == ("val", "test")


def test_a_metric_of_ones_own_is_found_by_its_path() -> None:
    path = f"{Count.__module__}.Count"
    config = MetricConfig("count", backend="custom", metric_class=path, stages=["val"])
    assert measured([config], torch.zeros(9, 2), torch.zeros(9)) == {"count": 9}
    assert choose_monitor([config]) == Monitor("val/loss", "min")
    with pytest.raises(UsageError, match=r"`monitor` of a task must be one of val/loss, train/loss. Got 'val/count'"):
        choose_monitor([config], "val/count")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, r"`name` of a MetricConfig must be letters, digits"),
        ({"name": ""}, r"`name` of a MetricConfig"),
        ({"name": "keys"}, r"not a word that is taken. Got 'keys'"),
        ({"name": "loss"}, r"not a word that is taken. Got 'loss'"),
        ({"name": 3}, r"`name` of a MetricConfig"),
        ({"backend": "torchmetric"}, r"`backend` of the MetricConfig 'accuracy' .* Did you mean 'torchmetrics'"),
        (
            {"metric_class": "Acuracy"},
            r"must be a metric of torchmetrics. Got 'Acuracy' instead. Did you mean 'Accuracy",
        ),
        ({"metric_class": "zzz"}, r"Use backend='custom'"),
        ({"metric_class": "torch.nn.Linear"}, r"must be the import path of a subclass of torchmetrics.Metric"),
        ({"backend": "custom", "metric_class": "no.such.Metric"}, r"must be the import path of a subclass"),
        ({"backend": "custom", "metric_class": "Accuracy"}, r"must be the import path of a subclass"),
        ({"metric_class": 3}, r"`metric_class` .* must be a name. Got 3"),
        ({"params": [1]}, r"`params` .* must be a dictionary of plain data"),
        ({"params": {"num_classes": torch.tensor(3)}}, r"`params` .* must be a dictionary of plain data"),
        ({"params": {"task": "multiclass"}}, r"must be what torchmetrics' Accuracy takes \(.*num_classes"),
        (
            {"params": {"task": "multiclass", "num_classes": 3, "averge": "micro"}},
            r"Accuracy takes \(.*averge.*Did you mean 'average'",
        ),
        (
            {"params": {"task": "multiclas", "num_classes": 3}},
            r"must be what torchmetrics' Accuracy takes \(.*multiclas",
        ),
        ({"stages": []}, r"`stages` .* must be a list of some of train, val, test. Got \[\]"),
        ({"stages": None}, r"`stages` .* must be a list"),
        (
            {"stages": ["valid"]},
            r"`stages` .* must be one of train, val, test. Got 'valid' instead. Did you mean 'val'",
        ),
        ({"prog_bar": 1}, r"`prog_bar` .* must be True or False. Got 1"),
        ({"log_on_epoch": False}, r"must be True if log_on_step is False"),
    ],
)
def test_every_field_is_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MetricConfig(**{**GUIDE, **change})


def test_plain_data_is_checked_too() -> None:
    with pytest.raises(UsageError, match=r"`keys` of a metric .* Got 'param' instead. Did you mean 'params'"):
        MetricConfig.from_dict({"name": "accuracy", "param": {}})
    with pytest.raises(UsageError, match=r"`name` of a metric must be given"):
        MetricConfig.from_dict({"metric_class": "Accuracy"})


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must be unique. Got 'accuracy'"):
        build_metrics([MetricConfig(**GUIDE)] * 2, "val")


def test_the_monitor_knows_its_direction() -> None:
    assert choose_monitor(default_metrics(10)) == default_monitor() == Monitor("val/accuracy", "max")
    assert choose_monitor(default_metrics(3, multi_label=True)) == default_monitor(multi_label=True)
    error = MetricConfig("mae", metric_class="MeanAbsoluteError", stages=["val"])
    assert choose_monitor([error]) == Monitor("val/mae", "min")
    assert choose_monitor(default_metrics(10), "val/f1") == Monitor("val/f1", "max")
    assert choose_monitor(default_metrics(10), "val/loss") == choose_monitor([]) == Monitor("val/loss", "min")
    with pytest.raises(
        UsageError, match=r"`monitor` of a task .* Got 'val/acuracy' instead. Did you mean 'val/accuracy'"
    ):
        choose_monitor(default_metrics(10), "val/acuracy")


def test_a_metric_can_be_had_by_its_name_alone() -> None:
    assert named_metric("F1Score", 3).params == {"task": "multiclass", "num_classes": 3}
    assert named_metric("HammingDistance", 3, multi_label=True).params == {"task": "multilabel", "num_labels": 3}


def test_a_metric_of_several_values_is_refused_before_training():
    with pytest.raises(UsageError, match=r"must be a metric that gives one number\. Got 'MeanAveragePrecision'"):
        MetricConfig("own", backend="custom", metric_class="torchmetrics.detection.MeanAveragePrecision")
