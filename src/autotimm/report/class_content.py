"""What a page shows of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence import Evidence
from autotimm.evidence.calibration import at_temperature, scaled, scaled_by_other_half
from autotimm.evidence.reliability import confidence_of, expected_calibration_error, reliability
from autotimm.report.charts import Line, curve_chart, reliability_chart
from autotimm.report.class_figures import (
    average_precision,
    confusion_matrix,
    outcomes,
    per_class,
    selective,
    threshold_scores,
)
from autotimm.report.content import Card, Content, Headline, Matrix, NumberTable, Panel, View
from autotimm.report.intervals import bootstrap, bootstrap_share
from autotimm.report.pictures import Pictures
from autotimm.types import Calibration

__all__ = ["MOST_CARDS", "class_content", "class_headline", "confusion", "fitted_thresholds"]

MOST_CARDS = 1000
"""Samples on a page at most; the table ``samples.csv`` has all."""

_MOST_NAMES = 24  # classes of a matrix; beyond, its largest mistakes are listed
_MOST_PAIRS = 40
_MOST_LINES = 8  # classes in one chart
_LEVELS = np.array([0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])


def class_headline(evidence: Evidence, seed: int) -> Headline:
    """Accuracy; for several labels per image the mean over classes of average precision."""
    samples = len(evidence)
    if not evidence.multi_label:
        right = (evidence.scores.argmax(axis=1) == evidence.targets).astype(np.float64)
        figure = bootstrap_share(right, seed, evidence.split)
        return Headline("Accuracy", figure, evidence.split, samples)

    def mean_precision(weights: NDArray[Any]) -> NDArray[np.float64]:
        columns = [average_precision(evidence.scores[:, at], evidence.targets[:, at], weights)
                   for at in range(len(evidence.class_names))]  # fmt: skip
        known = np.isfinite(columns)
        return np.asarray(np.nansum(columns, axis=0) / np.maximum(known.sum(axis=0), 1))

    figure = bootstrap(mean_precision, samples, seed, evidence.split)
    return Headline("Mean average precision", figure, evidence.split, samples)


def class_content(evidence: Evidence, pictures: Pictures, seed: int, calibration: Calibration | None = None) -> Content:
    """Tables, charts and pictures of a classifier; ``calibration`` is what was fitted to its validation images."""
    threshold = 0.5 if evidence.threshold is None else evidence.threshold
    predicted, true = outcomes(evidence, threshold)
    content = Content(class_headline(evidence, seed), _class_table(evidence, predicted, true))
    content.numbers["classes"] = [[*content.classes.titles], *map(list, content.classes.rows)]
    if evidence.multi_label:
        _several_labels(content, evidence, predicted, true, threshold)
    else:
        _one_label(content, evidence)
    if calibration is not None:
        _calibrated(content, evidence, calibration)
    _cards(content, evidence, predicted, true, pictures)
    return content


def _class_table(evidence: Evidence, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> NumberTable:
    figures = per_class(predicted, true)
    titles = ["class", "images", "missed", "false", "precision", "recall", "F1"]
    missed = figures["images"] - figures["correct"]
    false = figures["predicted"] - figures["correct"]
    columns = [figures["images"], missed, false, figures["precision"], figures["recall"], figures["f1"]]
    rows = [[name, *(number(column[at]) for column in columns)] for at, name in enumerate(evidence.class_names)]
    links = {(at, column): f"{kind}{at}" for at in range(len(rows)) for column, kind in ((1, "t"), (2, "m"), (3, "f"))}
    if evidence.multi_label:
        titles.append("AP")
        ones = np.ones((1, len(evidence)))
        for at, row in enumerate(rows):
            row.append(number(average_precision(evidence.scores[:, at], evidence.targets[:, at], ones)[0]))
    return NumberTable(titles, rows, links)


def with_names(names: list[str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows with a name in front of each, below a row of the names."""
    return [["true", *names], *([name, *row] for name, row in zip(names, rows, strict=True))]


def over_grid(curve: NDArray[Any], *before: Any) -> list[list[Any]]:
    """The rows of a curve over 101 thresholds, each with its threshold in front."""
    grid = np.linspace(0, 1, len(curve)).tolist()
    return [[*before, at, *map(number, row)] for at, row in zip(grid, curve, strict=True)]


