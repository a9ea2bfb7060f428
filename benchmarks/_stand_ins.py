"""Honest runs, cheating in one of their stretches, and what a verification on a stand-in for other hardware says.

The steps of a stretch are replayed from the checkpoint before it. So whoever trains honestly up to there, and cheats in
the stretch, is told from the record of these steps and of the checkpoint after them. These are made here by a replay
with a callback that cheats, and judged beside replays that are measured once for all kinds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _bench import ROOT
from _cheats import KINDS, Cheat, planted
from _forked import Child
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file

import autotimm
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.run_folder import RunFolder
from autotimm.runs.recorded_run import RecordedRun, read_recorded
from autotimm.runs.stretches.choice import Stretch, recorded_stretches
from autotimm.runs.stretches.court import Court, StretchProof, pixel_factors_apart
from autotimm.runs.stretches.measure import Measured, Measurement, distances
from autotimm.runs.stretches.replay import AS_RECORDED, Played, State, Variant, play_stretch, rebuild_here
from autotimm.train.run_description import surroundings

STEPS = 5
SPLITS = {"train": 20, "val": 4}
SMALL: dict[str, Any] = {"pretrained": False, "image_size": 32, "batch_size": 8, "num_workers": 0, "threads": 1,
                         "accelerator": "cpu", "progress": False, "epochs": 4, "val_split": 0.1}  # fmt: skip
SCENES: dict[str, Any] = {"backbone": "test_resnet", "image_size": 64, "batch_size": 4, "val_split": None}
BACKBONES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet",
             "mobilenetv3_small_050", "regnetx_002")  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    **{backbone: {"backbone": backbone} for backbone in BACKBONES},
    "several labels": {"backbone": "test_resnet", "label_column": ("second", "third")},
    "segmentation": SCENES,
    "detection": {**SCENES, "task": "detection"},
    "dropout and mixup": {"backbone": "test_resnet", "head_dropout": 0.2, "mixup_alpha": 0.2},
}
"""Runs by name: eight architectures, three more tasks, and a recipe that draws random numbers in each step."""


@dataclass(frozen=True)
class StandIn:
    """A stand-in for other hardware: environment variables of a process, and how it computes."""

    variables: dict[str, str] = field(default_factory=dict)
    base: Variant = AS_RECORDED


STAND_INS: dict[str, StandIn] = {
    "AVX2": StandIn({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}),
    "oneDNN off": StandIn(base=Variant(onednn=False)),
    "no AVX in torch": StandIn({"ATEN_CPU_CAPABILITY": "default"}),
    "oneDNN with SSE 4.1, MKL compatible": StandIn({"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}),
    "2 threads": StandIn(base=Variant(threads=2)),
}


# Runs


def train(_: Child, folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Train the honest runs that a folder lacks."""
    photos, out = folder / "photos", folder / "runs"
    for name in names:
        if (out / name / "results.json").exists():
            continue
        options = {**SMALL, **RUNS[name], "name": name, "out": out}
        if name == "segmentation":
            data = write_toy_segmentation(folder / "regions", splits=SPLITS, image_size=64, seed=7)
        elif name == "detection":
            data = write_toy_objects(folder / "objects", splits=SPLITS, image_size=64, seed=7)
        else:
            data = write_toy_folder(photos, n=44, num_classes=3, image_size=40, seed=7)
        if "label_column" in options:
            data = None
            options |= {"train_csv": _labels(photos, folder / "labels.csv"), "image_dir": photos}
        given = {key: value for key, value in options.items() if value is not None}
        autotimm.fit(*([] if data is None else [data]), **given)
        yield name


def _labels(photos: Path, table: Path) -> Path:
    lines = ["image,second,third"]
    for path in sorted(photos.rglob("*.png")):
        number = sorted(each.name for each in photos.iterdir()).index(path.parent.name)
        lines.append(f"{path.relative_to(photos).as_posix()},{int(number > 0)},{int(number > 1)}")
    table.write_text("\n".join(lines) + "\n")
    return table


