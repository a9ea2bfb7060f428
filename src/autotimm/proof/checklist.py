"""Texts of an archive for people: the page with the two commands, and answers to the questions of a checklist.

The questions are those of the NeurIPS paper checklist on splits, hyper-parameters, error bars and compute. Every answer
is made of the record; what it does not say is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autotimm.config.byte_size import written_bytes
from autotimm.records.commitment import commitment_of
from autotimm.records.compute import compute_lines
from autotimm.report.model_card import as_code
from autotimm.report.page import evidence_of, headline_of
from autotimm.report.page_parts import SPLIT_NAMES
from autotimm.report.run_facts import RunFacts

__all__ = ["checklist_text", "readme_text"]

_ARCHIVE = {
    "run/": "the record of the run, its checkpoints and weights",
    "run/files.csv": "id and SHA-256 of every image; the images are not here",
    "run/splits.csv": "the split of every image",
    "evidence/": "ids, scores and targets of the held-out images",
    "report.html": "a page about the run",
    "requirements.txt": "the environment, for pip and uv",
    "wheels/": "autotimm",
    "code/": "the commit of the project, and what was changed since",
    "checklist.md": "splits, hyper-parameters, error bars and compute",
    "bom.cdx.json": "a bill of materials (CycloneDX)",
    "ro-crate-metadata.json": "a description for machines (RO-Crate, Process Run Crate)",
}


def readme_text(facts: RunFacts, names: Iterable[str], *, sealed: bool, notices: Iterable[str]) -> str:
    """The page of an archive.

    Args:
        facts: The run.
        names: The files of the archive.
        sealed: Whether the run in it is sealed.
        notices: What a reader must know.
    """
    names = list(names)
    contents = [
        f"| `{name}` | {what} |" for name, what in _ARCHIVE.items() if any(each.startswith(name) for each in names)
    ]
    key = " --key key.pub" if sealed else ""
    lines = [
        f"# A run of autotimm, {facts.manifest.run_id}", "",
        "Install into a new environment, then verify: every step is computed again and compared with the record.",
        "", "```bash", "pip install -r requirements.txt", f"autotimm verify run --data IMAGES{key}", "```", "",
        "`IMAGES` is the folder or the table of the images, which are not in this archive; `run/files.csv` has the "
        "SHA-256 of each. `identical` means that every bit agrees. It can be expected on hardware of the same "
        f"kind: {_machine(facts)}.", "",
        *(["`key.pub` is the public key of whoever sealed the run. It is not here: get it from elsewhere.", ""]
          if sealed else []),
        *(f"- {line}" for line in notices), *([""] if notices else []), "| file | content |", "| --- | --- |",
        *contents,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def checklist_text(facts: RunFacts) -> str:
    """Answers to the questions of a checklist."""
    parts: list[tuple[str, list[str]]] = [
        ("Are the data splits specified?", list(_splits(facts))),
        ("Are the hyper-parameters specified, and how they were chosen?", list(_settings(facts))),
        ("Are there error bars?", list(_intervals(facts))),
        ("What did it need to compute?", list(_compute(facts))),
        ("Can the result be reproduced?", list(_claims(facts))),
    ]
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in parts)
    return f"# Checklist\n\nAnswers from the record of the run `{facts.manifest.run_id}`.\n\n{text}\n"


def _splits(facts: RunFacts) -> Iterator[str]:
    inputs = facts.manifest.inputs
    sizes = ", ".join(f"{count:,} {split}" for split, count in facts.samples.items())
    yield f"Images: {sizes or 'not recorded'}. `run/splits.csv` lists the split of each."
    data, split = inputs.get("data", {}).get("digest"), inputs.get("splits")
    yield f"Digest of the data {as_code(data)}, of the split {as_code(split)}."
    shares = [f"{name} {facts.value(name)}" for name in ("val_split", "test_split") if facts.value(name)]
    seed = inputs.get("seeds", {}).get("data")
    if shares:
        said = ", ".join(shares)
        yield f"Set aside from the training images: {said}, with the seed {seed}; 0 where the data has its own."
    if "test" not in facts.results:
        yield "There is no measurement on test images. The best epoch was chosen by the validation images."


def _settings(facts: RunFacts) -> Iterator[str]:
    for setting in facts.settings:
        if not setting.is_default:
            yield f"{as_code(setting.name)}: {as_code(setting.value)} ({as_code(setting.source)})"
    recipe = facts.manifest.decisions.get("recipe")
    if isinstance(recipe, Mapping):
        yield f"Chosen by the recipe: {as_code(recipe.get('reason', ''))}"
    yield "All others have their defaults, see `run/config.yaml`, which names the source of each."
    yield "How often other values were tried before this run, the record cannot say."


def _intervals(facts: RunFacts) -> Iterator[str]:
    evidence = evidence_of(facts)
    if evidence is None:
        yield "No: the run has no evidence of held-out images."
    else:
        headline = headline_of(evidence, facts.seed)
        figure = headline.figure
        yield f"{headline.title}: {figure.value:.4f} on {headline.samples:,} {SPLIT_NAMES[evidence.split]} images."
        if figure.has_interval:
            yield f"95 % interval: {figure.low:.4f} to {figure.high:.4f}, over the images."
        else:
            yield "No interval: all images have the same result, so that resampling them says nothing."
    yield f"One seed ({facts.seed}): the interval does not cover the variation between seeds, see `autotimm study`."


def _compute(facts: RunFacts) -> Iterator[str]:
    yield f"Machine: {_machine(facts)}, {facts.manifest.environment.get('threads')} threads."
    lines = compute_lines(facts.manifest.volatile)
    yield from (f"{name}: {text}" for name, text in lines)
    if not any(name.startswith("Energy") for name, _ in lines):
        yield "Energy: the machine did not tell."
    weights = facts.folder / "model.safetensors"
    if weights.is_file():
        yield f"Size of the weights: {written_bytes(weights.stat().st_size)}"
    yield "What earlier, failed or other runs needed, the record cannot say."


def _claims(facts: RunFacts) -> Iterator[str]:
    yield "`autotimm verify` computes the run again and compares every step."
    yield from (f"{level}: {as_code(claim)}" for level, claim in facts.levels.items())
    committed = facts.manifest.decisions.get("commitment")
    if committed:
        plan = commitment_of(facts.manifest).plan
        yield f"Committed to before the first step: {as_code(committed)}, plan {as_code(plan)}."


def _machine(facts: RunFacts) -> str:
    hardware: Mapping[str, Any] = facts.manifest.environment.get("hardware", {})
    devices = ", ".join(map(str, hardware.get("devices") or []))
    parts = [hardware.get("cpu"), hardware.get("instructions"), devices, hardware.get("system")]
    return ", ".join(as_code(part) for part in parts if part)
