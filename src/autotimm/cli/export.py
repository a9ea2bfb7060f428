"""``autotimm export``: write the model of a run as a file for another program."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, TRUST, open_run
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Choice, Flag, Number, Path
from autotimm.errors import printable
from autotimm.export.formats import CHECKS, FORMATS, PRECISIONS, REPORT, require_new_files

__all__ = ["EXPORT"]


def run(argv: Sequence[str]) -> int:
    """Export the run; print what was compared, and what was written."""
    given = parse(EXPORT, argv)
    if given is None:
        return 0
    out, to, runner = given.value("out"), given.value("to"), given.value("with_runner")
    precision, check, tolerance = given.value("precision"), given.value("check"), given.value("tolerance")
    if out is not None:
        require_new_files(out, to, runner, "autotimm export")
    with answering(given) as answer:
        exported_run, ckpt = open_run(given)
        export = exported_run.export(
            out, to=to, precision=precision, ckpt=ckpt, data=given.value("data"), check=check, tolerance=tolerance,
            with_runner=runner, paste_masks=given.value("paste_masks"),
        )  # fmt: skip
        print(printable(export.check))
        if export.runner is not None:
            print(f"runner: {printable(export.runner)}")
        if export.weights is not None:
            print(f"weights: {printable(export.weights)}")
        print(f"model: {printable(export.path)}")
        answer.update(model=export.path, weights=export.weights, runner=export.runner, check=export.check.as_dict())
    return 0


EXPORT = Verb(
    name="export",
    summary="write the model for ONNX Runtime, OpenVINO, torch or timm, compared with the run",
    run=run,
    positionals=(RUN,),
    options={
        "to": Option(
            Choice(FORMATS), "ONNX file, program of torch.export, OpenVINO's .xml and .bin, timm's folder", "Options"
        ),
        "out": Option(Path(metavar="FILE|DIR"), "the new file, or for timm the new folder", "Options", none="RUN.onnx"),
        "precision": Option(Choice(PRECISIONS), "numbers that the network computes with", "Options"),
        "with_runner": Option(Flag(), "also write predict.py, which needs the ONNX file and no torch", "Options"),
        "paste_masks": Option(Flag(), "return masks in pixels of the image, not in their boxes of 28 x 28", "Options"),
        "check": Option(Choice(CHECKS), "compare on 32 validation images, on all, or on seeded ones", "Options"),
        "data": Option(Path(), "other labelled images to compare on", "Options", none="the run's"),
        "tolerance": Option(
            Number(0), "largest difference of scores, or with fp16 and int8 of metrics", "Options",
            none="1e-4, fp16: 0.01, int8: 0.02",
        ),
        "ckpt": CKPT,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "to": "onnx", "out": None, "precision": "fp32", "with_runner": False, "paste_masks": False,
        "check": "sample", "data": None, "tolerance": None, "ckpt": "best", "trust": False, "json": False,
    },
    examples=(
        "autotimm export runs/photos-001 --out photos.onnx",
        "autotimm export runs/photos-001 --with-runner --out photos/model.onnx",
        "autotimm export runs/photos-001 --to openvino --precision int8 --out photos.xml",
        "autotimm export runs/photos-001 --to timm --out photos-timm",
    ),
    notes=(
        "The file takes RGB images of any size and contains the preprocessing and the postprocessing of the run.",
        f"It is compared with the run before it is kept; {REPORT} beside it says how. Nothing is overwritten.",
        "Exit code 4: the model cannot be exported, or the file disagrees with the run; no file is left.",
    ),
    elsewhere=("convert", "onnx", "openvino", "deploy"),
)  # fmt: skip
