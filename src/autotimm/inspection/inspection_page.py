"""The page of an inspection: what the data are, what was found, and thumbnails of the samples of each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from autotimm.data.file_facts import image_sizes
from autotimm.data.image_reading import reading_as, reading_of
from autotimm.data.table import Table
from autotimm.inspection.data_finding import MOST_CASES, Case, Finding, counted
from autotimm.report.class_colors import css_colors
from autotimm.report.content import Box, Card, NumberTable, View, shortened
from autotimm.report.page import render
from autotimm.report.pictures import Pictures

if TYPE_CHECKING:
    from autotimm.inspection.inspection import Inspection

__all__ = ["render_inspection"]

_MOST_CARDS = 36
_SIDE = 144
_SIDE_OF_WHOLE = 320
_KINDS = {"classes": "images with classes", "boxes": "objects in boxes", "instances": "objects with masks",
          "pixels": "a class per pixel"}  # fmt: skip


class _Shown(NamedTuple):
    """A finding on the page."""

    anchor: str
    title: str
    severity: str
    text: str
    cure: str
    cards: Sequence[Card]
    names: Sequence[str]
    is_cut: bool


def render_inspection(inspection: Inspection) -> str:
    """The page of an inspection, as HTML."""
    tables, spec = inspection.data.tables, inspection.data.spec
    objects = inspection.kind in ("boxes", "instances")
    pictures = Pictures(tables, _SIDE_OF_WHOLE if objects else _SIDE, square=not objects)
    with reading_as(reading_of(spec)):
        shown = [_shown(finding, tables, pictures, objects) for finding in inspection.findings]
    splits = list(inspection.samples)
    rows = [[name, *(inspection.classes[split].get(name, 0) for split in splits)] for name in spec.class_names]
    classes, left_out = shortened(NumberTable(["class", *splits], rows, {}))
    warnings, total = len(inspection.warnings), len(inspection.findings)
    return render(
        "inspect.html", pictures, title=f"{inspection.name} · autotimm inspect", name=inspection.name,
        kind=_KINDS[inspection.kind].capitalize(), facts=_facts(inspection), findings=shown, classes=classes,
        classes_text=f"How many {inspection.unit} there are of each class. {left_out}".strip(),
        notices=inspection.notices, warnings=counted(warnings, "warning"), notes=counted(total - warnings, "note"),
        cards_kind="pairs" if objects else "", left_out=pictures.left_out,
    )  # fmt: skip


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    facts = [("Images", ", ".join(f"{count:,} {split}" for split, count in inspection.samples.items()))]
    facts.append(("Classes", f"{inspection.data.num_classes:,}"))
    if inspection.sizes is not None and len({*inspection.sizes}) == 1:
        facts.append(("Size", "{} × {} px".format(*inspection.sizes.median)))
    elif inspection.sizes is not None:
        for name, (width, height) in inspection.sizes._asdict().items():
            facts.append((name.capitalize(), f"{width} × {height} px"))
    return facts


def _shown(finding: Finding, tables: Mapping[str, Table], pictures: Pictures, objects: bool) -> _Shown:
    with_pictures = [case for case in finding.cases if case.split]
    names = [case.id for case in finding.cases if not case.split and case.id not in finding.sentence]
    cards = [_card(case, tables[case.split], pictures, objects) for case in with_pictures[:_MOST_CARDS]]
    title = finding.check.replace("_", " ").capitalize()
    cut = len(with_pictures) > len(cards) or len(finding.cases) == MOST_CASES
    return _Shown(finding.check, title, finding.severity, finding.sentence, finding.cure, cards, names, cut)


def _card(case: Case, table: Table, pictures: Pictures, objects: bool) -> Card:
    picture, view = pictures.of_sample(case.split, case.id), View("", "")
    if objects:
        index = table.ids.index(case.id)
        files = table.files()
        size = image_sizes(files[index : index + 1], progress=False).get(files[index]) if files else None
        if size is not None:
            view = View("", picture, boxes=_boxes(table, index, size, case.objects), ratio=size[0] / size[1])
    else:
        view = View("", picture)
    return Card(case.id, "", False, "", case.note or case.split, case.split if case.note else "", [view])


def _boxes(table: Table, index: int, size: tuple[int, int], rows: Sequence[int]) -> list[Box]:
    """The boxes of some objects of a sample, or of all."""
    objects, colors, (width, height) = table.objects(index), css_colors(table.class_names), size
    if objects is None:
        return []
    boxes = []
    for row in rows or range(len(objects.labels)):
        (x1, y1, x2, y2), label = objects.boxes[row].tolist(), int(objects.labels[row])
        left, top = round(100 * x1 / width, 2), round(100 * y1 / height, 2)
        share = round(100 * (x2 - x1) / width, 2), round(100 * (y2 - y1) / height, 2)
        boxes.append(Box(left, top, *share, colors[label], table.class_names[label], False))
    return boxes
