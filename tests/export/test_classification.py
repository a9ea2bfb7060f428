"""A classifier taken elsewhere: ONNX with and without the runner, torch, timm, and what is refused."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from autotimm import Run
from autotimm.cli.main import main
from autotimm.errors import DataError, ModelError, RunError, UsageError
from autotimm.export import runner
from autotimm.export.build_graph import build_graph
from autotimm.export.onnx_file import OPSET
from autotimm.records.manifest import Manifest
from autotimm.runs.prediction_files import as_csv
from messy import write_messy_files

WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, autotimm=None); program, *sys.argv[1:] = sys.argv[1:];"
    "runpy.run_path(program, run_name='__main__')"
)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert main(["export", str(run.path), "--with-runner", "--out", str(folder / "m.onnx")]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    return folder / "m.onnx"


def test_report_says_what_was_compared(run: Run, exported: Path) -> None:
    report = json.loads(exported.with_name("export.json").read_text())["m.onnx"]
    check = report["check"]
    assert check["images"] == 32
    assert check["source"] == "validation images"
    assert check["differences"]["scores"] < 1e-5
    assert check["disagreements"] == 0
    assert check["metrics"]["accuracy"]["run"] == check["metrics"]["accuracy"]["file"]
    assert sorted(path.name for path in exported.parent.iterdir()) == ["export.json", "m.onnx", "predict.py"]


def test_metadata_name_the_run_and_nothing_of_the_machine(run: Run, exported: Path) -> None:
    meta = onnxruntime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    manifest = Manifest.load(run.path / "manifest.json")
    assert (meta["run_id"], meta["run_digest"]) == (manifest.run_id, manifest.digest)
    assert json.loads(meta["class_names"]) == list(run.model().class_names)
    assert json.loads(meta["input"]) == {
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "least": [37, 37],
        "network": [32, 32],
        "resize": "crop",
        "upright": True,
    }
    assert meta["opset"] == str(OPSET)
    content = exported.read_bytes()
    assert not any(trace in content for trace in (b"stack_trace", b".py", str(Path(__file__).parents[2]).encode()))


def test_no_factor_of_a_product_is_transposed(exported: Path) -> None:
    """ONNX Runtime before 1.26 cannot compute such products of 64 bits, and Python 3.10 has no newer one."""
    nodes = onnx.load(exported).graph.node
    transposed = {name for node in nodes if node.op_type == "Transpose" for name in node.output}
    factors = [name for node in nodes if node.op_type == "MatMul" for name in node.input]
    assert len(factors) >= 4
    assert not transposed.intersection(factors)


def test_same_bytes_twice_and_all_images_on_request(run: Run, exported: Path, tmp_path: Path) -> None:
    export = run.export(tmp_path / "again.onnx", check="full")
    assert export.path.read_bytes() == exported.read_bytes()
    assert export.check.images > 32


def test_one_file_takes_images_of_any_size_and_number(run: Run, exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported))
    for size in ((3, 3, 20, 90), (2, 3, 37, 37), (1, 3, 1, 1)):
        images = torch.randint(0, 256, size, dtype=torch.uint8).numpy()
        (scores,) = session.run(None, {"images": images})
        alone = [session.run(None, {"images": image[None]})[0][0] for image in images]
        assert scores.shape == (size[0], 3)
        assert scores == pytest.approx(np.stack(alone), abs=1e-6)


def test_runner_without_torch_has_the_rows_of_predict(run: Run, exported: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_messy_files(files)
    program = [sys.executable, "-c", WITHOUT_TORCH, str(exported.with_name("predict.py"))]
    done = subprocess.run([*program, str(files), "--out", str(tmp_path / "rows.csv")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cut.png" in done.stderr
    assert "letter.jpg" in done.stderr
    (tmp_path / "expected.csv").write_text(as_csv(run.predict([files])))
    found, expected = (
        list(csv.reader((tmp_path / name).read_text().splitlines())) for name in ("rows.csv", "expected.csv")
    )
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert len(found) == 13
    for row, true in zip(found[1:], expected[1:], strict=True):
        assert list(map(float, row[2:])) == pytest.approx(list(map(float, true[2:])), abs=1e-5), row[0]
    again = subprocess.run([*program, str(files), "--out", str(tmp_path / "rows.csv")], capture_output=True, text=True)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_runner_beside_a_file_is_the_tested_program(exported: Path) -> None:
    assert exported.with_name("predict.py").read_bytes() == Path(str(runner.__file__)).read_bytes()


def test_runner_prints_the_table_of_one_path_and_names_what_it_left_out(
    run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_messy_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["predict.py", ".", "strip.png", "--model", str(exported)]
    monkeypatch.setattr(sys, "argv", words)
    assert runner.main() == 0
    out, err = capsys.readouterr()
    found, expected = (list(csv.reader(text.splitlines())) for text in (out, as_csv(run.predict([".", "strip.png"]))))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for row, true in zip(found[1:], expected[1:], strict=True):
        assert list(map(float, row[2:])) == pytest.approx(list(map(float, true[2:])), abs=1e-5), row[0]
    assert err.startswith("2 of 15 images cannot be read: ./cut.png (")
    monkeypatch.setattr(sys, "argv", ["predict.py", "cut.png", "b/../letter.jpg", "--model", str(exported)])
    assert runner.main() == 3  # no image is left
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["predict.py", "strip.png", "--model", str(exported), "--out", "table.csv"])
    assert runner.main() == 0
    assert capsys.readouterr().out.startswith("predictions: table.csv (1 image")
    titles, *_, last = out.splitlines()
    assert Path("table.csv").read_text().splitlines() == [titles, last]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--out", "table.csv"], "there are 0 ONNX files beside this program: give --model"),
        (["photos", "--model", "m.onnx", "--out", "table.csv"], "table.csv is there already: give another name"),
        (["photos", "gone.png", "--model", "m.onnx"], "there is no file or folder gone.png"),
        (["photos", "--model", "m.onnx", "--out", "gone/table.csv"], "there is no folder for gone/table.csv"),
        (["photos", "--model", "m.onnx", "--threshold", "0"], "--threshold must be a number in (0, 1)"),
        (["photos", "--model", "gone.onnx"], "gone.onnx cannot be opened ("),
        (["photos", "--model", "table.csv"], "table.csv cannot be opened ("),
    ],
)
def test_runner_refuses(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "table.csv").write_text("kept\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    with pytest.raises(SystemExit) as stop:
        runner.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text() == "kept\n"


def test_runner_refuses_what_the_model_has_no_use_for(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other = onnx.load(exported), tmp_path / "other.onnx"
    del model.metadata_props[:]
    onnx.save(model, other)
    for words, said in (
        ([str(tmp_path)], f"there are no images in {tmp_path}"),
        ([str(tmp_path), "--threshold", "0.5"], "--threshold must be left out: each image or pixel gets one class"),
        ([str(tmp_path), "--model", str(other)], "other.onnx was not exported by autotimm"),
    ):
        monkeypatch.setattr(sys, "argv", ["predict.py", "--model", str(exported), *words])
        with pytest.raises(SystemExit) as stop:
            runner.main()
        assert (stop.value.code, said in capsys.readouterr().err) == (2, True)


def test_table_of_the_runner_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            runner.write_table(str(tmp_path / "rows.csv"), "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_file_that_disagrees_is_not_written(nearest: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(nearest.path), "--to", "torch", "--out", str(tmp_path / "m.pt2"), "--tolerance", "0"]
    assert main(command) == 4
    assert "must agree with the run within 0. On 32 validation images its scores differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_torch_program_without_the_data(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    photos = str(run.config["path"])
    assert photos in text
    (tmp_path / "run" / "config.yaml").write_text(text.replace(photos, str(tmp_path / "gone")))
    moved = Run(tmp_path / "run")
    with pytest.raises(DataError, match="with --check seeded"):
        moved.export(tmp_path / "m.pt2", to="torch")
    export = moved.export(tmp_path / "m.pt2", to="torch", check="seeded")
    assert (export.check.source, export.check.metrics) == ("seeded images", {})
    program = torch.export.load(tmp_path / "m.pt2").module()
    images = torch.randint(0, 256, (3, 3, 50, 41), dtype=torch.uint8)
    with torch.no_grad():
        assert program(images)["scores"].sum(1).tolist() == pytest.approx([1, 1, 1])


def test_timm_loads_the_folder_with_equal_logits(run: Run, tmp_path: Path) -> None:
    run.export(tmp_path / "model", to="timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    network = run.model().network
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(network.normalize(images)), network(images), rtol=0, atol=1e-6)
    config = timm.data.resolve_model_data_config(loaded)
    assert (config["input_size"], config["interpolation"], config["crop_pct"]) == ((3, 32, 32), "bilinear", 0.875)
    assert loaded.pretrained_cfg["label_names"] == list(run.model().class_names)
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len({*modes.values()}) == 1, modes  # whoever may read one file may read all


def test_full_disk_is_said_to_be_one(run: Run, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for to, name, said in (
            ("timm", "model", "must be writable. It is not (Error while serializing"),
            ("openvino", "m.xml", "could not be written by OpenVINO"),
        ):
            with pytest.raises(RunError, match=re.escape(said)):
                run.export(tmp_path / name, to=to, check="seeded")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "m.pt2"}, "a file that ends in .onnx"),
        ({"out": "m.onnx", "to": "onxx"}, "one of onnx, torch, openvino, timm"),
        ({"out": "m.pt2", "to": "torch", "with_runner": True}, "left out unless `to` is onnx"),
        ({"out": "m.onnx", "precision": "fp16", "check": "seeded"}, "fp32 where the check is on seeded images"),
        ({"out": "m", "to": "timm", "precision": "fp16"}, "fp32 for timm"),
        ({"out": "there.onnx"}, "a path that is not there yet"),
    ],
)
def test_wrong_arguments(run: Run, tmp_path: Path, options: dict, words: str) -> None:
    (tmp_path / "there.onnx").touch()
    with pytest.raises(UsageError, match=words):
        run.export(**{**options, "out": tmp_path / options["out"]})


def test_missing_extra(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"pip install 'autotimm\[onnx\]'"):
        run.export(tmp_path / "m.onnx")


def test_own_transforms_cannot_be_exported(run: Run, tmp_path: Path) -> None:
    task = run.model()
    with pytest.raises(ModelError, match=r"transforms of your own, mine\.transform"):
        build_graph(task, replace(task.spec, eval_transforms="mine.transform"))