def number(value: Any) -> Any:
    """A number of NumPy as one of Python; ``None`` where it is undefined."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def confusion(counts: NDArray[np.int64], names: list[str], unit: str, last: str = "") -> Matrix:
    """A matrix of counts with links; the largest mistakes alone where there are many names.

    Args:
        counts: True classes by predicted ones.
        names: The names of both.
        unit: What is counted.
        last: What the last row and column stand for, if they are no class; empty if they are one.
    """
    size = len(counts)
    if size <= _MOST_NAMES:
        links = {
            (row, column): f"c{row}-{column}" for row in range(size) for column in range(size) if counts[row, column]
        }
        rows, columns = ([*names, *([last] if last else [])] for _ in range(2))
        return Matrix(rows, columns, counts.tolist(), links, unit)
    labels = [*names, *([last] if last else [])]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    places = [(int(at) // size, int(at) % size) for at in order if wrong.flat[at]]
    pairs = [(labels[row], labels[column], int(wrong[row, column]), f"c{row}-{column}") for row, column in places]
    return Matrix((), (), (), {}, unit, pairs)


def _one_label(content: Content, evidence: Evidence) -> None:
    scores, targets, names = evidence.scores, evidence.targets, list(evidence.class_names)
    winners = scores.argmax(axis=1)
    counts = confusion_matrix(targets, winners, len(names))
    content.matrix = confusion(counts, names, "images")
    content.numbers["confusion"] = with_names(names, counts.tolist())
    confidence, right = confidence_of(scores, targets)
    _calibration(content, confidence, right, "predictions")
    grid = np.linspace(0, 1, 101)
    kept = selective(confidence, right, grid)
    content.numbers["thresholds"] = [["confidence", "kept", "accuracy"], *over_grid(kept)]
    lines = [Line("accuracy of what is kept", [*zip(grid, kept[:, 1], strict=True)]),
             Line("share that is kept", [*zip(grid, kept[:, 0], strict=True)])]  # fmt: skip
    content.panels.append(
        Panel("Thresholds", curve_chart("Accuracy and share kept over the least confidence", lines, "least confidence"),
              [line.label for line in lines], "If predictions below a confidence are left to a person.",
              "report/thresholds.csv")
    )  # fmt: skip
    rows = [[f"at least {level:.0%}" if level else "all", *map(number, row)]
            for level, row in zip(_LEVELS, selective(confidence, right, _LEVELS), strict=True)]  # fmt: skip
    content.tables["What a confidence is worth"] = (NumberTable(["confidence", "kept", "accuracy"], rows, {}), "")
    content.classes_text = "Counts open the images behind them."


def _calibration(content: Content, confidence: NDArray[Any], right: NDArray[Any], what: str) -> None:
    text = (
        f"Bars on the line are as often right as they say. Expected calibration error {{error}}, in ten bins of {what}."
    )
    caption = "Share of right predictions by confidence"
    content.panels.append(_reliability(content, "Reliability", "reliability", caption, confidence, right, text))


def _reliability(
    content: Content, title: str, file: str, caption: str, confidence: NDArray[Any], right: NDArray[Any], text: str
) -> Panel:
    """A diagram with its numbers; ``{error}`` in the text is the expected calibration error."""
    bins = reliability(confidence, right)
    content.numbers[file] = [
        ["from", "to", "count", "confidence", "correct"], *(list(map(number, each)) for each in bins),
    ]  # fmt: skip
    text = text.format(error=f"{expected_calibration_error(bins):.3f}")
    return Panel(title, reliability_chart(caption, bins), [], text, f"report/{file}.csv")


def _calibrated(content: Content, evidence: Evidence, calibration: Calibration) -> None:
    """The reliability of calibrated scores, and the thresholds that `predict` uses."""
    if calibration.temperature != 1:
        fits = evidence.split == "val" and len(evidence) == calibration.samples
        scores = (
            scaled_by_other_half(evidence)
            if fits
            else scaled(evidence.scores, calibration.temperature, multi_label=evidence.multi_label)
        )
        how = "each half of the images with the temperature of the other one" if fits else "fitted on validation images"
        text = (
            f"As predict has it, at a temperature of {calibration.temperature:.3g}; {how}. Expected calibration error "
            "{error}."
        )
        panel = _reliability(
            content, "Reliability, calibrated", "reliability_calibrated",
            "Share of right predictions by calibrated confidence", *confidence_of(scores, evidence.targets), text,
        )  # fmt: skip
        content.panels.insert(1, panel)
    kept = None if evidence.threshold is None else at_temperature(evidence.threshold, calibration.temperature)
    fitted_thresholds(content, evidence.class_names, calibration, kept)


def fitted_thresholds(
    content: Content, names: Sequence[str], calibration: Calibration, kept: float | None = None
) -> None:
    """Show the thresholds that `predict` uses in place of that of the run, if there are any.

    Args:
        content: What is shown.
        names: The classes.
        calibration: What was fitted.
        kept: The threshold of the run, at the temperature.
    """
    if len(calibration.thresholds) != len(names):
        return
    rows = [[name, round(least, 4)] for name, least in zip(names, calibration.thresholds, strict=True)]
    aim = "F1" if calibration.aim == "f1" else f"a {calibration.aim}"
    said = f"Fitted on {calibration.samples} validation images for {aim}, and used by predict. Counts on this page are "
    if {*calibration.thresholds} == {kept}:
        said = "That of the run, moved by the temperature: the same labels. Counts on this page are "
    content.tables["Thresholds that predict uses"] = (
        NumberTable(["class", "threshold"], rows, {}), f"{said}those of the one threshold that the metrics have.",
    )  # fmt: skip
    content.numbers["fitted_thresholds"] = [["class", "threshold"], *rows]


def _several_labels(
    content: Content, evidence: Evidence, predicted: NDArray[np.bool_], true: NDArray[np.bool_], threshold: float
) -> None:
    _calibration(content, evidence.scores.ravel(), true.ravel().astype(np.float64), "labels")
    grid = np.linspace(0, 1, 101)
    curves = [threshold_scores(evidence.scores[:, at].astype(np.float64), true[:, at]) for at in range(true.shape[1])]
    content.numbers["thresholds"] = [["class", "threshold", "precision", "recall", "F1"]]
    best = []
    for name, curve in zip(evidence.class_names, curves, strict=True):
        content.numbers["thresholds"] += over_grid(curve, name)
        at = int(np.nanargmax(curve[:, 2])) if np.isfinite(curve[:, 2]).any() else 0
        best.append([name, float(grid[at]), number(curve[at, 2])])
    shown = range(min(len(curves), _MOST_LINES))
    lines = [Line(evidence.class_names[at], [*zip(grid, curves[at][:, 2], strict=True)]) for at in shown]
    chart = curve_chart("F1 of each class over the threshold", lines, "threshold", threshold)
    text = f"The run predicts a label from {threshold:g} on, the dashed line."
    names = [line.label for line in lines]
    content.panels.append(Panel("F1 over the threshold", chart, names, text, "report/thresholds.csv"))
    rows = [[*row, number(f1)] for row, f1 in zip(best, per_class(predicted, true)["f1"], strict=True)]
    table = NumberTable(["class", "best threshold", "F1 there", f"F1 at {threshold:g}"], rows, {})
    content.tables["Thresholds per class"] = (table, "Chosen on these very images: optimistic for others.")
    content.classes_text = f"A label is predicted from a score of {threshold:g} on. Counts open the images behind them."
    if absent := int((~true.any(axis=0)).sum()):
        content.classes_text += (
            f" No image has {absent} of the {true.shape[1]} classes: the result is the mean over the others, and the "
            "metric mAP counts 0 for each of these."
        )


def _cards(
    content: Content, evidence: Evidence, predicted: NDArray[np.bool_], true: NDArray[np.bool_], pictures: Pictures
) -> None:
    wrong = (predicted != true).any(axis=1)
    order = np.lexsort((-evidence.losses, ~wrong))
    winners = evidence.scores.argmax(axis=1)
    content.numbers["samples"] = [["id", "true", "predicted", "score", "loss"]]
    words = partial(_names, evidence.class_names)
    for place, at in enumerate(order.tolist()):
        kinds = {"t": true[at], "m": true[at] & ~predicted[at], "f": predicted[at] & ~true[at]}
        tokens = [f"{kind}{label}" for kind, labels in kinds.items() for label in np.flatnonzero(labels)]
        if not evidence.multi_label:
            tokens.append(f"c{evidence.targets[at]}-{winners[at]}")
        score = float(evidence.scores[at].max())
        row = [evidence.ids[at], words(true[at]), words(predicted[at]), score, float(evidence.losses[at])]
        content.numbers["samples"].append(row)
        if place < MOST_CARDS:
            note = f"{score:.0%} sure" if not evidence.multi_label else f"loss {row[4]:.2f}"
            view = View("", pictures.of_sample(evidence.split, evidence.ids[at]))
            content.cards.append(
                Card(evidence.ids[at], " ".join(tokens), bool(wrong[at]), row[1], row[2], note, [view])
            )
    count = int(wrong.sum())
    content.cards_text = f"{count} of {len(evidence)} images have a mistake. Sorted by loss, mistakes first."


def _names(names: tuple[str, ...], chosen: NDArray[np.bool_]) -> str:
    return ", ".join(names[at] for at in np.flatnonzero(chosen)) or "none"