def stretch_of(run: RecordedRun, turn: int) -> Stretch:
    """The stretch of a run that a turn measures; not the first, which begins at no checkpoint."""
    stretches = recorded_stretches(run, STEPS)[1:]
    return stretches[turn % len(stretches)]


# Cheating

INVENTED = ("losses invented", "steps and weights invented")
ALL_KINDS = (*KINDS, *INVENTED)


class _Planter(Callback):
    """Puts a callback that cheats before the one that keeps the state of the stretch."""

    def __init__(self, cheat: Cheat) -> None:
        self.cheat, self.planted = cheat, False

    def __call__(self, trainer: Any, module: Any) -> None:
        if not self.planted:
            self.planted = True
            trainer.callbacks.insert(len(trainer.callbacks) - 1, self.cheat)


def cheat(_: Child, folder: Path, turn: int, names: Sequence[str], kinds: Sequence[str]) -> Iterator[Path]:
    """Make the records of kinds of cheating in one stretch of each run, as far as a folder lacks them."""
    (folder / "cheats").mkdir(exist_ok=True)
    for name in names:
        run = read_recorded(folder / "runs" / name)
        stretch = stretch_of(run, turn)
        honest: Played | None = None
        for number, kind in enumerate(ALL_KINDS):
            file = _file(folder, name, stretch, kind)
            if kind not in kinds or file.exists():
                continue
            if kind in INVENTED:
                honest = honest or _played(run, stretch, None)
                played = _invented(kind, honest)
            else:
                steps = range(stretch.first, stretch.first + stretch.steps)
                played = _played(run, stretch, _Planter(planted(kind, steps, turn + number)))
            assert played.state is not None
            file.with_suffix(".json").write_text(json.dumps(played.lines))
            save_file({key: tensor.contiguous() for key, tensor in played.state.items()}, file)
            yield file


def _file(folder: Path, name: str, stretch: Stretch, kind: str) -> Path:
    return folder / "cheats" / f"{re.sub(r'[^a-z0-9]+', '-', f'{name} {stretch.first} {kind}'.lower())}.safetensors"


def _played(run: RecordedRun, stretch: Stretch, on_start: Callable[[Any, Any], None] | None) -> Played:
    with tempfile.TemporaryDirectory() as scratch:
        return play_stretch(run.folder, stretch, AS_RECORDED, Path(scratch), on_start=on_start)


def _invented(kind: str, honest: Played) -> Played:
    """A record that nobody has trained: losses near the true ones, or these and weights moved as far at random."""
    assert honest.state is not None
    assert honest.began is not None
    lines = [{**line, "loss": (float.fromhex(line["loss"]) * 0.999).hex()} for line in honest.lines]
    if kind == INVENTED[0]:
        return Played(lines, honest.initial, honest.state, honest.began)
    source, state = torch.Generator().manual_seed(5), dict(honest.state)
    for key, after in honest.state.items():
        before = honest.began.get(key)
        if before is not None and after.is_floating_point() and after.numel():
            moved = torch.randn(after.shape, generator=source)
            moved *= (after - before).norm() / moved.norm().clamp_min(1e-12)
            state[key] = before + moved
    return Played(honest.lines, honest.initial, state, honest.began)


# Judging


@dataclass(frozen=True)
class _Kept(Measurement):
    """A measurement on a stand-in that keeps the state of each replay of the steps as they were recorded."""

    base: Variant = AS_RECORDED
    states: dict[int, State] = field(default_factory=dict)

    def _play(self, stretch: Stretch, variant: Variant, **options: Any) -> Played:
        threads = variant.threads or self.base.threads
        if variant.threads is not None and variant.threads == self.base.threads:
            threads = 1  # the other number
        changed = replace(variant, threads=threads, onednn=variant.onednn and self.base.onednn)
        played = super()._play(stretch, changed, **options)
        if variant == AS_RECORDED and played.state is not None:
            self.states[stretch.first] = played.state
        return played


