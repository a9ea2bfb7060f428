"""What a page shows of a detector, with or without masks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from autotimm.evidence import Evidence
from autotimm.evidence.label_runs import LabelRuns
from autotimm.evidence.object_matches import AREAS, Matches, ObjectPair, match_objects, object_pairs
from autotimm.evidence.reliability import reliability
from autotimm.report.charts import Line, curve_chart
from autotimm.report.class_colors import class_colors, css_colors
from autotimm.report.class_figures import GRID, threshold_scores
from autotimm.report.content import Box, Card, Content, Headline, NumberTable, Panel, View
from autotimm.report.content_parts import (
    best_on_grid,
    confusion,
    curve_rows,
    fitted_thresholds,
    matrix_rows,
    number,
)
from autotimm.report.intervals import bootstrap
from autotimm.report.pictures import Pictures
from autotimm.types import Calibration

__all__ = ["object_content", "object_headline"]

_MOST_CARDS = 120  # each has two pictures with their boxes
_MOST_BOXES = 60  # drawn in one picture, those with the highest scores
_MOST_LINES = 8
_RESAMPLES = 100  # of average precision, which takes 10 sorted curves per class
_NOTHING = "nothing"
_CLEAR = 255  # the label of a pixel that no mask covers

_Pairs = dict[int, list[ObjectPair]]
_ByClass = dict[tuple[int, str], Matches]


def object_headline(evidence: Evidence, seed: int, matches: _ByClass | None = None) -> Headline:
    """COCO's mean average precision: of masks where there are any, else of boxes."""
    matched = match_objects(evidence) if matches is None else matches

    def mean(weights: NDArray[Any]) -> NDArray[np.float64]:
        values = np.array(
            [matched[label, "all"].average_precision(weights) for label in range(len(evidence.class_names))]
        )
        known = np.isfinite(values)
        return np.asarray(np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))

    figure = bootstrap(mean, len(evidence), seed, evidence.split, resamples=_RESAMPLES)
    title = "Mask mAP" if evidence.kind == "instances" else "Box mAP"
    return Headline(title, figure, evidence.split, len(evidence))


def object_content(
    evidence: Evidence, pictures: Pictures, seed: int, calibration: Calibration | None = None
) -> Content:
    """Tables, charts and pictures of a detector; ``calibration`` is what was fitted to its validation images."""
    threshold = 0.5 if evidence.threshold is None else evidence.threshold
    matched = match_objects(evidence)
    pairs = object_pairs(evidence, threshold)
    content = Content(object_headline(evidence, seed, matched), _class_table(evidence, matched, pairs))
    content.classes_text = (
        f"AP is COCO's average precision; missed and false objects are counted from a score of {threshold:g} on, with "
        "boxes that overlap by half."
    )
    content.numbers["classes"] = [[*content.classes.titles], *map(list, content.classes.rows)]
    _precision_recall(content, evidence, matched)
    _thresholds(content, evidence, threshold)
    if calibration is not None:
        fitted_thresholds(content, evidence.class_names, calibration)
    _sizes(content, evidence, matched)
    _confusion(content, evidence, pairs)
    _cards(content, evidence, pairs, threshold, pictures)
    content.colors = [*zip(evidence.class_names, css_colors(evidence.class_names), strict=True)]
    return content


def _class_table(evidence: Evidence, matched: _ByClass, pairs: list[ObjectPair]) -> NumberTable:
    ones, classes = np.ones((1, len(evidence))), range(len(evidence.class_names))
    labels, true = evidence["labels"], evidence["true_labels"]
    hits = np.zeros(len(classes), int)
    missed, false = hits.copy(), hits.copy()
    for pair in pairs:
        same = pair.true >= 0 and pair.found >= 0 and labels[pair.found] == true[pair.true]
        if same:
            hits[labels[pair.found]] += 1
            continue
        if pair.true >= 0:
            missed[true[pair.true]] += 1
        if pair.found >= 0:
            false[labels[pair.found]] += 1
    rows: list[list[Any]] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / (hits + false), hits / (hits + missed)
    for at in classes:
        all_sizes = matched[at, "all"]
        figures = [all_sizes.average_precision(ones)[0], all_sizes.average_precision(ones, range(1))[0]]
        rows.append([evidence.class_names[at], int(hits[at] + missed[at]), int(missed[at]), int(false[at]),
                     *map(number, (precision[at], recall[at], *figures))])  # fmt: skip
    titles = ["class", "objects", "missed", "false", "precision", "recall", "AP", "AP50"]
    links = {(at, column): f"{kind}{at}" for at in classes for column, kind in ((1, "t"), (2, "m"), (3, "f"))}
    return NumberTable(titles, rows, links)


