"""OpenVINO files and backbones with 8 bits: what is written, that it agrees with the run, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from _networks import dense_task

from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.transforms.image_transforms import eval_transform
from autotimm.errors import ModelError, UsageError
from autotimm.export.agreement_check import check_file, seeded_sample
from autotimm.export.exporter import graph_for, open_exported, write_graph, written_beside
from autotimm.export.int8 import CALIBRATED, calibration_names
from autotimm.export.openvino_file import weights_beside, write_openvino
from autotimm.export.resize import cropped
from autotimm.models.detection import DETECTORS
from autotimm.models.segmentation.segmenter import SEGMENTERS


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    assert main(["export", str(run.path), "--to", "openvino", "--out", str(folder / "m.xml")]) == 0
    return folder / "m.xml"


def test_two_files_agree_with_the_run(run: Run, exported: Path) -> None:
    assert sorted(path.name for path in exported.parent.iterdir()) == ["export.json", "m.bin", "m.xml"]
    report = json.loads(exported.with_name("export.json").read_text())["m.xml"]
    assert report["check"]["images"] == 32
    assert report["check"]["differences"]["scores"] < 1e-4
    assert report["check"]["disagreements"] == 0
    assert report["runtime"].startswith("openvino ")
    model = openvino.Core().read_model(exported)
    assert json.loads(model.get_rt_info(["autotimm", "class_names"]).value) == list(run.model().class_names)
    assert model.get_rt_info(["autotimm", "run_digest"]).value == report["run_digest"]
    content = exported.read_bytes()
    assert not any(trace in content for trace in (b"stack_trace", b".py", str(Path(__file__).parents[2]).encode()))


def test_same_bytes_twice_and_any_size(run: Run, exported: Path, tmp_path: Path) -> None:
    export = run.export(tmp_path / "m.xml", to="openvino", check="full")
    assert export.weights == tmp_path / "m.bin"
    for name in ("m.xml", "m.bin"):
        assert (tmp_path / name).read_bytes() == exported.with_name(name).read_bytes()
    predict = open_exported(exported, "openvino")
    for size in ((3, 3, 20, 90), (2, 3, 37, 37), (1, 3, 1, 1)):
        images = torch.randint(0, 256, size, dtype=torch.uint8).numpy()
        alone = [predict(image[None])["scores"][0] for image in images]
        assert predict(images)["scores"] == pytest.approx(np.stack(alone), abs=1e-6)
    (tmp_path / "m.xml").unlink()
    with pytest.raises(UsageError, match=r"in a folder without m\.bin"):
        run.export(tmp_path / "m.xml", to="openvino")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixels_of_32_bits_are_those_of_the_run_but_for_a_level_of_few(mode: str) -> None:
    differing = total = 0
    for index in range(6):
        image = seeded_sample(index, (96 + 150 * index, 300 - 40 * index)).image.as_subclass(torch.Tensor)
        true = eval_transform(64, 0.875, mode)(image).to(torch.int16)
        found = cropped(image[None], (64, 64), 0.875, mode, torch.float32)[0].to(torch.int16)
        assert int((found - true).abs().max()) <= 1
        differing, total = differing + int((found != true).sum()), total + true.numel()
    assert differing < total / 1000


FAST = ("unet",)


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=() if arch in FAST else pytest.mark.slow) for arch in (*SEGMENTERS, *DETECTORS)],
)
def test_dense_tasks_agree(arch: str, tmp_path: Path) -> None:
    task, spec = dense_task(arch, 64)
    graph = graph_for(task, spec, "openvino")
    write_graph(graph, tmp_path / "m.xml", "openvino", {}, None, spec)
    runtime = open_exported(tmp_path / "m.xml", "openvino", 1)
    check = check_file(task, spec, graph, runtime, table=None, most=4, tolerance=1e-4, by_metric=False)
    assert check.problem == ""


@pytest.mark.parametrize(
    ("to", "copies"),
    [
        ("onnx", "a"),
        ("openvino", "a"),
        *(pytest.param(to, "ab", marks=pytest.mark.slow) for to in ("onnx", "openvino")),
    ],
)
def test_8_bits_are_calibrated_on_training_images(to: str, copies: str, run: Run, nearest: Run, tmp_path: Path) -> None:
    if to == "openvino":  # of the resize is asked only in ONNX
        run = nearest
    paths = [tmp_path / name / {"onnx": "m.onnx", "openvino": "m.xml"}[to] for name in copies]
    exports = [run.export(path, to=to, precision="int8", tolerance=0.1) for path in paths]
    report = json.loads((tmp_path / "a" / "export.json").read_text())[paths[0].name]
    assert report["calibration"] == f"{(run.path / 'splits.csv').read_text().count(',train')} training images"
    assert report["check"]["tolerance"] == 0.1
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / copies[-1] / path.name).read_bytes()
    assert exports[0].check.metrics["accuracy"]["file"] > 0
    if to == "onnx":
        nodes = onnx.load(paths[0]).graph.node
        assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 10
        # Neither the resize nor the classifier.
        made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
        assert not [node.name for node in nodes if node.op_type in ("MatMul", "Gemm") and made & set(node.input)]
    else:
        assert exports[0].weights is not None
        assert exports[0].weights.stat().st_size < 0.4 * (run.path / "model.safetensors").stat().st_size


def test_calibration_is_keyed_by_id() -> None:
    ids = [f"photos/{number}.png" for number in range(300)]
    chosen = {ids[index] for index in calibration_names(ids)}
    assert len(chosen) == CALIBRATED
    assert chosen == {ids[::-1][index] for index in calibration_names(ids[::-1])}


@pytest.mark.parametrize("to", ["onnx", pytest.param("torch", marks=pytest.mark.slow), "openvino"])
def test_16_bits_halve_the_file(to: str, nearest: Run, tmp_path: Path) -> None:
    suffix = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}[to]
    half = nearest.export(tmp_path / f"half{suffix}", to=to, precision="fp16")
    assert (half.weights or half.path).stat().st_size < 0.75 * (nearest.path / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "export.json").read_text())[f"half{suffix}"]["precision"] == "fp16"


def test_neither_file_is_left_without_the_other(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        for written in (path, weights_beside(path)):
            written.write_bytes(b"half")
        raise ModelError("the check failed")

    with pytest.raises(ModelError), written_beside(tmp_path / "m.xml") as path:
        fail(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # by a tolerance, as for each format; `test_classification.py` has the quickest of them
def test_nothing_is_left_beyond_the_tolerance(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must agree with the run within"):
        run.export(tmp_path / "m.xml", to="openvino", tolerance=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "torch", "out": "m.pt2", "precision": "int8"}, "fp32 or fp16 for torch"),
        (
            {"to": "openvino", "out": "m.xml", "precision": "int8", "check": "seeded"},
            "fp32 where the check is",
        ),
        ({"to": "openvino", "out": "m.onnx"}, r"a file that ends in \.xml"),
        ({"to": "openvino", "out": "m.xml", "with_runner": True}, "left out unless `to` is onnx"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        run.export(**{**options, "out": tmp_path / options["out"]})


def test_files_that_openvino_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(ModelError, match="OpenVINO cannot run the network"):
        open_exported(tmp_path / "m.xml", "openvino")
    with pytest.raises(ModelError, match="OpenVINO cannot read the network"):
        write_openvino(onnx.ModelProto(), tmp_path / "n.xml", {})


def test_detectors_of_ones_own(tmp_path: Path) -> None:
    task, spec = dense_task("fcos", 64)
    task.network = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"The detector Identity cannot be exported. Use one of autotimm's"):
        graph_for(task, spec, "openvino")


def test_missing_extra(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    assert main(["export", str(run.path), "--to", "openvino", "--out", str(tmp_path / "m.xml")]) == 2
    with pytest.raises(UsageError, match=r"pip install 'autotimm\[openvino\]'"):
        run.export(tmp_path / "m.xml", to="openvino")
