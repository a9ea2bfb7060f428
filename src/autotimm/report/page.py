"""The page of a run: everything it shows is read from the run folder, and the pictures from the data."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

import autotimm
from autotimm.constants import VIEWS
from autotimm.data.table import Table
from autotimm.errors import RunError
from autotimm.evidence import Evidence
from autotimm.records.atomic import write_text
from autotimm.records.checked_levels import LEVELS
from autotimm.records.compute import compute_lines
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.records.run_folder import FOLDS, RECIPE, VIEWED, name_of_weights
from autotimm.report.charts import Line, epoch_chart
from autotimm.report.class_content import class_content, class_headline
from autotimm.report.content import Content, Headline, NumberTable, Panel, shortened
from autotimm.report.object_content import object_content, object_headline
from autotimm.report.page_parts import SPLIT_NAMES, TASK_NAMES, inlined, templates_of, without_surrogates
from autotimm.report.pictures import Pictures
from autotimm.report.pixel_content import pixel_content, pixel_headline
from autotimm.report.run_facts import RunFacts, read_run
from autotimm.report.written_page import REPORT, Report

__all__ = ["curves", "evidence_of", "headline_of", "render", "write_report"]

_CARDS = {"classes": "", "boxes": "pairs", "instances": "pairs", "pixels": "quads"}
_COSTS = ("Wall time", "Peak memory", "Peak memory of a GPU", "Energy of the processors", "Energy of the GPUs")
_MOST_CURVES = 9
_MOST_FIGURES = 3
_MOST_POINTS = 300


def write_report(
    folder: Path, tables: Mapping[str, Table] | None = None, out: str | Path | None = None,
    facts: RunFacts | None = None, views: bool = True,
) -> Report:  # fmt: skip
    """Make the page of a run, and the tables of its charts.

    Args:
        folder: The run folder.
        tables: The samples of each split, for pictures; without them the page has none.
        out: The file of the page alone, without the tables; by default both are in the run folder.
        facts: What the folder says, if it was read already.
        views: Whether samples are drawn at all: maps, boxes and masks show what is in an image, also without it.

    Raises:
        ModelError: If a file of the run is damaged.
        RunError: If the page cannot be written.
    """
    facts = facts or read_run(folder)
    evidence = evidence_of(facts)
    content = pictures = None
    if evidence is not None:
        pictures = _pictures(evidence, tables or {})
        content = _content(evidence, pictures, facts)
        if not views:
            content.cards, pictures = [card._replace(views=()) for card in content.cards], None
    page = render(
        "run.html", pictures, **_context(facts, evidence, content, has_pictures=bool(pictures and pictures.style))
    )
    path = folder / REPORT if out is None else Path(out)
    try:
        write_text(path, page)
        numbers = {} if content is None else dict(content.numbers)
        if (folds := fold_table(facts)) is not None:
            numbers["folds"] = [[*folds.titles], *map(list, folds.rows)]
        if numbers and out is None:
            (folder / "report").mkdir(exist_ok=True)
            for name, rows in numbers.items():
                write_text(folder / "report" / f"{name}.csv", csv_text(map(_cells, rows)))
    except OSError as error:
        raise RunError(f"The report {path} could not be written: {error.strerror}. Free some space.") from None
    return Report(path)


def _cells(row: Sequence[Any]) -> list[Any]:
    """A row whose texts no spreadsheet takes for formulas, and which is UTF-8: names of files need not be."""
    return [without_surrogates(safe_cell(value)) if isinstance(value, str) else value for value in row]


def evidence_of(facts: RunFacts) -> Evidence | None:
    """The evidence that a page is made of: that of the test if there was one, else of the validation, else of folds."""
    found = facts.evidence.get("test") or facts.evidence.get("val") or facts.evidence.get(FOLDS)
    return found if found is not None and len(found) else None


def headline_of(evidence: Evidence, seed: int) -> Headline:
    """The result in one figure, with its interval."""
    makers = {"classes": class_headline, "pixels": pixel_headline}
    return makers.get(evidence.kind, object_headline)(evidence, seed)


def _content(evidence: Evidence, pictures: Pictures, facts: RunFacts) -> Content:
    if evidence.kind == "pixels":
        return pixel_content(evidence, pictures, facts.seed)
    make = class_content if evidence.kind == "classes" else object_content
    return make(evidence, pictures, facts.seed, facts.calibration)


def _pictures(evidence: Evidence, tables: Mapping[str, Table]) -> Pictures:
    if evidence.kind != "classes":
        return Pictures(tables, 360, square=False)
    # Smaller where there are many, so that a page stays light.
    side = 160 if len(evidence) <= 200 else 128 if len(evidence) <= 400 else 96
    return Pictures(tables, side, square=True)


# The page


def render(template: str, pictures: Pictures | None = None, **context: Any) -> str:
    """A page of a template, with its style and script in it."""
    environment = templates_of("autotimm.report")
    (style, _), (script, digest) = (inlined(environment, name) for name in ("style.css", "page.js"))
    page = environment.get_template(template).render(
        style=style, script=script, script_digest=digest, version=autotimm.__version__,
        picture_style=Markup(pictures.style) if pictures is not None else "", **context,
    )  # fmt: skip
    return without_surrogates(page)


def _context(
    facts: RunFacts, evidence: Evidence | None, content: Content | None, *, has_pictures: bool
) -> dict[str, Any]:
    """The values of the template of a run."""
    panels, folds = curves([facts]), fold_table(facts)
    parts = {
        "folds": folds is not None, "training": bool(panels),
        "classes": content is not None, "confusion": content is not None and content.matrix,
        "confidence": content is not None and (content.panels or content.tables),
        "images": content is not None and content.cards, "data": True, "settings": True, "claims": True,
    }  # fmt: skip
    recipe = facts.manifest.decisions.get("recipe")
    samples, rest = _samples(facts)
    if content is not None:
        content.classes, left_out = shortened(content.classes)
        content.classes_text = f"{content.classes_text} {left_out}".strip()
    return {
        "title": f"{facts.name} · autotimm report", "name": facts.name, "content": content, "curves": panels,
        "folds": folds, "folds_text": _folds_text(facts),
        "task": TASK_NAMES[evidence.kind].capitalize() if evidence is not None else "Run", "claim": _claim(facts),
        "facts": _facts(facts, evidence),
        "sections": [(name, name.capitalize()) for name, there in parts.items() if there],
        "problems": facts.problems, "training_text": _training_text(facts), "has_pictures": has_pictures,
        "cards_kind": _CARDS[evidence.kind] if evidence is not None else "",
        "data_text": f"{_data_text(facts)} {rest}".strip(),
        "samples": samples, "notices": facts.notices,
        "recipe": recipe.get("reason", "") if isinstance(recipe, Mapping) else "",
        "decided": [each for each in facts.settings if not each.is_default],
        "left": [each for each in facts.settings if each.is_default], "levels": _levels(facts),
        "command_path": shlex.quote(str(facts.folder)),
    }  # fmt: skip


def _claim(facts: RunFacts) -> str:
    """What the run may claim, in one sentence."""
    by_state: dict[str, list[str]] = {}
    for level, _, state, _ in _levels(facts):
        by_state.setdefault(state, []).append(level)
    checked = [level for level in by_state.get("checked", []) if level != "R0"]
    said = []
    if checked:
        said.append(f"{', '.join(checked)} {'was' if len(checked) == 1 else 'were'} checked by replaying it")
    if expected := by_state.get("expected"):
        said.append(f"{', '.join(expected)} {'is' if len(expected) == 1 else 'are'} expected and not yet checked")
    status = facts.manifest.results.get("status")
    begun = "" if status == "finished" else f"The run is {status}. "
    if not said:
        return f"{begun}The run makes no claim to be repeatable bit for bit."
    return f"{begun}Of the levels of reproducibility, {'; '.join(said)}."


def _levels(facts: RunFacts) -> list[tuple[str, str, str, str]]:
    """Level, meaning, state and reason."""
    rows = []
    for level, meaning in LEVELS.items():
        claim = facts.levels.get(level, "no, because nothing is recorded of it")
        state, _, reason = claim.partition(" ")
        rows.append((level, meaning, state.rstrip(","), reason))
    return rows


def _facts(facts: RunFacts, evidence: Evidence | None) -> list[tuple[str, str]]:
    """The few facts at the top of the page."""
    splits = ", ".join(f"{count:,} {split}" for split, count in facts.samples.items())
    rows = [("Network", facts.value("backbone") or facts.value("model").rpartition(".")[-1])]
    arch = facts.value("arch")
    if arch not in ("", "auto") and evidence is not None and evidence.kind != "classes":
        rows[0] = (rows[0][0], f"{rows[0][1]}, {arch}")
    rows.append(("Weights at the start", _weights(facts)))
    if kept := _kept(facts):
        rows.append(("Weights kept", kept))
    rows.append(("Images", splits))
    if evidence is not None:
        rows.append(("Classes", f"{len(evidence.class_names):,}"))
    rows.append(("Image size", f"{size} px" if (size := facts.value("image_size")) else ""))
    if facts.epochs:
        rows.append(("Trained", f"{len(facts.epochs)} epoch{'' if len(facts.epochs) == 1 else 's'}"))
    rows += [(title, text) for title, text in _other_result(facts, evidence)]
    rows += _results_of_views(facts)
    rows += [line for line in compute_lines(facts.manifest.volatile) if line[0] in _COSTS]
    return [(label, value) for label, value in rows if value]


def _weights(facts: RunFacts) -> str:
    weights = facts.manifest.decisions.get("weights")
    source = weights.get("source") if isinstance(weights, Mapping) else None
    words = {"file": "pretrained, from a file", "random": "random"}
    return "" if source is None else words.get(str(source), f"pretrained, from {source}")


def _other_result(facts: RunFacts, evidence: Evidence | None) -> list[tuple[str, str]]:
    """The validation's figure beside that of a test."""
    other = facts.evidence.get("val") if evidence is not None and evidence.split == "test" else None
    if other is None or not len(other):
        return []
    headline = headline_of(other, facts.seed)
    return [(f"{headline.title} in validation", str(headline.figure))]