def _precision_recall(content: Content, evidence: Evidence, matched: _ByClass) -> None:
    ones = np.ones((1, len(evidence)))
    content.numbers["precision_recall"] = [["class", "score", "recall", "precision"]]
    lines = []
    for at, name in enumerate(evidence.class_names):
        matches = matched[at, "all"]
        if not matches.there.sum():
            continue
        recall, precision = (part[0] for part in matches.curve(ones, 0))
        rows = zip(matches.score.tolist(), recall.tolist(), precision.tolist(), strict=True)
        content.numbers["precision_recall"] += [[name, *row] for row in rows]
        step = max(1, len(recall) // 200)  # points of a line that is 300 pixels wide
        lines.append(Line(name, [*zip(recall.tolist()[::step], precision.tolist()[::step], strict=True)]))
    if lines:
        shown = lines[:_MOST_LINES]
        chart = curve_chart("Precision over recall of each class", shown, "recall")
        text = "Precision over recall at an overlap of one half."
        content.panels.append(
            Panel("Precision and recall", chart, [line.label for line in shown], text, "report/precision_recall.csv")
        )


def _thresholds(content: Content, evidence: Evidence, threshold: float) -> None:
    pairs = [pair for pair in object_pairs(evidence, 0.0) if pair.true >= 0 or pair.found >= 0]
    found = [pair for pair in pairs if pair.found >= 0]
    scores = np.array([evidence.scores[pair.found] for pair in found], np.float64)
    right = np.array([pair.true >= 0 and evidence["labels"][pair.found] == evidence["true_labels"][pair.true]
                      for pair in found], bool)  # fmt: skip
    there = sum(pair.true >= 0 for pair in pairs)
    curve = threshold_scores(scores, right, there - int(right.sum()))
    content.numbers["thresholds"] = [["score", "precision", "recall", "F1"], *curve_rows(curve)]
    lines = [
        Line(name, [*zip(GRID, curve[:, at], strict=True)]) for at, name in enumerate(("precision", "recall", "F1"))
    ]
    best = best_on_grid(curve[:, 2])
    text = f"The run reports objects from {threshold:g} on, the dashed line. F1 is highest at {GRID[best]:.2f}."
    chart = curve_chart("Precision, recall and F1 over the least score", lines, "least score", threshold)
    content.panels.append(Panel("Thresholds", chart, [line.label for line in lines], text, "report/thresholds.csv"))
    bins = reliability(scores, right.astype(np.float64))
    content.numbers["reliability"] = [
        ["from", "to", "count", "score", "correct"],
        *(list(map(number, each)) for each in bins),
    ]


def _sizes(content: Content, evidence: Evidence, matched: _ByClass) -> None:
    ones, classes, rows = np.ones((1, len(evidence))), range(len(evidence.class_names)), []
    limits = {"all": "all", "small": "small, below 32² pixels", "medium": "medium, up to 96²", "large": "large, above"}
    for area in AREAS:
        values = [matched[at, area].average_precision(ones, range(1))[0] for at in classes]
        there = sum(int(matched[at, area].there.sum()) for at in classes)
        rows.append([limits[area], there, float(np.nanmean(values)) if np.isfinite(values).any() else None])
    table = NumberTable(["size", "objects", "mAP50"], rows, {})
    content.tables["Sizes of objects"] = (table, "Areas in pixels of the original images.")
    content.numbers["sizes"] = [[*table.titles], *rows]


def _cell(evidence: Evidence, pair: ObjectPair) -> tuple[int, int]:
    """True and predicted class of a pair; the number of classes for nothing."""
    nothing = len(evidence.class_names)
    true = int(evidence["true_labels"][pair.true]) if pair.true >= 0 else nothing
    found = int(evidence["labels"][pair.found]) if pair.found >= 0 else nothing
    return true, found


def _confusion(content: Content, evidence: Evidence, pairs: list[ObjectPair]) -> None:
    names = list(evidence.class_names)
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for pair in pairs:
        counts[_cell(evidence, pair)] += 1
    content.matrix = confusion(counts, names, "objects", _NOTHING)
    labels = [*names, _NOTHING]
    content.numbers["confusion"] = matrix_rows(labels, counts.tolist())


def _cards(content: Content, evidence: Evidence, pairs: list[ObjectPair], threshold: float, pictures: Pictures) -> None:
    by_image: _Pairs = defaultdict(list)
    for pair in pairs:
        by_image[pair.image].append(pair)
    cells = {image: [_cell(evidence, pair) for pair in of_image] for image, of_image in by_image.items()}
    mistakes = np.array([sum(true != found for true, found in cells.get(at, ())) for at in range(len(evidence))])
    content.numbers["samples"] = [["id", "objects", "found", "mistakes"]]
    nothing = len(evidence.class_names)
    for place, at in enumerate(np.argsort(-mistakes, kind="stable").tolist()):
        of_image = cells.get(at, [])
        there, found = (sum(cell[side] != nothing for cell in of_image) for side in (0, 1))
        content.numbers["samples"].append([evidence.ids[at], there, found, int(mistakes[at])])
        if place >= _MOST_CARDS:
            continue
        tokens = {f"c{true}-{label}" for true, label in of_image} | {f"t{true}" for true, _ in of_image}
        tokens |= {f"m{true}" for true, label in of_image if true != label}
        tokens |= {f"f{label}" for true, label in of_image if true != label}
        text = f"{mistakes[at]} mistake{'' if mistakes[at] == 1 else 's'}"
        found_text, views = f"{found} found, {there} there", _views(evidence, at, by_image[at], threshold, pictures)
        wrong = bool(mistakes[at])
        content.cards.append(Card(evidence.ids[at], " ".join(sorted(tokens)), wrong, "", found_text, text, views))
    total = int((mistakes > 0).sum())
    content.cards_text = (
        f"{total} of {len(evidence)} images have a mistake. Truth on the left, predictions from {threshold:g} on the "
        "right; dashed is what was missed, or is not there. Sorted by mistakes."
    )
    if len(evidence) > _MOST_CARDS:
        content.left_out = f"The page shows {_MOST_CARDS} of {len(evidence)} images; report/samples.csv has all."


def _views(evidence: Evidence, at: int, pairs: list[ObjectPair], threshold: float, pictures: Pictures) -> list[View]:
    picture = pictures.of_sample(evidence.split, evidence.ids[at])
    height, width = evidence["sizes"][at].tolist()
    views = []
    for true in (True, False):
        rows = [pair.true if true else pair.found for pair in pairs]
        wrong = {row: (cell := _cell(evidence, pair))[0] != cell[1] for row, pair in zip(rows, pairs, strict=True)}
        kept = [row for row in rows if row >= 0]
        if not true:
            kept.sort(key=lambda row: -evidence.scores[row])
        boxes = [_box(evidence, row, true, wrong[row], width, height) for row in kept[:_MOST_BOXES]]
        layer = (
            _mask_layer(evidence, at, kept[:_MOST_BOXES], true, pictures)
            if evidence.kind == "instances" and picture
            else ""
        )
        views.append(View("truth" if true else "predicted", picture, layer, boxes, width / height))
    return views


def _box(evidence: Evidence, row: int, true: bool, wrong: bool, width: int, height: int) -> Box:
    prefix = "true_" if true else ""
    x1, y1, x2, y2 = evidence[f"{prefix}boxes"][row].tolist()
    label = int(evidence[f"{prefix}labels"][row])
    name = evidence.class_names[label]
    text = name if true else f"{name} {evidence.scores[row]:.2f}"
    color = css_colors(evidence.class_names)[label]
    left, top = round(100 * x1 / width, 2), round(100 * y1 / height, 2)
    return Box(left, top, round(100 * (x2 - x1) / width, 2), round(100 * (y2 - y1) / height, 2), color, text, wrong)


def _mask_layer(evidence: Evidence, at: int, rows: list[int], true: bool, pictures: Pictures) -> str:
    """The masks of an image in one reduced label map, in the colors of their classes."""
    size = evidence["sizes"][at].tolist()
    labels = np.full(size, _CLEAR, np.uint8)
    for row in rows[::-1]:  # the best lie above the others
        mask = coco_mask.decode({"size": size, "counts": evidence.mask(row, true=true)}).astype(bool)
        labels[mask] = evidence["true_labels" if true else "labels"][row] % _CLEAR
    reduced = LabelRuns.of(labels).labels()
    return pictures.of_labels(reduced, class_colors(evidence.class_names)[:_CLEAR], _CLEAR)
