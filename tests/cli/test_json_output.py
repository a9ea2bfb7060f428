"""``--json``: one object on standard output for every verb, with or without success, and everything else elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotimm.cli.main import VERBS, main
from autotimm.data.toy import write_toy_folder
from training import small_fit

FIT = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size", "8", "--epochs", "1",
       "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--val-split", "0.25"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_folder(tmp_path_factory.mktemp("json") / "photos", splits={"train": 24, "test": 8}, num_classes=2)


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    return small_fit(photos, photos.parent / "runs", evidence=True).path


@pytest.fixture
def answer(run: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a verb with ``--json``, and returns what it answers, with its exit code and its standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object, code: int = 0) -> tuple[dict[str, Any], str]:
        capfd.readouterr()
        arguments = [{"RUN": str(run), "PHOTOS": str(photos)}.get(str(word), str(word)) for word in words]
        assert main([*arguments, "--json"]) == code
        output = capfd.readouterr()
        found = json.loads(output.out)
        assert isinstance(found, dict)
        assert output.out == json.dumps(found, indent=2) + "\n", "something else is on standard output"
        return found, output.err

    return call


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_the_option(verb: str) -> None:
    option = VERBS[verb].options["json"]
    assert option.is_switch
    assert VERBS[verb].defaults["json"] is False


def test_predictions_are_those_of_the_table(answer, run: Path, photos: Path, tmp_path: Path) -> None:
    image = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    found, _ = answer("predict", "RUN", image, "--coverage", "0.9")
    (prediction,) = found["predictions"]
    assert (found["run"], found["images"], prediction["name"]) == (str(run), 1, str(image))
    assert prediction["labels"] == [max(prediction["scores"], key=prediction["scores"].get)]
    assert set(prediction["set"]) <= set(prediction["scores"])
    saved, shown = answer("predict", "RUN", image, "--out", tmp_path / "p.csv")
    assert (saved["out"], saved["pictures"], "predictions" in saved) == (str(tmp_path / "p.csv"), None, False)
    assert "predictions:" in shown
    row = (tmp_path / "p.csv").read_text().splitlines()[1].split(",")
    assert row[0] == str(image)
    assert [float(value) for value in row[3:]] == pytest.approx(list(prediction["scores"].values()), abs=1e-6)


def test_training_names_run_report_and_metrics(answer, run: Path, tmp_path: Path) -> None:
    fitted, shown = answer("fit", "PHOTOS", *FIT, "--out", tmp_path / "runs")
    assert fitted["run"] == str(tmp_path / "runs" / "photos-001")
    assert Path(fitted["run"], "manifest.json").is_file()
    assert fitted["metrics"]["val/accuracy"] >= 0
    assert f"run: {fitted['run']}" in shown, "people find the run on standard error"
    resumed, _ = answer("resume", fitted["run"])
    assert resumed == fitted
    extended, _ = answer("extend", fitted["run"], "--epochs", "1")
    assert Path(extended["run"]).is_dir()
    assert extended["run"] != fitted["run"]


def test_measurements_and_checks(answer, run: Path, tmp_path: Path) -> None:
    validated, shown = answer("validate", "RUN")
    assert validated["run"] == str(run)
    assert set(validated["metrics"]) >= {"val/loss", "val/accuracy"}
    assert "val/accuracy" in shown
    tested, _ = answer("test", "RUN")
    assert "test/accuracy" in tested["metrics"]
    levels, _ = answer("levels", "RUN")
    assert [*levels] == [f"R{number}" for number in range(8)]
    assert levels["R1"]["claim"]
    verified, _ = answer("verify", "RUN")
    assert (verified["verdict"], verified["identical"], verified["difference"]) == ("identical", True, None)
    again, _ = answer("reproduce", "RUN", "--out", tmp_path / "again")
    assert again["run"] == str(tmp_path / "again")
    assert again["comparison"]["equal"] is True
    assert answer("diff", "RUN", tmp_path / "again")[0] == again["comparison"]


def test_files_that_are_written_are_named(answer, tmp_path: Path) -> None:
    report, _ = answer("report", "RUN")
    assert Path(report["report"]).is_file()
    exported, _ = answer("export", "RUN", "--to", "timm", "--out", tmp_path / "timm")
    assert exported["model"] == str(tmp_path / "timm")
    assert exported["check"]["images"] > 0
    inspected, _ = answer("inspect", "PHOTOS", "--image-size", "32", "--html", tmp_path / "page.html")
    assert Path(inspected["page"]).is_file()
    assert inspected["kind"] == "classes"


def test_lists(answer) -> None:
    assert answer("backbones", "test_res*")[0] == {"backbones": ["test_resnet"]}


@pytest.mark.slow
def test_what_takes_long(answer, tmp_path: Path) -> None:
    findings, _ = answer("doctor", "--backbone", "test_resnet", "--image-size", "32", "--batch-size", "4")
    assert {finding["about"] for finding in findings["findings"]} >= {"Versions", "Machine", "One training step"}
    studied, _ = answer("study", "PHOTOS", *FIT, "--seeds", "2", "--out", tmp_path / "studies")
    assert Path(studied["study"]).parent == tmp_path / "studies"
    assert Path(studied["study"], "study.json").is_file()
    assert studied["summaries"]["a"]["val/accuracy"]["n"] == 2
    shown, text = answer("demo", "--epochs", "1", "--out", tmp_path / "demo")
    assert Path(shown["run"]).is_dir()
    assert Path(shown["predictions"]).is_file()
    assert "$ autotimm fit" in text
    checked, _ = answer("selfcheck")
    assert checked["passed"] is True


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["verify", "nowhere"], 4, "ModelError"),
        (["fit", "nowhere"], 3, "DataError"),
        (["fit", "PHOTOS", "--epoch", "1"], 2, "UsageError"),
        (["test", "RUN", "nowhere"], 3, "DataError"),
        (["trian", "RUN"], 2, "UsageError"),
    ],
)
def test_errors_are_answers_too(answer, words: list[str], code: int, kind: str) -> None:
    found, shown = answer(*words, code=code)
    assert found == {"error": found["error"], "kind": kind, "exit_code": code}
    assert shown.startswith(f"error: {found['error']}")


def test_what_other_programs_print_goes_to_standard_error(tmp_path: Path) -> None:
    """Also what a library in C or a child process writes to the file descriptor of standard output."""
    code = (
        "import os, subprocess, sys\n"
        "from autotimm.cli.backbones import BACKBONES\n"
        "from autotimm.cli.json_output import answering\n"
        "from autotimm.cli.parser import parse\n"
        "with answering(parse(BACKBONES, ['--json'])) as answer:\n"
        "    print('text')\n"
        "    os.write(1, b'raw\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"child\")'], check=True)\n"
        "    answer['value'] = float('inf')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == {"value": None}
    assert sorted(done.stderr.split()) == ["child", "raw", "text"]
