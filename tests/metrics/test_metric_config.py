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

ACCURACY = {
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


def evaluate(configs: list[MetricConfig], predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    metrics = build_metrics(configs, "val")
    for part, truth in zip(predictions.split(7), targets.split(7), strict=True):
        for metric in metrics.values():
            metric.update(part, truth)
    return {name: metric.compute().item() for name, metric in metrics.items()}


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_single_label_metrics_match_scikit_learn(classes: int) -> None:
    rng = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=rng)
    targets = torch.randint(0, classes, (50,), generator=rng)
    computed = evaluate(default_metrics(classes), logits, targets)
    predicted = logits.argmax(1)
    expected = {
        "accuracy": sklearn.accuracy_score(targets, predicted),
        "f1": sklearn.f1_score(targets, predicted, average="macro"),
    }
    if classes > 5:
        expected["top5_accuracy"] = sklearn.top_k_accuracy_score(targets, logits, k=5, labels=range(classes))
    assert computed == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_multi_label_metrics_match_scikit_learn(threshold: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=rng)
    targets = torch.randint(0, 2, (60, 4), generator=rng).float()
    computed = evaluate(default_metrics(4, multi_label=True, threshold=threshold), logits, targets.long())
    probabilities = logits.sigmoid()
    expected = {
        "mAP": sklearn.average_precision_score(targets, probabilities, average="macro"),
        "f1": sklearn.f1_score(targets, probabilities > threshold, average="macro"),
    }
    assert computed == pytest.approx(expected, abs=1e-6)


def test_macro_f1_ignores_absent_classes() -> None:
    logits = torch.eye(4)[[0, 1, 1, 0]] + 0.1 * torch.eye(4)[[1, 0, 0, 1]]
    targets = torch.tensor([0, 1, 0, 0])
    computed = evaluate(default_metrics(4), logits, targets)
    assert computed["f1"] == pytest.approx(sklearn.f1_score(targets, logits.argmax(1), average="macro"))


def test_documented_example() -> None:
    config = MetricConfig(**ACCURACY)
    assert (config.log_on_step, config.log_on_epoch, config.prog_bar) == (False, True, False)
    assert list(build_metrics([config], Stage.VAL)) == ["accuracy"]
    assert [len(build_metrics([config], stage)) for stage in (Stage.TRAIN, "test", Stage.PREDICT)] == [0, 0, 0]
    assert choose_monitor([config]) == Monitor("val/accuracy", "max")


def test_config_round_trips_through_a_weights_only_checkpoint() -> None:
    config = MetricConfig(**ACCURACY)
    file = io.BytesIO()
    torch.save([config.to_dict()], file)
    file.seek(0)
    (loaded,) = torch.load(file, weights_only=True)
    assert loaded == {**ACCURACY, "log_on_step": False, "log_on_epoch": True, "prog_bar": False}
    assert MetricConfig.of(loaded) == MetricConfig.of(config) == config


def test_stages_accept_a_string_an_enum_or_several() -> None:
    assert MetricConfig(**{**ACCURACY, "stages": "val"}).stages == ("val",)
    assert MetricConfig(**{**ACCURACY, "stages": (Stage.VAL, "test")}).stages == ("val", "test")


def test_custom_metric_is_imported_by_path() -> None:
    path = f"{Count.__module__}.Count"
    config = MetricConfig("count", backend="custom", metric_class=path, stages=["val"])
    assert evaluate([config], torch.zeros(9, 2), torch.zeros(9)) == {"count": 9}
    assert choose_monitor([config]) == Monitor("val/loss", "min")
    with pytest.raises(UsageError, match=r"`monitor` of a task must be one of val/loss, train/loss. Got 'val/count'"):
        choose_monitor([config], "val/count")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, r"`name` of a MetricConfig must be letters, digits"),
        ({"name": ""}, r"`name` of a MetricConfig"),
        ({"name": "keys"}, r"not a reserved name. Got 'keys'"),
        ({"name": "loss"}, r"not a reserved name. Got 'loss'"),
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
def test_invalid_fields_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MetricConfig(**{**ACCURACY, **change})


def test_from_dict_rejects_unknown_and_missing_keys() -> None:
    with pytest.raises(UsageError, match=r"`keys` of a metric .* Got 'param' instead. Did you mean 'params'"):
        MetricConfig.from_dict({"name": "accuracy", "param": {}})
    with pytest.raises(UsageError, match=r"`name` of a metric must be given"):
        MetricConfig.from_dict({"metric_class": "Accuracy"})


def test_duplicate_names_in_a_stage_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"must be unique. Got 'accuracy'"):
        build_metrics([MetricConfig(**ACCURACY)] * 2, "val")


def test_monitor_mode_follows_the_metric() -> None:
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


def test_named_metric_fills_in_the_parameters() -> None:
    assert named_metric("F1Score", 3).params == {"task": "multiclass", "num_classes": 3}
    assert named_metric("HammingDistance", 3, multi_label=True).params == {"task": "multilabel", "num_labels": 3}


def test_metrics_with_several_values_are_rejected():
    with pytest.raises(UsageError, match=r"must be a metric that returns a single number\. Got 'MeanAveragePrecision'"):
        MetricConfig("own", backend="custom", metric_class="torchmetrics.detection.MeanAveragePrecision")


def test_parameters_are_plain_data_at_any_depth() -> None:
    params = {"task": "multiclass", "num_classes": 3, "more": {"sizes": [1, None, object()]}}
    with pytest.raises(UsageError, match=r"`params` of .* must be .*plain"):
        MetricConfig("own", metric_class="Accuracy", params=params)