def _results_of_views(facts: RunFacts) -> list[tuple[str, str]]:
    """What tests of several views of each image have measured, each figure beside that of one look."""
    measured, once = facts.results.get(VIEWED, {}), facts.results.get("test", {})
    rows = []
    for views in (name for name in VIEWS if name in measured):
        found = measured[views]["test"]
        figures = []
        for metric in _main_metrics(found)[:_MOST_FIGURES]:
            beside = f" (once {once[metric]:.4f})" if metric in once else ""
            figures.append(f"{metric.rpartition('/')[2]} {found[metric]:.4f}{beside}")
        rows.append((f"Test of several views, {views}", ", ".join(figures)))
    return rows


def _main_metrics(names: Collection[str]) -> list[str]:
    """The metrics that are no part of another, as ``test/accuracy_cat`` is of ``test/accuracy``."""
    return [name for name in names if not any(name.startswith(f"{other}_") for other in names)]


def fold_table(facts: RunFacts) -> NumberTable | None:
    """The metrics of each fold, their mean and their standard deviation; ``None`` for a run without folds."""
    rows: Mapping[str, Mapping[str, float]] = facts.results.get(FOLDS, {})
    if not rows:
        return None
    names = list(rows.get("mean", {}))
    folds = sorted(rows.keys() - {"mean", "std"}, key=lambda name: (len(name), name))  # 2 before 10
    table = []
    for name in (*folds, *(name for name in ("mean", "std") if name in rows)):
        title = "standard deviation" if name == "std" else name
        table.append([title, *map(rows[name].get, ("images", "epoch", *names))])
    return NumberTable(["fold", "images", "best epoch", *names], table, {})


