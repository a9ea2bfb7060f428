"""The verbs on one small run, in part as processes."""

import csv
import io
from pathlib import Path

import pytest

import warm
from autotimm.cli.main import main
from autotimm.config import read_yaml
from autotimm.data.toy import write_toy_folder


def autotimm(*words: object, cwd: Path | None = None) -> warm.Completed:
    return warm.run(["-m", "autotimm", *words], cwd)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_folder(tmp_path_factory.mktemp("cli") / "photos", splits={"train": 24, "test": 8}, num_classes=2)


@pytest.fixture(scope="session")
def fitted(photos: Path) -> warm.Completed:
    """A run of a new process, configured by a file and two options."""
    (photos.parent / "small.yaml").write_text(
        f"path: {photos}\nbackbone: test_resnet\npretrained: false\nimage-size: 32\nepochs: 7\n"
        "num_workers: 0\nthreads: 1\n"
    )
    return autotimm("fit", "--config", photos.parent / "small.yaml", "--epochs", 1, "--out", photos.parent / "runs")


@pytest.fixture(scope="session")
def run(fitted: warm.Completed) -> Path:
    assert fitted.returncode == 0, fitted.stderr
    return Path(fitted.stdout.splitlines()[-1].removeprefix("run: "))


def test_last_line_of_fit_is_the_run_folder(fitted: warm.Completed, run: Path):
    assert fitted.stdout.splitlines()[-1] == f"run: {run}"
    assert run.is_dir()
    assert "Traceback" not in fitted.stderr
    assert "Warning" not in fitted.stderr


