"""A page that compares runs: what they reached, in which settings they differ, and which samples changed side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.data.table import Table
from autotimm.errors import ModelError, RunError
from autotimm.evidence import Evidence
from autotimm.evidence.object_matches import object_pairs
from autotimm.records.atomic import write_text
from autotimm.records.sample_index import SampleIndex
from autotimm.report.content import Card, Headline, NumberTable, View
from autotimm.report.intervals import Estimate, bootstrap
from autotimm.report.page import curves, evidence_of, headline_of, render
from autotimm.report.pictures import Pictures
from autotimm.report.pixel_figures import image_scores
from autotimm.report.run_facts import RunFacts, read_run
from autotimm.report.written_page import Report

__all__ = ["compare_runs"]

_MOST_CARDS = 24  # on each side of a change
_SIDE = 128


class _Shown(NamedTuple):
    """A run of the page: its name, and its result if it has evidence."""

    name: str
    headline: Headline | None


class _Change(NamedTuple):
    """The samples that changed side between the first run and another one."""

    title: str
    text: str
    groups: Sequence[tuple[str, Sequence[Card]]]


def compare_runs(folders: Sequence[Path], path: Path, tables: Mapping[str, Table] | None = None) -> Report:
    """Make a page that compares runs with the first of them.

    Args:
        folders: The run folders, at least two.
        path: Where the page is written.
        tables: The samples of each split, for pictures.

    Raises:
        ModelError: If a file of a run is damaged, or they are of different tasks.
        RunError: If the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    evidence = _common_split(runs)
    kinds = {each.kind for each in evidence if each is not None}
    if len(kinds) > 1:
        raise ModelError(f"Runs that are compared must be of one task. They are of {' and '.join(sorted(kinds))}.")
    names = _names(runs)
    shown = [_Shown(name, None if each is None else headline_of(each, run.seed))
             for name, run, each in zip(names, runs, evidence, strict=True)]  # fmt: skip
    pictures = Pictures(tables or {}, _SIDE, square=True)
    pairs = [(name, evidence[0], other) for name, other in zip(names[1:], evidence[1:], strict=True)]
    changes = [change for pair in pairs if (change := _changed(names[0], *pair, pictures)) is not None]
    context: dict[str, Any] = {
        "title": "Comparison · autotimm report",
        "heading": " and ".join(names) if len(names) < 4 else f"{names[0]} and others",
        "runs": shown, "claim": _claim(shown), "results_text": _results_text(runs, evidence),
        "differences": _differences(pairs, runs[0].seed), "curves": curves(runs), "settings": _settings(runs),
        "changes": changes,
    }  # fmt: skip
    try:
        write_text(path, render("compare.html", pictures, **context))
    except OSError as error:
        raise RunError(f"The report {path} could not be written: {error.strerror}. Give another place.") from None
    return Report(path)


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """The names of the folders, with their places where two are equal."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _common_split(runs: Sequence[RunFacts]) -> list[Evidence | None]:
    """The evidence of the test where all runs were tested, else that of the validation."""
    tested = [run.evidence.get("test") for run in runs]
    return tested if all(tested) else [run.evidence.get("val") or evidence_of(run) for run in runs]


def _claim(shown: Sequence[_Shown]) -> str:
    known = [each for each in shown if each.headline is not None]
    if not known:
        return "None of the runs has evidence, so that only curves and settings can be compared."
    figures = [each.headline.figure.value for each in known if each.headline is not None]
    best = known[figures.index(max(figures))]
    assert best.headline is not None
    title = f"{best.headline.title[0].lower()}{best.headline.title[1:]}"
    if len(known) > 1 and figures.count(max(figures)) > 1:
        return f"{figures.count(max(figures))} runs share the highest {title}, {best.name} among them."
    return f"{best.name} reaches the highest {title}."


def _results_text(runs: Sequence[RunFacts], evidence: Sequence[Evidence | None]) -> str:
    known = [each for each in evidence if each is not None]
    if other := _other_files(runs, evidence):
        images = f"{other} image{'' if other == 1 else 's'} that the runs call by one name"
        return (
            f"{images} {'has' if other == 1 else 'have'} other files or annotations in them: differences between the "
            "runs may be differences of the data."
        )
    if len({each.ids for each in known}) > 1:
        return "The runs were measured on different images; differences are of those that both have."
    return "All runs were measured on the same images."


def _other_files(runs: Sequence[RunFacts], evidence: Sequence[Evidence | None]) -> int:
    """How many measured images of one name have another digest in some run; those of no digest do not count."""
    digests: dict[str, set[str]] = defaultdict(set)
    for run, each in zip(runs, evidence, strict=True):
        content: Mapping[str, str] = SampleIndex(run.folder).content() or {}
        for name in each.ids if each is not None else ():
            if name in content:
                digests[name].add(content[name])
    return sum(len(found) > 1 for found in digests.values())


def _right(evidence: Evidence) -> NDArray[np.float64]:
    """What an image contributes: whether it is right, or how well it is segmented or its objects are found (N,)."""
    if evidence.kind == "classes" and not evidence.multi_label:
        return np.asarray(evidence.scores.argmax(axis=1) == evidence.targets, np.float64)
    if evidence.kind == "classes":
        threshold = 0.5 if evidence.threshold is None else evidence.threshold
        same = (evidence.scores.astype(np.float64) >= threshold) == evidence.targets.astype(bool)
        return np.asarray(same.mean(axis=1))
    if evidence.kind == "pixels":
        return image_scores(evidence)
    return _object_scores(evidence)


def _object_scores(evidence: Evidence) -> NDArray[np.float64]:
    """The F1 of the objects of each image (N,); 1 where there are none and none was found."""
    hits, mistakes = np.zeros(len(evidence)), np.zeros(len(evidence))
    for pair in object_pairs(evidence, 0.5 if evidence.threshold is None else evidence.threshold):
        both = pair.true >= 0 and pair.found >= 0
        if both and evidence["true_labels"][pair.true] == evidence["labels"][pair.found]:
            hits[pair.image] += 2
        else:
            mistakes[pair.image] += 2 if both else 1
    total = hits + mistakes
    return np.divide(hits, total, out=np.ones(len(evidence)), where=total > 0)


def _unit(evidence: Evidence) -> str:
    if evidence.kind == "classes":
        return "share of right labels" if evidence.multi_label else "accuracy"
    return "IoU per image" if evidence.kind == "pixels" else "F1 per image"


def _paired(a: Evidence, b: Evidence) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the samples that both have, in the order of the first."""
    places = {id: at for at, id in enumerate(b.ids)}
    rows = [(at, places[id]) for at, id in enumerate(a.ids) if id in places]
    columns = np.array(rows, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _differences(pairs: Sequence[tuple[str, Evidence | None, Evidence | None]], seed: int) -> NumberTable | None:
    rows: list[list[Any]] = []
    unit = ""
    for name, first, other in pairs:
        if first is None or other is None:
            continue
        left, right = _paired(first, other)
        if len(left):
            apart, unit = _right(other)[right] - _right(first)[left], _unit(first)
            figure = _mean(apart, seed)
            ends = (figure.low, figure.high) if figure.has_interval else (None, None)
            rows.append([name, len(left), figure.value, *ends])
    titles = ["run", "images", f"difference in {unit}", "from", "to"]
    return NumberTable(titles, rows, {}) if rows else None


def _mean(values: NDArray[np.float64], seed: int) -> Estimate:
    return bootstrap(lambda weights: weights @ values / len(values), len(values), seed, "difference")


def _settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, in the order of the first record."""
    names = dict.fromkeys(setting.name for run in runs for setting in run.settings)
    values = [{setting.name: setting.value for setting in run.settings} for run in runs]
    rows = [(name, [each.get(name, "–") for each in values]) for name in names if name not in ("name", "out")]
    return [(name, row) for name, row in rows if len(set(row)) > 1]


def _changed(
    first_name: str, name: str, first: Evidence | None, other: Evidence | None, pictures: Pictures
) -> _Change | None:
    """The samples that one of two classifiers gets right and the other wrong, or on which they differ most."""
    if first is None or other is None or first.class_names != other.class_names:
        return None
    left, right = _paired(first, other)
    if not len(left):
        return None
    before, after = _right(first)[left], _right(other)[right]
    apart = after - before
    order = np.argsort(-np.abs(apart), kind="stable")
    better, worse = (order[np.sign(apart[order]) == sign] for sign in (1, -1))
    groups = []
    for label, rows in ((f"Better in {name}", better), (f"Better in {first_name}", worse)):
        cards = [
            _card((first, int(left[at])), (other, int(right[at])), (before[at], after[at]), pictures)
            for at in rows[:_MOST_CARDS].tolist()
        ]
        groups.append((label, cards))
    text = f"Better in {name}: {len(better)}; in {first_name}: {len(worse)}; images compared: {len(apart)}."
    return _Change(f"{first_name} and {name}", text, groups)


def _card(
    before: tuple[Evidence, int], after: tuple[Evidence, int], scores: tuple[float, float], pictures: Pictures
) -> Card:
    """A sample with what two runs made of it."""
    other, row = after
    view = View("", pictures.of_sample(other.split, other.ids[row]))
    if other.kind == "classes" and not other.multi_label:
        names = [each.class_names[int(each.scores[at].argmax())] for each, at in (before, after)]
        true = other.class_names[int(other.targets[row])]
        return Card(other.ids[row], "", False, "", f"{names[0]} → {names[1]}", f"true: {true}", [view])
    return Card(other.ids[row], "", False, "", f"{scores[0]:.2f} → {scores[1]:.2f}", _unit(other), [view])
