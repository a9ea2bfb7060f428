"""The demo on digits: the same images on every machine, then three ordinary commands."""

import hashlib
from pathlib import Path

import pytest

from autotimm.cli import demo
from autotimm.cli.main import main

pytest.importorskip("sklearn", reason="the extra `demo` is not installed")


def digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.png"))
    return hashlib.sha256("".join(f"{file.relative_to(folder)}" for file in files).encode()).hexdigest()


def test_split_is_keyed_by_name_and_stratified_by_class(tmp_path: Path):
    counts = demo.write_digits(tmp_path / "a")
    assert sum(counts.values()) == 1797
    assert counts["test"] == pytest.approx(0.2 * 1797, rel=0.1)
    for split in ("train", "test"):
        assert [folder.name for folder in sorted((tmp_path / "a" / split).iterdir())] == list("0123456789")
    demo.write_digits(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_demo_prints_and_runs_three_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    images, labels = demo._load_digits()
    monkeypatch.setattr(demo, "_load_digits", lambda: (images[:200], labels[:200]))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("$ autotimm ")] == ["fit", "test", "predict"]
    assert lines[-1].startswith("run: ")
    assert Path(lines[-1].removeprefix("run: "), "checkpoints", "best.ckpt").is_file()
    counts = sum(1 for _ in (tmp_path / "digits" / "test").rglob("*.png"))
    assert (tmp_path / "predictions.csv").read_text().count("\n") == counts + 1


def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_classifies_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--out", str(tmp_path)]) == 0
    accuracy = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("test/accuracy")]
    assert float(accuracy[-1]) >= 0.985