def test_levels_are_a_table_with_reasons(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["levels", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[::2]] == [f"R{number}" for number in range(8)]
    assert lines[:4] == [
        "R0  seeded",
        "    checked",
        "R1  the same bits from run to run on one machine",
        "    expected",
    ]
    assert lines[9].startswith("    no, because sums over processes")


def test_run_records_its_configuration_and_sources(run: Path):
    text = (run / "config.yaml").read_text()
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert lines["epochs"].endswith("# command line")
    assert lines["backbone"].endswith("small.yaml")
    assert lines["batch_size"].endswith("# default")
    assert lines["lr"].endswith("# recipe")
    values, nested = read_yaml(str(run / "config.yaml"))
    assert (values["epochs"], nested) == ("1", False)


def test_test_and_validate_print_metrics(run: Path, capsys: pytest.CaptureFixture[str]):
    for verb, stage in (("test", "test/"), ("validate", "val/")):
        assert main([verb, str(run)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert {name for name, _ in rows} >= {f"{stage}loss", f"{stage}accuracy"}


def test_checkpoint_path_equals_run_folder(run: Path, capsys: pytest.CaptureFixture[str]):
    outputs = []
    for words in ([str(run)], [str(run / "checkpoints" / "best.ckpt")], [str(run), "--ckpt", "best"]):
        assert main(["test", *words]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1


def test_predict_prints_only_csv(run: Path, photos: Path):
    done = autotimm("predict", run, photos / "test")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 8
    classes = sorted(folder.name for folder in (photos / "train").iterdir())
    assert list(rows[0]) == ["path", "label", "score", *classes]
    for row in rows:
        scores = {name: float(row[name]) for name in classes}
        assert row["label"] == max(scores, key=scores.__getitem__)
        assert float(row["score"]) == max(scores.values())
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)


def test_predict_saves_a_table_and_prints_its_path(run: Path, photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(run), str(photos / "test"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"predictions: {out} (8 images)\n"
    assert out.read_text().count("\n") == 9


@pytest.mark.parametrize(
    ("words", "must"),
    [
        (["--out", "nowhere/predictions.csv"], "`--out` of autotimm predict must be a file that can be written"),
        (["--out", "old.csv"], "`--out` of autotimm predict must be a file that is not there yet"),
        (["--out", "."], "`--out` of autotimm predict must be a new or empty folder"),
        (["--draw", "old.csv"], "`--draw` of autotimm predict must be a new or empty folder"),
    ],
)
def test_unusable_output_path_is_refused_before_predicting(words: list[str], must: str, tmp_path: Path, capsys,
                                                           monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("mine")
    assert main(["predict", "no-run", "photos", *words]) == 2
    assert must in capsys.readouterr().err
    assert (tmp_path / "old.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "must"),
    [
        (["--out", "found.json"], "`--out` of autotimm predict must be a file that ends in .csv"),
        (["--out", "labels"], "`--out` of autotimm predict must be a file that ends in .csv"),
        (["--draw", "pictures"], "`--draw` of autotimm predict must be left out for classification"),
    ],
)
def test_outputs_that_classification_lacks_are_refused(words: list[str], must: str, run: Path, tmp_path: Path, capsys,
                                                       monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), "photos", *words]) == 2
    assert must in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_test_without_test_data_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--epochs", "1"]
    words += ["--num-workers", "0", "--threads", "1", "--name", "plain", "--out", str(tmp_path)]
    assert main(["fit", str(photos / "train"), *words]) == 0
    capsys.readouterr()
    assert main(["test", str(tmp_path / "plain")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["test", "no-such-run"], 4),
        (["fit", "no-such-folder", "--epochs", "1"], 3),
        (["backbones", "resnet1888"], 4),
        (["fit", "--dataset-name", "CIFAR10"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes(words: list[str], code: int, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.glob("runs/*")), "a failed start must leave no run folder"


_OF_A_RUN = [
    ["resume"], ["extend", "--epochs", "1"], ["report"], ["verify"], ["diff"], ["levels"], ["reproduce"], ["seal"],
    ["publish", "--out", "p.zip"],
]  # fmt: skip
_OF_A_RUN_OR_CHECKPOINT = [["test"], ["validate"], ["serve"], ["export"]]


@pytest.mark.parametrize("words", [*_OF_A_RUN, *_OF_A_RUN_OR_CHECKPOINT], ids=lambda words: words[0])
def test_something_else_than_a_run_is_refused(words: list[str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "runs/a-001/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/a-001/checkpoints/best.ckpt").touch()
    takes = "a run folder" if words in _OF_A_RUN else "a run folder or a checkpoint"
    places = {
        "runs/a-01": "It does not exist. Did you mean 'a-001'?",
        "folder": "It is not a run folder. Give the folder that the last line of `autotimm fit` names.",
        "runs/a-001/checkpoints/best.ckpt": "It is a file. Give its run, runs/a-001.",
    }
    for place, problem in list(places.items())[: None if words in _OF_A_RUN else 2]:
        more = [place] if words[0] == "diff" else []
        assert main([words[0], place, *more, *words[1:]]) == 4
        assert capsys.readouterr().err == f"error: {place} must be {takes}. {problem}\n"


@pytest.mark.parametrize(
    ("words", "once"),
    [
        (["fit", "--dataset-name", "CIFAR10"], "download"),
        (["fit", "--dataset-name", "unheard-of"], "Flowers102"),
        (["fit", "PHOTOS", "--monitor", "nothere"], "val/f1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_error_messages_repeat_nothing(words: list[str], once: str, photos: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(photos) if word == "PHOTOS" else word for word in words]
    small = ["--backbone", "test_resnet", "--pretrained", "false", "--num-workers", "0"]
    assert main([*words, *small]) in (2, 3)
    assert capsys.readouterr().err.count(once) == 1


def test_table_without_label_column_is_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("image,cat,dog\na.png,1,0\n")
    assert main(["fit", "--train-csv", "t.csv"]) == 3
    assert capsys.readouterr().err == (
        "error: t.csv: no column has a usual name like 'label'; which column is it? Give `label_column`, one of image, "
        "cat, dog. For several labels per image: label_column=['cat', 'dog'].\n"
    )


def test_lightning_style_file_trains_the_same_model(photos: Path, run: Path, tmp_path: Path):
    (tmp_path / "nested.yaml").write_text(
        f"""
model:
  class_path: ImageClassifier
  init_args: {{backbone: test_resnet, num_classes: 2, pretrained: false, image_size: 32}}
data:
  class_path: autotimm.ImageDataModule
  init_args: {{data_dir: {photos}, image_size: 32, num_workers: 0}}
trainer: {{max_epochs: 1, threads: 1, seed: 42}}
"""
    )
    done = autotimm("fit", "--config", "nested.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1].removeprefix("run: ")
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_python_and_command_line_train_the_same_model(photos: Path, run: Path, tmp_path: Path):
    import autotimm as package

    python_run = package.fit(
        photos,
        backbone="test_resnet",
        pretrained=False,
        image_size=32,
        epochs=1,
        num_workers=0,
        threads=1,
        out=tmp_path,
    )
    assert (python_run.path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_backbones(capsys: pytest.CaptureFixture[str]):
    assert main(["backbones", "resnet18"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert "resnet18" in names
    assert all("resnet18" in name for name in names)
    assert main(["backbones", "resnet?8"]) == 0
    assert capsys.readouterr().out.splitlines() == ["resnet18"]


def test_a_pattern_that_no_backbone_has(capsys: pytest.CaptureFixture[str]):
    assert main(["backbones", "resnett18"]) == 4
    assert "No backbone name matches 'resnett18'. Did you mean 'resnet18'?" in capsys.readouterr().err
    assert main(["backbones", "0123456789"]) == 4
    assert "Try a shorter part of the name" in capsys.readouterr().err
