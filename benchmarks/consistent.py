"""What `autotimm verify --stretches` says of honest runs on stand-ins for other hardware, and of dishonest ones.

Honest: small networks of several architectures and tasks are trained, and verified in processes with other instruction
sets and libraries. Dishonest: a kind of cheating is planted in steps that are replayed, while the record claims that
there was none. Cheating in one of several stretches is found as often as it is drawn: the rate over many challenges
is compared with the stated chance.

Targets: `consistent` for each honest run, `different` for at least 95 % of the dishonest ones. The exit code is 1 if
one is missed.

    python benchmarks/consistent.py [--quick] [--tries N]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from _bench import arguments, report
from _cheats import KINDS, planted

import autotimm
from autotimm import Run
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.run_folder import RunFolder
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.restore import rebuild
from autotimm.runs.stretches.choice import draw, passing_chance, recorded_stretches

STEPS = 5
SPLITS = {"train": 24, "val": 4}
SMALL: dict[str, Any] = {"pretrained": False, "image_size": 32, "batch_size": 8, "num_workers": 0, "threads": 1,
                         "accelerator": "cpu", "progress": False, "epochs": 3}  # fmt: skip
BACKBONES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet18", "mobilenetv3_small_050",
             "regnetx_002", "resnet10t")  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {"backbone": "test_resnet", "image_size": 64},
    "detection": {"backbone": "test_resnet", "image_size": 64},
    "dropout": {"backbone": "test_resnet", "head_dropout": 0.2, "mixup_alpha": 0.2},
}
STAND_INS: dict[str, dict[str, str]] = {
    "no AVX in torch": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN up to SSE 4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN up to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def honest(folder: Path, quick: bool) -> Iterator[tuple[str, Path]]:
    """Train one run of each architecture and task."""
    photos = write_toy_folder(folder / "photos", n=32 if quick else 48, num_classes=3, image_size=40, seed=7)
    data = {
        "segmentation": lambda: write_toy_segmentation(folder / "regions", splits=SPLITS, image_size=64, seed=7),
        "detection": lambda: write_toy_objects(folder / "objects", splits=SPLITS, image_size=64, seed=7),
    }
    for backbone in BACKBONES[:1] if quick else BACKBONES:
        run = autotimm.fit(photos, **SMALL | {"backbone": backbone, "name": backbone, "out": folder / "runs"})
        yield backbone, run.path
    for name, options in {} if quick else TASKS.items():
        place = data[name]() if name in data else photos
        if name == "detection":
            options = {**options, "task": "detection"}
        run = autotimm.fit(place, **SMALL | options | {"name": name, "out": folder / "runs"})
        yield name, run.path


def challenge_for(folder: Path, first: int) -> int:
    """A challenge that draws the stretch at some step first."""
    stretches = recorded_stretches(read_recorded(folder), STEPS)
    return next(seed for seed in range(10_000) if draw(stretches, 1, seed)[0].first == first)


def dishonest(folder: Path, run: Path, kind: str, number: int) -> tuple[Path, int]:
    """Train a run again with a kind of cheating in one stretch; returns its folder and the first step of that."""
    stretches = recorded_stretches(read_recorded(run), STEPS)
    stretch = stretches[number % len(stretches)]
    place = folder / "dishonest" / f"{number}-{run.name}"
    rebuilt = rebuild(run, RunFolder(place, place.parent))
    cheat = planted(kind, range(stretch.first, stretch.first + stretch.steps), number)
    rebuilt.trainer.callbacks.append(cheat)
    rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data)
    if rebuilt.config is not None:
        rebuilt.trainer.run_folder.write_config(rebuilt.config.to_yaml())
    return place, stretch.first


def invented(folder: Path, run: Path, number: int) -> tuple[Path, int]:
    """A copy of a run whose losses of one stretch are invented: between those around them, with all digests anew."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from forger import Edit, write

    stretches = recorded_stretches(read_recorded(run), STEPS)
    stretch = stretches[number % len(stretches)]
    steps = range(stretch.first + 1, stretch.first + stretch.steps + 1)

    def change(copy: Path) -> None:
        path = copy / "ledger.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "step" and line["step"] in steps:
                line["loss"] = (float.fromhex(line["loss"]) * 0.999).hex()
        write(path, "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines))

    edit = Edit("ledger", "ledger.jsonl: invented", change, True)
    (folder / "dishonest").mkdir(exist_ok=True)
    return edit.apply(run, folder / "dishonest" / f"invented-{number}"), stretch.first


def judge(jobs: Sequence[dict[str, Any]], variables: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Verify runs in a process with other environment variables."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([*jobs]))
    command = [sys.executable, __file__, "--judge", str(file)]
    found = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]


def judged(file: Path) -> None:
    """The part of that process."""
    for job in json.loads(file.read_text()):
        verdict = Run(job["run"]).verify(stretches=job["stretches"], steps=STEPS, challenge=job["challenge"])
        ratios = (
            [0.0 if each.ratio is None else each.ratio for each in verdict.proof.stretches] if verdict.proof else []
        )
        more = [each.weights_ratio or 0.0 for each in verdict.proof.stretches] if verdict.proof else []
        stage = verdict.difference.stage if verdict.difference else ""
        row = {**job, "verdict": verdict.verdict, "stage": stage, "reason": verdict.reason[:200]}
        print(json.dumps(row | {"ratio": max(ratios, default=0.0), "weights": max(more, default=0.0)}), flush=True)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--tries", type=int, default=1, help="of each honest run and each kind of cheating")
    parser.add_argument("--judge", type=Path, help="for the program's own processes")
    options = parser.parse_args()
    if options.judge is not None:
        judged(options.judge)
        return 0
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = dict(honest(folder, options.quick))
        rows, figures = [], {"honest": 0, "consistent": 0, "dishonest": 0, "different": 0}
        turns = cycle(STAND_INS)
        jobs: dict[str, list[dict[str, Any]]] = {name: [] for name in STAND_INS}
        for number in range(options.tries):
            for name, run in runs.items():
                jobs[next(turns)].append({"name": name, "run": str(run), "stretches": 1, "challenge": number})
            next(turns)
        for stand_in, asked in jobs.items():
            for row in judge(asked, STAND_INS[stand_in], folder) if asked else []:
                fine = row["verdict"] == "consistent"
                figures["honest"], figures["consistent"] = figures["honest"] + 1, figures["consistent"] + fine
                shown = f"{row['ratio']:.1f}, {row['weights']:.1f}"
                rows.append((f"honest: {row['name']}", stand_in, row["verdict"], row["stage"], shown))
                print(rows[-1], row["reason"] if not fine else "", file=sys.stderr, flush=True)
        kinds = [*islice(KINDS, 3 if options.quick else None), "invented losses"]
        pool, asked = cycle([run for name, run in runs.items() if name in BACKBONES]), []
        for number, kind in enumerate(kinds * options.tries):
            run = next(pool)
            make = invented(folder, run, number) if kind == "invented losses" else dishonest(folder, run, kind, number)
            asked.append({"name": kind, "run": str(make[0]), "stretches": 1,
                          "challenge": challenge_for(make[0], make[1])})  # fmt: skip
        stand_in = "oneDNN up to AVX2"
        for row in judge(asked, STAND_INS[stand_in], folder):
            fine = row["verdict"] == "different"
            figures["dishonest"], figures["different"] = figures["dishonest"] + 1, figures["different"] + fine
            rows.append((row["name"], stand_in, row["verdict"], row["stage"], f"{row['ratio']:.1g}"))
            print(rows[-1], Path(row["run"]).name, row["reason"], file=sys.stderr, flush=True)
        stretches = recorded_stretches(read_recorded(next(iter(runs.values()))), STEPS)
        met = sum(stretches[1] in draw(stretches, 1, seed) for seed in range(1000)) / 1000
        stated = 1 - passing_chance(stretches, 1, 0.01)
        rows.append(("cheating in one stretch", "1 of all drawn", f"met in {met:.1%}", "", f"stated {stated:.1%}"))
        missed = figures["honest"] - figures["consistent"]
        missed += figures["different"] < 0.95 * figures["dishonest"]
    columns = ("run", "verified with", "verdict", "stage", "distance / noise")
    report("consistent", columns, rows, **figures)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