def judge(
    child: Child, folder: Path, turn: int, names: Sequence[str], stand_in: str, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """Verify one stretch of each run on a stand-in, and all records of cheating that were made of it."""
    for name in names:
        run = read_recorded(folder / "runs" / name)
        stretch = stretch_of(run, turn)
        where = {"run": name, "first": stretch.first, "stand_in": stand_in}
        if ("honest", name, stretch.first, stand_in) in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            court = _court(run, Path(scratch), STAND_INS[stand_in].base, child)
            ((_, measured),) = court.measured([stretch])
            state = court.asked.states.get(stretch.first)  # type: ignore[attr-defined]  # of _Kept
            for kind in ALL_KINDS:
                file = _file(folder, name, stretch, kind)
                if file.exists() and state is not None:
                    lines = json.loads(file.with_suffix(".json").read_text())
                    yield {"kind": kind, **where, **_told(*_cheated(court, stretch, measured, state, lines, file))}
            yield {"kind": "honest", **where, **_told(court, stretch, measured)}  # last: the cell is done


def judge_with(python: Path, folder: Path, name: str) -> dict[str, Any]:
    """Verify stretches of a run with another Python, and with the releases of torch and the others that it has."""
    options = {"stretches": 4, "steps": 3, "challenge": 1}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    asked = [python, "-m", "autotimm", "verify", folder / "runs" / name, *words, "--json"]
    said = subprocess.run([*map(str, asked)], env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout
    answer: dict[str, Any] = json.loads(said)
    stretches = answer.get("stretches") or []
    largest = {key: max((each[key] or 0 for each in stretches), default=0) for key in ("ratio", "weights_ratio")}
    return {
        "kind": "honest", "run": name, "stand_in": "another Python", "verdict": answer["verdict"], **largest,
        "equal_bits": bool(stretches) and all(each["equal_bits"] for each in stretches),
        "reason": answer.get("reason") or "",
    }  # fmt: skip


def _court(run: RecordedRun, scratch: Path, base: Variant, child: Child) -> Court:
    rebuilt = rebuild_here(run.folder, RunFolder(scratch / "look", scratch), data=None, workers=None,
                           weights_needed=False)  # fmt: skip
    apart = pixel_factors_apart(run.manifest, surroundings(rebuilt.trainer))
    asked = _Kept(run, scratch, same_pixels=not apart, base=base)
    return Court(asked, apart, "cpu", 1, child.launch)


def _cheated(
    court: Court, stretch: Stretch, measured: Measured, state: State, lines: Sequence[Mapping[str, Any]], file: Path
) -> tuple[Court, Stretch, Measured]:
    """The same measurement beside a record of cheating."""
    run, made = court.asked.run, {(line["epoch"], line["batch"]): line for line in lines}
    recorded = [
        made.get((line.get("epoch"), line.get("batch")), line) if line["kind"] == "step" else line
        for line in run.ledger.lines
    ]
    other = replace(run, ledger=run.ledger._replace(lines=recorded))
    beside = replace(measured, recorded=distances(state, load_file(file)), findings=[], wrong=None)
    return replace(court, asked=replace(court.asked, run=other)), stretch, beside


def _told(court: Court, stretch: Stretch, measured: Measured) -> dict[str, Any]:
    """The verdict in plain data."""
    proof = StretchProof(0, 1, 1, stretch.steps, stretch.length, None, stretch.steps, {})
    verdict = court.verdict([(stretch, measured)], proof)
    assert isinstance(verdict.proof, StretchProof)
    (distance,) = verdict.proof.stretches
    return {
        "verdict": verdict.verdict, "stage": verdict.difference.stage if verdict.difference else "",
        "reason": verdict.reason[:300], "ratio": distance.ratio, "weights_ratio": distance.weights_ratio,
        "loss_noise": distance.loss_noise, "weights_noise": distance.weights_noise,
        "equal_bits": distance.equal_bits, "inputs": distance.inputs, "roundings": [*distance.roundings],
    }  # fmt: skip
