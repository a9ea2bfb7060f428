"""What a forger can do to a run folder: edit one value at a time, and compute all digests anew so that they fit.

A forger who knows the format computes whatever depends on the edited value: the id of the run, the chain of the ledger,
the digests of tables and checkpoints, and the digest of the manifest.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from autotimm.config import FitConfig, defaults, options
from autotimm.config.option import Option
from autotimm.config.record import said_sources
from autotimm.config.yaml import write_scalar
from autotimm.errors import UsageError
from autotimm.records.digest import config_digest, file_digest
from autotimm.records.ledger import Ledger, digest16
from autotimm.records.manifest import SECTIONS
from autotimm.records.sample_index import Content

Change = Callable[[Path], None]


class Edit(NamedTuple):
    """An edit of a run folder.

    Attributes:
        kind: The row of the table that it counts in.
        name: The value that it edits.
        change: Makes it, in a copy of the folder.
        signed: Whether all digests are computed anew afterwards.
    """

    kind: str
    name: str
    change: Change
    signed: bool

    def apply(self, run: Path, folder: Path) -> Path:
        """Make a forged copy of a run."""
        shutil.copytree(run, folder, copy_function=os.link)  # of checkpoints of some MB: edits replace files
        self.change(folder)
        if self.signed:
            sign(folder, self.name)
        return folder


def write(path: Path, content: bytes | str) -> None:
    """Replace a file, and leave the original that it may be a second name of."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# Digests