def _folds_text(facts: RunFacts) -> str:
    """What the folds were, and what this run is besides."""
    text = (
        "Each fold is a run of its own, validated on its part of the training images and trained on all others. Its "
        "weights are those of its best epoch, so that its figures are somewhat optimistic."
    )
    if "val" in facts.samples:
        return f"{text} This run has trained on all of them, and is validated on the validation images of the data."
    return f"{text} This run has trained on all of them, without validation, for the median of their best epochs."


def _kept(facts: RunFacts) -> str:
    """Which of its candidates a recipe has kept; empty for a run without one."""
    recipe = facts.results.get(RECIPE)
    kept = str(recipe.get("kept", "")) if isinstance(recipe, Mapping) else ""
    if not re.fullmatch(r"\d{1,9}(\+\d{1,9})*", kept):  # it is a file's
        return ""
    return name_of_weights([*map(int, kept.split("+"))])


def _training_text(facts: RunFacts) -> str:
    """Which weights were kept, and what that means for the result on the page."""
    evidence, best, kept = evidence_of(facts), _best_epoch(facts), _kept(facts)
    if best is None and not kept:
        return ""
    if evidence is not None and evidence.split == FOLDS:
        return "The weights after the last epoch were kept. The classes and images below are those of the folds."
    text = f"The weights of {kept or f'epoch {best}'} were kept" + (", the dashed line." if best is not None else ".")
    if evidence is not None and evidence.split == "val" and len(facts.epochs) > 1:
        text += " They are the best on the validation images, so that the result on these is somewhat optimistic."
    return text


