"""What a page shows of semantic segmentation."""

from __future__ import annotations

import numpy as np

from autotimm.evidence import Evidence
from autotimm.report.class_colors import class_colors, css_colors, is_background
from autotimm.report.content import Card, Content, Headline, NumberTable, View
from autotimm.report.content_parts import confusion, matrix_rows, number
from autotimm.report.intervals import bootstrap
from autotimm.report.pictures import Pictures
from autotimm.report.pixel_figures import image_scores, mean_iou, region_scores

__all__ = ["pixel_content", "pixel_headline"]

_MOST_CARDS = 120  # each has four pictures
_UNKNOWN = 255
_WRONG, _RIGHT = 0, 254
_ERROR = (225, 29, 72)


def pixel_headline(evidence: Evidence, seed: int) -> Headline:
    """Mean intersection over union."""
    figure = bootstrap(lambda weights: mean_iou(evidence, weights), len(evidence), seed, evidence.split)
    return Headline("Mean IoU", figure, evidence.split, len(evidence))


def pixel_content(evidence: Evidence, pictures: Pictures, seed: int) -> Content:
    """Tables, charts and pictures of semantic segmentation."""
    figures, names = region_scores(evidence), list(evidence.class_names)
    order = ("share", "iou", "dice", "precision", "recall")
    rows = [[name, *(number(figures[key][at]) for key in order)] for at, name in enumerate(names)]
    links = {(at, 1): f"t{at}" for at in range(len(names))}
    table = NumberTable(["class", "pixels", "IoU", "Dice", "precision", "recall"], rows, links)
    content = Content(pixel_headline(evidence, seed), table)
    content.classes_text = "Shares of pixels open the images with the class, the worst first."
    content.numbers["classes"] = [[*table.titles], *map(list, rows)]
    matrix = evidence["confusion"]
    content.matrix = confusion(matrix, names, "pixels")
    content.numbers["confusion"] = matrix_rows(names, matrix.tolist())
    _cards(content, evidence, pictures)
    colors = zip(names, css_colors(names), strict=True)
    content.colors = [(name, color) for name, color in colors if not is_background(name)]
    return content


def _cards(content: Content, evidence: Evidence, pictures: Pictures) -> None:
    scores = image_scores(evidence)
    errors = [_errors(evidence, at) for at in range(len(evidence))]
    content.numbers["samples"] = [["id", "mean IoU", "wrong pixels"]]
    for place, at in enumerate(np.argsort(scores, kind="stable").tolist()):
        true, found = evidence.label_map(at, true=True), evidence.label_map(at)
        content.numbers["samples"].append([evidence.ids[at], float(scores[at]), errors[at]])
        if place >= _MOST_CARDS:
            continue
        known = true != _UNKNOWN
        tokens = {f"t{label}" for label in np.unique(true[known])}
        tokens |= {f"c{pair // 256}-{pair % 256}" for pair in np.unique(true[known].astype(int) * 256 + found[known])}
        found_text, note = f"IoU {scores[at]:.3f}", f"{errors[at]:.1%} of the pixels wrong"
        views, wrong = _views(evidence, at, pictures), bool(errors[at] > 0)
        content.cards.append(Card(evidence.ids[at], " ".join(sorted(tokens)), wrong, "", found_text, note, views))
    content.cards_text = (
        "The image, the truth, the prediction, and in red the pixels that are wrong. Sorted by the mean IoU of the "
        "image, the worst first."
    )
    if len(evidence) > _MOST_CARDS:
        content.left_out = f"The page shows {_MOST_CARDS} of {len(evidence)} images; report/samples.csv has all."


def _errors(evidence: Evidence, at: int) -> float:
    """The share of an image's known pixels that are wrong, from the exact counts."""
    right = float(evidence["intersections"][at].sum())
    total = float(evidence["unions"][at].sum()) + right  # predicted and true pixels
    return 1 - 2 * right / total if total else 0.0


def _views(evidence: Evidence, at: int, pictures: Pictures) -> list[View]:
    picture = pictures.of_sample(evidence.split, evidence.ids[at])
    height, width = evidence["sizes"][at].tolist()
    views, colors = [View("image", picture, ratio=width / height)], class_colors(evidence.class_names)
    hidden = next((at for at, name in enumerate(evidence.class_names) if is_background(name)), _UNKNOWN)
    true, found = evidence.label_map(at, true=True), evidence.label_map(at)
    for label, labels in (("truth", true), ("predicted", found)):
        shown = np.where(labels == hidden, _UNKNOWN, labels).astype(np.uint8)
        views.append(View(label, picture, pictures.of_labels(shown, colors, _UNKNOWN), ratio=width / height))
    wrong = np.where((true != found) & (true != _UNKNOWN), _WRONG, _RIGHT).astype(np.uint8)
    views.append(View("errors", picture, pictures.of_labels(wrong, [_ERROR], _RIGHT), ratio=width / height))
    return views
