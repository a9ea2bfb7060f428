"""What a page shows of a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence import Evidence
from autotimm.evidence.calibration import scaled_by_other_half
from autotimm.evidence.reliability import confidence_of, expected_calibration_error, reliability
from autotimm.evidence.temperature import scaled
from autotimm.evidence.thresholds import at_temperature
from autotimm.report.charts import Line, curve_chart, reliability_chart
from autotimm.report.class_figures import (
    GRID,
    average_precision,
    confusion_matrix,
    outcomes,
    per_class,
    selective,
    threshold_scores,
)
from autotimm.report.content import Card, Content, Headline, NumberTable, Panel, View
from autotimm.report.content_parts import (
    best_on_grid,
    confusion,
    curve_rows,
    fitted_thresholds,
    matrix_rows,
    number,
)
from autotimm.report.intervals import bootstrap, bootstrap_share
from autotimm.report.pictures import Pictures
from autotimm.types import Calibration

__all__ = ["class_content", "class_headline"]

_MOST_CARDS = 1000  # samples on the page; the table samples.csv has all
_MOST_LINES = 8  # classes in one chart
_LEVELS = np.array([0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
_F1 = 2  # its column in what `threshold_scores` returns

_Bools = NDArray[np.bool_]


def class_headline(evidence: Evidence, seed: int) -> Headline:
    """Accuracy; for several labels per image the mean over classes of average precision."""
    samples = len(evidence)
    if not evidence.multi_label:
        right = (evidence.scores.argmax(axis=1) == evidence.targets).astype(np.float64)
        figure = bootstrap_share(right, seed, evidence.split)
        return Headline("Accuracy", figure, evidence.split, samples)

    def mean_precision(weights: NDArray[Any]) -> NDArray[np.float64]:
        columns = [
            average_precision(evidence.scores[:, at], evidence.targets[:, at], weights)
            for at in range(len(evidence.class_names))
        ]
        known = np.isfinite(columns)  # a resample may lack a class: it is left out of the mean
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
        _add_labels(content, evidence, predicted, true, threshold)
    else:
        _add_single_class(content, evidence)
    if calibration is not None:
        _add_calibration(content, evidence, calibration)
    _add_cards(content, evidence, predicted, true, pictures)
    return content


def _class_table(evidence: Evidence, predicted: _Bools, true: _Bools) -> NumberTable:
    figures = per_class(predicted, true)
    titles = ["class", "images", "missed", "false", "precision", "recall", "F1"]
    missed = figures["images"] - figures["correct"]
    false = figures["predicted"] - figures["correct"]
    columns = [figures["images"], missed, false, figures["precision"], figures["recall"], figures["f1"]]
    rows = [[name, *(number(column[at]) for column in columns)] for at, name in enumerate(evidence.class_names)]
    links: dict[tuple[int, int], str] = {}
    for at in range(len(rows)):
        # Images of the class, those where it was missed, those where it is false, see `Card.tokens`.
        links |= {(at, 1): f"t{at}", (at, 2): f"m{at}", (at, 3): f"f{at}"}
    if evidence.multi_label:
        titles.append("AP")
        ones = np.ones((1, len(evidence)))
        for at, row in enumerate(rows):
            row.append(number(average_precision(evidence.scores[:, at], evidence.targets[:, at], ones)[0]))
    return NumberTable(titles, rows, links)


# One class per image


def _add_single_class(content: Content, evidence: Evidence) -> None:
    scores, targets, names = evidence.scores, evidence.targets, list(evidence.class_names)
    counts = confusion_matrix(targets, scores.argmax(axis=1), len(names))
    content.matrix = confusion(counts, names, "images")
    content.numbers["confusion"] = matrix_rows(names, counts.tolist())
    content.classes_text = "Counts open the images behind them."
    confidence, right = confidence_of(scores, targets)
    content.panels.append(_reliability_of_run(content, confidence, right, several_labels=False))
    content.panels.append(_confidence_panel(content, confidence, right))
    rows = []
    for level, figures in zip(_LEVELS, selective(confidence, right, _LEVELS), strict=True):
        rows.append([f"at least {level:.0%}" if level else "all", *map(number, figures)])
    content.tables["What a confidence is worth"] = NumberTable(["confidence", "kept", "accuracy"], rows, {}), ""


def _confidence_panel(content: Content, confidence: NDArray[Any], right: NDArray[Any]) -> Panel:
    """What a least confidence keeps, and how often that is right, as a chart with its numbers."""
    curve = selective(confidence, right, GRID)
    kept, accuracy = curve.T
    content.numbers["thresholds"] = [["confidence", "kept", "accuracy"], *curve_rows(curve)]
    lines = [
        Line("accuracy of what is kept", [*zip(GRID, accuracy, strict=True)]),
        Line("share that is kept", [*zip(GRID, kept, strict=True)]),
    ]
    chart = curve_chart("Accuracy and share kept over the least confidence", lines, "least confidence")
    text = "If predictions below a confidence are left to a person."
    return Panel("Thresholds", chart, [line.label for line in lines], text, "report/thresholds.csv")


# Several labels per image


def _add_labels(content: Content, evidence: Evidence, predicted: _Bools, true: _Bools, threshold: float) -> None:
    right = true.ravel().astype(np.float64)
    content.panels.append(_reliability_of_run(content, evidence.scores.ravel(), right, several_labels=True))
    curves = [threshold_scores(evidence.scores[:, at].astype(np.float64), true[:, at]) for at in range(true.shape[1])]
    rows = []
    content.numbers["thresholds"] = [["class", "threshold", "precision", "recall", "F1"]]
    for name, curve, f1 in zip(evidence.class_names, curves, per_class(predicted, true)["f1"], strict=True):
        content.numbers["thresholds"] += curve_rows(curve, name)
        best = best_on_grid(curve[:, _F1])
        rows.append([name, float(GRID[best]), number(curve[best, _F1]), number(f1)])
    table = NumberTable(["class", "best threshold", "F1 there", f"F1 at {threshold:g}"], rows, {})
    content.tables["Thresholds per class"] = (table, "Chosen on these very images: optimistic for others.")
    content.panels.append(_f1_panel(evidence, curves, threshold))
    content.classes_text = f"A label is predicted from a score of {threshold:g} on. Counts open the images behind them."
    if absent := int((~true.any(axis=0)).sum()):
        content.classes_text += (
            f" No image has {absent} of the {true.shape[1]} classes: the result is the mean over the others, and the "
            "metric mAP counts 0 for each of these."
        )


def _f1_panel(evidence: Evidence, curves: list[NDArray[np.float64]], threshold: float) -> Panel:
    """F1 of the first classes over the threshold, as a chart."""
    lines = [
        Line(name, [*zip(GRID, curve[:, _F1], strict=True)])
        for name, curve in zip(evidence.class_names[:_MOST_LINES], curves[:_MOST_LINES], strict=True)
    ]
    chart = curve_chart("F1 of each class over the threshold", lines, "threshold", threshold)
    text = f"The run predicts a label from {threshold:g} on, the dashed line."
    return Panel("F1 over the threshold", chart, [line.label for line in lines], text, "report/thresholds.csv")


# Calibration


def _reliability_of_run(
    content: Content, confidence: NDArray[Any], right: NDArray[Any], *, several_labels: bool
) -> Panel:
    what = "labels" if several_labels else "predictions"
    text = "Bars on the line are as often {are} as they say. Expected calibration error {error}, in ten bins of " + what
    return _reliability(
        content, "Reliability", "reliability", "confidence", confidence, right, f"{text}.",
        several_labels=several_labels,
    )  # fmt: skip


def _reliability(
    content: Content, title: str, file: str, by: str, confidence: NDArray[Any], right: NDArray[Any], text: str, *,
    several_labels: bool,
) -> Panel:  # fmt: skip
    """A diagram with its numbers; the text has places for the expected calibration ``error``, and for what they are."""
    # Of several labels each is asked for by itself: a low score of one that is not there is no mistake.
    are, what = ("there", "labels that are there") if several_labels else ("right", "right predictions")
    bins = reliability(confidence, right)
    rows = [list(map(number, each)) for each in bins]
    content.numbers[file] = [["from", "to", "count", "confidence", "correct"], *rows]
    text = text.format(error=f"{expected_calibration_error(bins):.3f}", are=are)
    return Panel(title, reliability_chart(f"Share of {what} by {by}", bins, are), [], text, f"report/{file}.csv")


def _add_calibration(content: Content, evidence: Evidence, calibration: Calibration) -> None:
    """The reliability of calibrated scores, and the thresholds that `predict` uses."""
    temperature = calibration.temperature
    if temperature != 1:
        # On the very samples that it was fitted to, the temperature would look better than it is.
        was_fitted_here = evidence.split == "val" and len(evidence) == calibration.samples
        if was_fitted_here:
            scores = scaled_by_other_half(evidence)
            how = "each half of the images with the temperature of the other one"
        else:
            scores = scaled(evidence.scores, temperature, multi_label=evidence.multi_label)
            how = "fitted on validation images"
        text = f"As predict has it, at a temperature of {temperature:.3g}; {how}. Expected calibration error {{error}}."
        panel = _reliability(
            content, "Reliability, calibrated", "reliability_calibrated", "calibrated confidence",
            *confidence_of(scores, evidence.targets), text, several_labels=evidence.multi_label,
        )  # fmt: skip
        content.panels.insert(1, panel)  # after that of the scores as they are
    kept = None if evidence.threshold is None else at_temperature(evidence.threshold, temperature)
    fitted_thresholds(content, evidence.class_names, calibration, kept)


# Samples


def _add_cards(content: Content, evidence: Evidence, predicted: _Bools, true: _Bools, pictures: Pictures) -> None:
    """The table of all samples, mistakes with a high loss first, and pictures of the first ones."""
    wrong = (predicted != true).any(axis=1)
    names, winners = evidence.class_names, evidence.scores.argmax(axis=1)
    content.numbers["samples"] = [["id", "true", "predicted", "score", "loss"]]
    order = np.lexsort((-evidence.losses, ~wrong))  # by the last key first
    for place, at in enumerate(order.tolist()):
        id, score, loss = evidence.ids[at], float(evidence.scores[at].max()), float(evidence.losses[at])
        is_true, is_found = _joined(names, true[at]), _joined(names, predicted[at])
        content.numbers["samples"].append([id, is_true, is_found, score, loss])
        if place >= _MOST_CARDS:
            continue
        tokens = _tokens(true[at], predicted[at])
        if not evidence.multi_label:
            tokens.append(f"c{evidence.targets[at]}-{winners[at]}")
        note = f"loss {loss:.2f}" if evidence.multi_label else f"{score:.0%} sure"
        view = View("", pictures.of_sample(evidence.split, id))
        content.cards.append(Card(id, " ".join(tokens), bool(wrong[at]), is_true, is_found, note, [view]))
    content.cards_text = f"{int(wrong.sum())} of {len(evidence)} images have a mistake. Sorted by loss, mistakes first."


def _tokens(true: _Bools, predicted: _Bools) -> list[str]:
    """The classes of a sample, those that were missed and those that are false, see ``Card.tokens``."""
    kinds = {"t": true, "m": true & ~predicted, "f": predicted & ~true}
    return [f"{kind}{label}" for kind, labels in kinds.items() for label in np.flatnonzero(labels)]


def _joined(names: tuple[str, ...], chosen: _Bools) -> str:
    return ", ".join(names[at] for at in np.flatnonzero(chosen)) or "none"
