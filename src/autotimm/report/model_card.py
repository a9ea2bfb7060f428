"""The model card of a run, the ``README.md`` of its repository on a hub: what its record says, and what it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotimm.errors import number, printable
from autotimm.image_size import height_and_width
from autotimm.report.page import headline_of
from autotimm.report.page_parts import SPLIT_NAMES, templates_of
from autotimm.report.run_facts import RunFacts, read_run
from autotimm.types import DataSpec

__all__ = ["as_code", "model_card"]

_MOST_CLASSES = 200
_UNKNOWN = "unknown"


def model_card(
    folder: Path, spec: DataSpec, *, name: str, ckpt: str = "best", repository: str | None = None,
    license_id: str | None = None,
) -> str:  # fmt: skip
    """The card of a classifier, as Markdown with front matter.

    The same run gives the same text on every machine. No path of the machine is in it.

    Args:
        folder: The run folder.
        spec: What the model knows of its data.
        name: The heading.
        ckpt: The checkpoint of the weights, as ``--ckpt`` takes it; the record has results of ``best`` alone.
        repository: Where the model will be, as ``owner/name``; ``None`` for a folder on this machine.
        license_id: The id of its license; ``None`` if nobody said it.

    Raises:
        ModelError: If the folder is no run, or a file of it is damaged.
    """
    facts = read_run(folder)
    manifest = facts.manifest
    best = ckpt == "best"
    # Not escaped as HTML, which Markdown would show: each text of others goes through `as_code` instead.
    text = templates_of("autotimm.report", escaped=False).get_template("model_card.md").render(
        license=license_id or _UNKNOWN, name=as_code(name),
        backbone=as_code(facts.value("backbone") or "a timm backbone"),
        task="Image classification, several labels per image," if spec.multi_label else "Image classification",
        version=_versions(facts).get("autotimm", "of an unknown version"), run_id=manifest.run_id,
        digest=manifest.digest, address=f"hf-hub:{repository}" if repository else "local-dir:DIR",
        outputs=_outputs(facts, spec), results=list(_results(facts)) if best else [],
        ckpt="" if best else f" --ckpt {ckpt}", classes=list(_classes(facts, spec)), facts=list(_facts(facts, spec)),
        limits=list(_limits(facts, best)), license_text=_license(license_id),
    )  # fmt: skip
    return f"{text.rstrip()}\n"


def as_code(text: object) -> str:
    r"""A text as a code span of Markdown, in which nothing has a meaning: no link, no HTML, no emphasis, no mention.

    Example:
        >>> print(as_code("<b>cat</b>"), as_code("a`b"), as_code("two\nlines"))
        `<b>cat</b>` ``a`b`` `two\nlines`
    """
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # One space within each fence is no part of the text; without it a text could not begin with a backtick.
    pad = " " if not shown.strip() or shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _license(license_id: str | None) -> str:
    if license_id is None:
        return "Unknown: nobody has said under which license the model may be used."
    return f"{as_code(license_id)}, as whoever published the model says."


def _outputs(facts: RunFacts, spec: DataSpec) -> str:
    """What the logits mean, which timm does not know."""
    function = "sigmoid" if spec.multi_label else "softmax"
    text = f"Its outputs are logits in the order of the classes below; {function} gives scores."
    if facts.calibration is None:
        return text
    return (
        f"{text} `autotimm predict` divides the logits by a fitted temperature first, and may have a threshold for "
        "each class: both are in `export.json`, since timm has no place for them."
    )


def _results(facts: RunFacts) -> Iterator[tuple[str, str, str, str]]:
    """Metric, value, interval and images: the figure of the report first, then what the run measured itself."""
    for split in ("test", "val", "folds"):
        evidence = facts.evidence.get(split)
        if evidence is not None and len(evidence):
            headline = headline_of(evidence, facts.seed)
            figure = headline.figure
            interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.has_interval else "not computed"
            yield f"{headline.title}, {SPLIT_NAMES[split]}", f"{figure.value:.3f}", interval, f"{headline.samples:,}"
    for group, split in (("test", "test"), ("best", "val")):  # of results.json
        values = facts.results.get(group)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if re.fullmatch(rf"{split}/\w+", name, re.ASCII) and math.isfinite(number(value)):
                yield as_code(name), f"{value:.4f}", "not computed", f"{facts.samples.get(split, 0):,}"


def _classes(facts: RunFacts, spec: DataSpec) -> Iterator[str]:
    for name in spec.class_names[:_MOST_CLASSES]:
        counts = facts.classes.get(name, {})
        said = ", ".join(f"{counts.get(split, 0):,} {split}" for split in facts.samples)
        yield f"{as_code(name)}: {said} images" if said else as_code(name)
    if (rest := len(spec.class_names) - _MOST_CLASSES) > 0:
        yield f"and {rest:,} more, see `label_names` in `config.json`"


def _facts(facts: RunFacts, spec: DataSpec) -> Iterator[tuple[str, str]]:
    inputs = facts.manifest.inputs
    yield "Images", ", ".join(f"{count:,} {split}" for split, count in facts.samples.items()) or "not recorded"
    data = inputs.get("data", {})
    yield "Digest of the data", as_code(data.get("digest") or "not recorded")
    yield "Digest of the splits", as_code(inputs.get("splits") or "not recorded")
    height, width = height_and_width(spec.image_size)
    yield "Input", f"{spec.in_chans} channels, {height} × {width} pixels"
    weights = facts.manifest.decisions.get("weights")
    yield "Weights at the start", _weights(weights) if isinstance(weights, Mapping) else "not recorded"
    yield "Epochs", f"{len(facts.epochs):,}"
    yield "Seed", str(facts.seed)
    yield "Versions", ", ".join(f"{name} {as_code(version)}" for name, version in _versions(facts).items())


def _weights(weights: Mapping[str, Any]) -> str:
    digest = weights.get("sha256")
    return as_code(weights["source"]) if digest is None else f"pretrained, sha256 {as_code(digest)}"


def _versions(facts: RunFacts) -> dict[str, str]:
    recorded: Any = facts.manifest.environment.get("versions", {})
    shown = {name: recorded.get(name) for name in ("autotimm", "torch", "timm")}
    return {name: version for name, version in shown.items() if isinstance(version, str) and _is_version(version)}


def _is_version(text: str) -> bool:
    return re.fullmatch(r"[\w.+!-]{1,60}", text, re.ASCII) is not None


def _limits(facts: RunFacts, best: bool) -> Iterator[str]:
    """What was not measured, and what weakens what was."""
    status = facts.manifest.results.get("status")
    if status != "finished":
        yield f"The run is not finished: its status is {as_code(status or _UNKNOWN)}."
    if not best:
        yield "These weights are not those of the best epoch: the run's results are of others and are not shown."
    else:
        if not facts.results.get("test"):
            yield "Not measured on test images."
        yield (
            "No image was left for validation: the weights are those after the last epoch."
            if facts.samples and "val" not in facts.samples
            else "The weights are those of the epoch that was best on the validation images, so that results on these "
            "are somewhat optimistic."
        )
    if best and not facts.evidence:
        yield "The run keeps no predictions, or they are damaged: there are no intervals."
    if facts.manifest.changed_files:
        yield "Files changed while the run trained: the digests do not hold for what it has read."
    yield "Trained once, with one seed: how much results vary between seeds is not measured."
    yield (
        "Not measured: images of other sources than these, images of none of the classes, differences between groups "
        "of people or places, robustness to noise and to attacks, speed."
    )
