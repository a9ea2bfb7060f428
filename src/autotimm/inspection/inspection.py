"""Inspect data before training: read them as ``fit`` does, look at every image once, and say what is wrong."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig
from autotimm.data.data_facts import Summary, summarize
from autotimm.data.doubt import Doubt
from autotimm.data.image_reading import reading_as, reading_of
from autotimm.data.module import DataModule
from autotimm.errors import UsageError
from autotimm.inspection.class_checks import amounts_of, check_balance, check_mirrored_classes, check_splits
from autotimm.inspection.data_finding import Case, Finding, SizeRange, finding_of
from autotimm.inspection.duplicates import check_duplicates
from autotimm.inspection.image_checks import check_exif, check_looks, check_sizes, size_range
from autotimm.inspection.inspection_page import render_inspection
from autotimm.inspection.label_checks import check_labels, require_cleanlab
from autotimm.inspection.looks import looks_of
from autotimm.inspection.preview import write_preview
from autotimm.inspection.target_checks import check_boxes, check_pixels
from autotimm.records.atomic import write_text
from autotimm.runs.factory import settle_data
from autotimm.runs.output_paths import require_new_file
from autotimm.runs.run import Run

__all__ = ["Inspection", "inspect_config", "inspect_data"]

_OWNER = "inspect"


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set; printed, it is a text for people.

    Attributes:
        name: The name of the data.
        kind: What the targets are, see :class:`autotimm.types.DataSpec`.
        findings: What was found, warnings first.
        notices: What reading the data said besides.
        samples: The number of images of each split.
        classes: How much there is of each class in each split, in class order.
        unit: Of what: ``images``, ``objects`` or ``pixels``.
        sizes: The smallest, the median and the largest image; ``None`` if no size is known.
        data: The data that were inspected.
    """

    name: str
    kind: str
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]
    samples: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    unit: str
    sizes: SizeRange | None
    data: DataModule = field(repr=False, compare=False)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that make a training or its figures worse."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def summary(self) -> Summary:
        """The samples per class and split as a rich table."""
        title = f"{self.name}: {sum(self.samples.values()):,} images, {self.data.num_classes} classes"
        return summarize(self.data.tables, title, [])

    def remarks(self) -> list[str]:
        """The range of sizes, and what reading said, one sentence each."""
        if self.sizes is None:
            return [*self.notices]
        smallest, median, largest = (f"{width} x {height}" for width, height in self.sizes)
        several = f"Images have {smallest} to {largest} pixels, median {median}."
        return [f"All images have {median} pixels." if smallest == largest else several, *self.notices]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "name": self.name, "kind": self.kind, "samples": dict(self.samples), "unit": self.unit,
            "classes": {split: dict(amounts) for split, amounts in self.classes.items()},
            "sizes": None if self.sizes is None else dict(self.sizes.as_dict()), "notices": list(self.notices),
            "findings": [finding.as_dict() for finding in self.findings],
        }  # fmt: skip

    def page(self) -> str:
        """One self-contained HTML page, with thumbnails of the samples of each finding."""
        return render_inspection(self)

    def write_page(self, path: str | Path) -> Path:
        """Write the page to a new file.

        Raises:
            UsageError: If there is a file already, or no folder for it.
        """
        require_new_file(str(path), "html", _OWNER)
        write_text(Path(path), self.page())
        return Path(path)

    def write_preview(self, path: str | Path) -> Path:
        """Write a PNG of the first augmented training samples, see :func:`autotimm.inspection.preview.write_preview`.

        Raises:
            UsageError: If there is a file already, or no folder for it.
        """
        return write_preview(self.data, path)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for a notebook."""
        frame = 'style="width:100%;height:760px;border:1px solid #8884;border-radius:8px"'
        return f'<iframe sandbox="allow-scripts" {frame} srcdoc="{html.escape(self.page(), quote=True)}"></iframe>'

    def __str__(self) -> str:
        """The samples per class and split, and a line per finding."""
        lines = [f"{finding.severity}: {finding.sentence} {finding.cure}" for finding in self.findings]
        return "\n".join([str(self.summary()), *self.remarks(), *lines])


def inspect_data(data: str | Path | DataModule, *, run: str | Path | None = None, **options: Any) -> Inspection:
    """Inspect data as ``fit`` reads them, before training.

    Every image is looked at once; what was measured is cached, as the other facts of files are.

    Args:
        data: A folder or table, as for :func:`autotimm.fit`, or a data module.
        run: The folder of a run that was trained on these data: its predictions for the validation images, or those of
            its folds for all training images, show labels that are probably wrong. Needs the extra ``inspect``.
        options: Fields of :class:`autotimm.FitConfig` that say how data are read, such as ``task`` or ``image_size``.

    Raises:
        UsageError: If an option is wrong, or given with a data module; if the run was validated on other images.
        ModelError: If the run has no evidence.
        DataError: If the data cannot be used at all.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy import write_toy_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     inspection = inspect_data(write_toy_folder(folder, n=40), image_size=32)
        >>> inspection.findings, inspection.samples
        ((), {'train': 36, 'val': 4})
    """
    if not isinstance(data, DataModule):
        return inspect_config(FitConfig.from_options(data, options), run)
    if options:
        raise UsageError(f"The `{next(iter(options))}` of inspect_data has no effect on a data module. Leave it out.")
    return _inspect(data, run)


def inspect_config(config: FitConfig, run: str | Path | None = None, progress: bool = True) -> Inspection:
    """Inspect the data of a configuration.

    Args:
        config: The options of ``fit``; those that do not concern data have no effect.
        run: See :func:`inspect_data`.
        progress: Whether progress bars may appear.

    Raises:
        UsageError: If an option was given that has no effect on the task, or the run was validated on other images.
        ModelError: If the run has no evidence.
        DataError: If the data cannot be used at all.
    """
    if run is not None:
        require_cleanlab()  # before a large data set is read
    _, data = settle_data(config)
    return _inspect(data, run, progress)


def _inspect(data: DataModule, run: str | Path | None, progress: bool = True) -> Inspection:
    evidence = None
    if run is not None:
        require_cleanlab()
        evidence = Run(run).evidence()
    tables, kind = data.tables, data.spec.kind
    with reading_as(reading_of(data.spec)):
        looks = looks_of(tables, progress)
    findings = _doubts(data) + ([] if evidence is None else check_labels(evidence, tables))
    findings += check_duplicates(tables, looks)
    findings += check_looks(tables, looks)
    findings += check_sizes(tables, looks, data.image_size, kind, data.overlap is not None)
    if kind == "pixels":
        findings += check_pixels(tables, looks)
    elif kind != "classes":
        findings += check_boxes(tables)
    findings += check_mirrored_classes(data) + check_splits(tables) + check_balance(tables["train"])
    findings += check_exif(tables, looks, kind, data.ignore_exif)
    findings.sort(key=lambda finding: finding.severity != "warning")
    amounts = {split: amounts_of(table) for split, table in tables.items()}
    return Inspection(
        data.source_name, kind, tuple(findings), tuple(line for line in data.notices if not isinstance(line, Doubt)),
        {split: len(table) for split, table in tables.items()},
        {split: of_split for split, (of_split, _) in amounts.items()}, amounts["train"][1], size_range(looks), data,
    )  # fmt: skip


def _doubts(data: DataModule) -> list[Finding]:
    """What readers found wrong, as findings: it was looked for when the data were read."""
    split_of = {id: split for split, table in data.tables.items() for id in table.ids}
    findings = []
    for line in data.notices:
        if isinstance(line, Doubt):
            cases = [Case(name, split_of.get(name, "")) for name in line.names]
            findings += finding_of(line.check, "warning", str(line), line.cure, cases, line.total)
    return findings