def sign(folder: Path, edited: str) -> None:
    """Compute all digests anew that depend on an edited value."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if edited.startswith(("files.csv", "splits.csv")):
        with (folder / "files.csv").open(newline="", encoding="utf-8") as file:  # whatever the forger calls its columns
            content = Content(tuple(row)[:2] for row in [*csv.reader(file)][1:])
        manifest["inputs"]["data"] = {"digest": content.digest, "samples": len(content)}
        manifest["inputs"]["splits"] = config_digest((folder / "splits.csv").read_text())
    if edited.startswith("config.yaml"):
        text = (folder / "config.yaml").read_text()
        manifest["results"]["sources"] = config_digest(said_sources(text))
    if edited.startswith("evidence/"):
        sign_evidence(folder, edited.partition(" ")[0])
    if edited.startswith("results.json"):
        best = json.loads((folder / "results.json").read_text()).get("best", {})
        manifest["results"]["metrics"] = {name: float(value).hex() for name, value in best.items()}
    manifest["run_id"] = config_digest(manifest["inputs"])[:16]
    last = chain(folder, None if edited.startswith("ledger.jsonl: start.run") else manifest["run_id"])
    if edited != "manifest.json: results.ledger":
        manifest["results"]["ledger"] = last
    moved = not edited.startswith("checkpoints/") and place_checkpoints(folder)
    if moved or edited.startswith("checkpoints/"):
        files = sorted((folder / "checkpoints").glob("*step-*.ckpt"))
        best = folder / "checkpoints" / "best.ckpt"  # a file of its own if it is calibrated
        files += [best] if best.name in (folder / "checkpoints" / "sha256.txt").read_text() else []
        write(folder / "checkpoints" / "sha256.txt", "".join(f"{file_digest(file)}  {file.name}\n" for file in files))
    write_manifest(folder, manifest)


def sign_evidence(folder: Path, file: str) -> None:
    """Write the digest of a file of evidence to where it is recorded."""
    digest = file_digest(folder / file)
    if file.endswith("test.safetensors"):
        results = json.loads((folder / "results.json").read_text())
        write(folder / "results.json", json.dumps(results | {"evidence": {"test": digest}}, indent=2) + "\n")
        return
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    lines[-1]["evidence"] = digest
    write(folder / "ledger.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def place_checkpoints(folder: Path) -> bool:
    """Write into the checkpoints the digests of the lines that they were written after; whether one was changed."""
    lines = (folder / "ledger.jsonl").read_bytes().splitlines() if (folder / "ledger.jsonl").exists() else []
    moved = False
    for file in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint = _loaded(file)
        place = checkpoint["callbacks"]["Recorder"]
        if place["lines"] <= len(lines) and place["last"] != digest16(lines[place["lines"] - 1]):
            written = lines[: place["lines"]]
            place = place | {"last": digest16(written[-1]), "bytes": sum(len(line) + 1 for line in written)}
            file.unlink()
            torch.save(checkpoint | {"callbacks": checkpoint["callbacks"] | {"Recorder": place}}, file)
            moved = True
    return moved


_LOADED: dict[tuple[int, int, int], dict[str, Any]] = {}


def _loaded(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, only to be read. Most copies are second names of one file, which is read once."""
    status = file.stat()
    if status.st_nlink == 1:
        return torch.load(file, weights_only=True)
    key = status.st_dev, status.st_ino, status.st_mtime_ns
    if key not in _LOADED:
        _LOADED[key] = torch.load(file, weights_only=True)
    return _LOADED[key]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    signed = {name: manifest[name] for name in ("schema", "run_id", *SECTIONS) if name != "volatile"}
    manifest["digest"] = config_digest(signed)
    write(folder / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def chain(folder: Path, run_id: str | None) -> str:
    """Chain the lines of a ledger anew, and return the digest of the last; as they are if one is no line at all."""
    path = folder / "ledger.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return ""
    path.unlink()
    ledger = Ledger(path)
    for line in lines:
        fields = {name: value for name, value in line.items() if name not in ("kind", "prev")}
        ledger.add(line["kind"], **fields | ({"run": run_id} if line["kind"] == "start" and run_id else {}))
    ledger.flush()
    return ledger.last


def all_edits(run: Path, stranger: Path) -> list[Edit]:
    """Every edit of a run; a stranger's run lends its files."""
    return [*manifest_edits(run), *config_edits(run), *ledger_edits(run), *file_edits(run, stranger)]


# Values


def other(value: Any, name: str = "") -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{'0' if value[:1] != '0' else '1'}{value[1:]}"
    if value is None:
        return 0.5 if name.startswith("decisions.recipe") else "forged"
    return ["forged"] if isinstance(value, list) else {"forged": 1}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield path
    for key, item in items:
        yield from leaves(item, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    at(data, path[:-1])[path[-1]] = value


def json_edits(run: Path, file: str) -> Iterator[tuple[str, Change]]:
    """Another value for each leaf of a JSON file."""
    content = json.loads((run / file).read_text())
    for path in leaves(content):
        name = ".".join(map(str, path))

        def change(folder: Path, path: tuple[Any, ...] = path, name: str = name) -> None:
            data = json.loads((folder / file).read_text())
            put(data, path, other(at(data, path), name))
            write(folder / file, json.dumps(data, indent=2, sort_keys=file == "manifest.json") + "\n")

        yield f"{file}: {name}", change


# Edits by kind

SETTINGS = re.compile(r"config\.yaml.*|manifest\.json \(.*|manifest\.json: (decisions|inputs\.config)\b.*")
"""The names of values that a replay is built from."""


def manifest_edits(run: Path) -> Iterator[Edit]:
    """Each value of the manifest; its own digests can only be edited raw."""
    for name, change in json_edits(run, "manifest.json"):
        kind = "settings" if SETTINGS.fullmatch(name) else "manifest"
        yield Edit(kind, name, change, False)
        if name not in ("manifest.json: run_id", "manifest.json: digest", "manifest.json: schema"):
            yield Edit(kind, name, change, True)


def ledger_edits(run: Path) -> Iterator[Edit]:
    """Each field of each kind of line, the lines as a whole, and invented ones."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    changes = dict(_field_edits(lines)) | dict(_line_edits(lines))
    for name, change in changes.items():
        yield Edit("ledger", name, change, False)
        if ".prev" not in name:
            yield Edit("ledger", name, change, True)


def _rewrite(edit: Callable[[list[Any]], list[Any] | None]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "ledger.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        edited = edit(lines)
        text = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in edited or lines)
        write(path, text)

    return change


def _field_edits(lines: list[dict[str, Any]]) -> Iterator[tuple[str, Change]]:
    for kind in dict.fromkeys(line["kind"] for line in lines):
        number = next(index for index, line in enumerate(lines) if line["kind"] == kind)
        for path in leaves(lines[number]):
            name = f"ledger.jsonl: {kind}.{'.'.join(map(str, path))}"
            yield name, _rewrite(lambda lines, n=number, path=path: put(lines[n], path, other(at(lines[n], path))))
            if at(lines[number], path) is not None and path != ("kind",):
                yield f"{name} (null)", _rewrite(lambda lines, n=number, path=path: put(lines[n], path, None))
            if path != ("kind",):
                yield f"{name} (removed)", _rewrite(lambda lines, n=number, path=path: _remove(lines[n], path))
        yield f"ledger.jsonl: {kind} (a field more)", _rewrite(lambda lines, n=number: lines[n].update(note="all well"))
    yield "ledger.jsonl: step.epoch (false)", _rewrite(lambda lines: lines[1].update(epoch=False))
    yield "ledger.jsonl: step.step (1.0)", _rewrite(lambda lines: lines[1].update(step=1.0))


def _remove(line: dict[str, Any], path: tuple[Any, ...]) -> None:
    del at(line, path[:-1])[path[-1]]


def _line_edits(lines: list[dict[str, Any]]) -> Iterator[tuple[str, Change]]:
    steps = [index for index, line in enumerate(lines) if line["kind"] == "step"]
    gap = {"kind": "gap", "prev": "", "step": 0, "reason": "damaged"}
    invented = [
        {**lines[index], "epoch": lines[index]["epoch"] + 7, "loss": (1e-4).hex()} for index in steps
    ]  # fmt: skip
    good = [{**lines[index], "loss": (1e-4).hex()} for index in steps]
    edits: dict[str, Callable[[list[Any]], list[Any]]] = {
        "a line removed": lambda lines: [*lines[: steps[2]], *lines[steps[2] + 1 :]],
        "a line twice": lambda lines: [*lines[: steps[2]], *lines[steps[2] :][:1], *lines[steps[2] :]],
        "two lines swapped": lambda lines: [*lines[:-3], lines[-2], lines[-3], lines[-1]],
        "the last line removed": lambda lines: lines[:-1],
        "the first line removed": lambda lines: lines[1:],
        "half of it removed": lambda lines: lines[: len(lines) // 2],
        "a line after the end": lambda lines: [*lines, {**lines[-1], "step": 99}],
        "the end twice": lambda lines: [*lines, lines[-1]],
        "a line of an unknown kind": lambda lines: [*lines[:4], {"kind": "note", "prev": "", "text": "x"}, *lines[4:]],
        "start and gap": lambda lines: [lines[0], gap],
        "a gap alone": lambda lines: [gap],
        "a gap in place of a line": lambda lines: [*lines[:4], gap, *lines[5:]],
        "a gap more": lambda lines: [*lines[:4], gap, *lines[4:]],
        "invented steps in place of all": lambda lines: [lines[0], gap, *invented],
        "better steps in place of all": lambda lines: [lines[0], gap, *good, lines[-1]],
        "invented steps after a gap": lambda lines: [*lines[:4], gap, *invented[:1], *lines[5:]],
        "invented steps at the end": lambda lines: [*lines[:-1], gap, *invented],
    }
    for name, edit in edits.items():
        yield f"ledger.jsonl: {name}", _rewrite(edit)


# Options


def candidates(name: str, option: Option, value: Any) -> Iterator[Any]:
    """Other values of an option, the likeliest to be accepted first."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value / 2, value * 2, 0.5)
    yield from getattr(option.kind, "options", ())
    yield from (True, 1, 0.5, 2, "val/f1", "another", "tensorboard", "order=7", option.none)


def another(name: str, option: Option, value: Any) -> Any:
    """Another value that the option accepts, in the words of a file."""
    for candidate in candidates(name, option, value):
        try:
            read = option.read(option.word(candidate), name, "a forger", defaults()[name], python=True)
        except (UsageError, TypeError):
            continue
        if candidate is not None and read != value:
            return option.word(read)
    raise AssertionError(f"the option {name} has no other value than {value!r}")


def config_edits(run: Path) -> Iterator[Edit]:
    """Another value for each option in `config.yaml`, another one who decided it, and each of its lines removed."""
    lines = (run / "config.yaml").read_text().splitlines()
    values = _options_of(run)

    def lines_in_place(number: int, *new: str) -> Change:
        text = "".join(f"{line}\n" for line in [*lines[:number], *new, *lines[number + 1 :]])
        return lambda folder: write(folder / "config.yaml", text)

    for number, line in enumerate(lines):
        name, (said, _, source) = line.partition(":")[0], line.rpartition("  # ")
        yield Edit("settings", f"config.yaml: {name} (removed)", lines_in_place(number), False)
        by_another = lines_in_place(number, f"{said}  # {'argument' if source == 'default' else 'default'}")
        yield Edit("settings", f"config.yaml: {name} (by another)", by_another, False)
        yield Edit("settings", f"config.yaml: {name} (by another, signed)", by_another, True)
        if name in options():
            new = f"{name}: {write_scalar(another(name, options()[name], values[name]))}  # {source}"
            yield Edit("settings", f"config.yaml: {name}", lines_in_place(number, new), False)


def _options_of(run: Path) -> dict[str, Any]:
    from autotimm.runs.restore import read_config

    config = read_config(run)
    assert isinstance(config, FitConfig)
    return {name: getattr(config, name) for name in options()}


# Files

TABLES = ("files.csv", "splits.csv", "metrics.csv")
RECORDS = ("config.yaml", "manifest.json", "ledger.jsonl", *TABLES, "results.json", "checkpoints/sha256.txt")
EVIDENCE = ("evidence/val.safetensors", "evidence/test.safetensors")
REPORT = ("report.html", "report/classes.csv")
CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/epoch-0001-step-00000003.ckpt")
WEIGHTS = ("model.safetensors", *CHECKPOINTS)


def file_edits(run: Path, stranger: Path) -> Iterator[Edit]:
    """Each file removed, emptied, cut, zeroed, with one byte changed, and taken from another run."""
    for file in (*RECORDS, *EVIDENCE, *REPORT, *WEIGHTS):
        for name, change in _byte_edits(file, stranger).items():
            kind = "settings" if SETTINGS.fullmatch(f"{file} ({name})") else "files"
            yield Edit(kind, f"{file} ({name})", change, False)
            signable = file.startswith(("checkpoints/", "evidence/")) and "sha256" not in file and name != "removed"
            if signable:
                yield Edit("files", f"{file} ({name})", change, True)
    yield from (*_table_edits(run), *_result_edits(run), *_weight_edits())


def _byte_edits(file: str, stranger: Path) -> dict[str, Change]:
    def replaced(edit: Callable[[bytes], bytes]) -> Change:
        return lambda folder: write(folder / file, edit((folder / file).read_bytes()))

    return {
        "removed": lambda folder: (folder / file).unlink(),
        "emptied": replaced(lambda data: b""),
        "cut": replaced(lambda data: data[: len(data) // 2]),
        "zeros": replaced(lambda data: bytes(len(data))),
        "one byte": replaced(_flip),
        "of another run": lambda folder: write(folder / file, (stranger / file).read_bytes()),
    }


def _flip(data: bytes) -> bytes:
    """Change a byte in the middle; in a text so that it stays text."""
    middle = len(data) // 2
    while data.isascii() and not chr(data[middle]).isalnum():
        middle += 1
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _table_edits(run: Path) -> Iterator[Edit]:
    for file in TABLES:
        rows = (run / file).read_text().splitlines()
        cells = rows[1].split(",")
        edits = {
            "a row removed": rows[:1] + rows[2:],
            "a row twice": [*rows, rows[-1]],
            "two rows swapped": [rows[0], rows[2], rows[1], *rows[3:]],
        }
        for column, title in enumerate(rows[0].split(",")):
            edited = [*cells[:column], _another_cell(rows, column), *cells[column + 1 :]]
            edits[title] = [rows[0], ",".join(edited), *rows[2:]]
        edits["a column more"] = [f"{row},{'note' if number == 0 else 'x'}" for number, row in enumerate(rows)]
        for name, edited_rows in edits.items():

            def change(folder: Path, file: str = file, text: str = "\n".join(edited_rows) + "\n") -> None:
                write(folder / file, text)

            for signed in (False, True):
                yield Edit("files", f"{file} ({name})", change, signed)


def _another_cell(rows: list[str], column: int) -> str:
    own = rows[1].split(",")[column]
    return next((cell for row in rows[2:] if (cell := row.split(",")[column]) != own), f"{own}1")


def _result_edits(run: Path) -> Iterator[Edit]:
    for name, change in json_edits(run, "results.json"):
        for signed in (False, True):
            yield Edit("files", name, change, signed)

    def more(folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        write(folder / "results.json", json.dumps({**results, "contest": {"accuracy": 1.0}}))

    def perfect(folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        for group in results.values():
            group.update({title: 0.99 for title in group if title.endswith("accuracy")})
        write(folder / "results.json", json.dumps(results))

    for signed in (False, True):
        yield Edit("files", "results.json (a group more)", more, signed)
        yield Edit("files", "results.json (accuracy 0.99)", perfect, signed)


def _weight_edits() -> Iterator[Edit]:
    """Well-formed files with other tensors, and checkpoints with other plain data."""

    def exported(folder: Path, metadata: dict[str, str] | None, factor: float) -> None:
        tensors = {name: (tensor * factor).to(tensor.dtype) for name, tensor in
                   load_file(folder / "model.safetensors").items()}  # fmt: skip
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", metadata)

    yield Edit("files", "model.safetensors (zero tensors)", lambda folder: exported(folder, None, 0.0), True)
    note = {"accuracy": "0.99"}
    yield Edit("files", "model.safetensors (a note)", lambda folder: exported(folder, note, 1.0), True)
    for file in CHECKPOINTS:
        for name, edit in _CHECKPOINT_EDITS.items():

            def change(folder: Path, file: str = file, edit: Callable[[Any], None] = edit) -> None:
                checkpoint = torch.load(folder / file, weights_only=True)
                edit(checkpoint)
                (folder / file).unlink()
                torch.save(checkpoint, folder / file)

            yield Edit("files", f"{file} ({name})", change, True)


def _zero(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = {name: torch.zeros_like(value) for name, value in checkpoint["state_dict"].items()}


_CHECKPOINT_EDITS: dict[str, Callable[[Any], Any]] = {
    "zero tensors": _zero,
    "one weight": lambda checkpoint: next(iter(checkpoint["state_dict"].values())).view(-1)[:1].add_(1),
    "a moment of the optimizer": lambda checkpoint: checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].add_(1),
    "an option of the optimizer": lambda checkpoint: checkpoint["optimizer_states"][0]["param_groups"][0].update(eps=1),
    "the schedule": lambda checkpoint: checkpoint["lr_schedulers"][0].update(last_epoch=99),
    "a metric of the best epoch": lambda checkpoint: checkpoint["callbacks"]["RunCheckpoint"]["best"].update(epoch=9),
    "the place in the ledger": lambda checkpoint: checkpoint["callbacks"]["Recorder"].update(lines=3),
    "the step": lambda checkpoint: checkpoint.update(global_step=99),
    "an argument of the task": lambda checkpoint: checkpoint["hyper_parameters"].update(label_smoothing=0.5),
    "a class name": lambda checkpoint: checkpoint["autotimm"]["spec"]["class_names"].reverse(),
    "the note of the weights": lambda checkpoint: checkpoint["autotimm"]["weights"].update(note="weights: ours"),
    "a value more": lambda checkpoint: checkpoint.update(accuracy=0.99),
}