def curves(runs: Sequence[RunFacts]) -> list[Panel]:
    """Small multiples of what was measured each epoch; several runs share a chart."""
    names_of: dict[str, list[str]] = {}  # by title: a loss in training and in validation are in one chart
    for name in dict.fromkeys(name for facts in runs for epoch in facts.epochs for name in epoch.values):
        if name != "step":
            names_of.setdefault(name.partition("/")[2] or name, []).append(name)
    order = sorted(names_of, key=lambda title: (title != "loss", title == "lr"))  # the loss first, the rate last
    best = _best_epoch(runs[0]) if len(runs) == 1 else None
    panels = []
    for title in order[:_MOST_CURVES]:
        lines = _lines(runs, names_of[title])
        label = "learning rate" if title == "lr" else title.replace("_", " ")
        legend = [line.label for line in lines]
        # Without a legend: in the color that validation has beside training.
        lone = legend == ["validation"]
        label += ", validation" if lone else ""
        panels.append(Panel(label, epoch_chart(f"{label} over epochs", lines, best, int(lone)), legend, "", ""))
    return panels


def _lines(runs: Sequence[RunFacts], names: Sequence[str]) -> list[Line]:
    """A line for each run and metric that has any value."""
    lines = []
    for facts in runs:
        epochs = facts.epochs[:: max(1, len(facts.epochs) // _MOST_POINTS)]
        for name in names:
            points = [(epoch.number, epoch.values.get(name, math.nan)) for epoch in epochs]
            if all(math.isnan(value) for _, value in points):
                continue
            side = {"train": "training", "val": "validation"}.get(name.partition("/")[0], name)
            lines.append(Line(side if len(runs) == 1 else f"{facts.name}, {side}", points))
    return lines


def _best_epoch(facts: RunFacts) -> int | None:
    """The epoch whose metrics are those of the best one."""
    best = facts.results.get("best", {})
    if not best:
        return None
    for epoch in facts.epochs:
        if all(epoch.values.get(name) == value for name, value in best.items()):
            return epoch.number
    return None


def _data_text(facts: RunFacts) -> str:
    """How many samples there are and of what, and the range of their sizes where evidence has them."""
    total, source = sum(facts.samples.values()), _source(facts)
    said = f"{total:,} samples{f' of {source}' if source else ''}." if total else ""
    evidence = evidence_of(facts)
    sizes = evidence.arrays.get("sizes") if evidence is not None else None
    if evidence is not None and sizes is not None:
        smallest, largest = sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()
        height, width = largest
        text = f"{width} × {height}"
        if smallest != largest:
            height, width = smallest
            text = f"{width} × {height} to {text}"
        said += f" The {SPLIT_NAMES[evidence.split]} images have {text} pixels."
    return said or "The run was made from loaders of your own: nothing is recorded of their samples."


def _source(facts: RunFacts) -> str:
    """What the samples were read from; empty if it is not recorded."""
    for name in ("path", "train_csv", "dataset_name", "data_dir"):
        if (value := facts.value(name)) not in ("", "none", "None"):
            return value
    return ""


def _samples(facts: RunFacts) -> tuple[NumberTable | None, str]:
    """The samples by class and split, and a sentence on classes that are not shown."""
    if not facts.classes:
        return None, ""
    splits = list(facts.samples)
    rows = [[name, *(counts.get(split, 0) for split in splits)] for name, counts in facts.classes.items()]
    return shortened(NumberTable(["class", *splits], rows, {}))
