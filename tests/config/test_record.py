"""Records of runs: how they are known, and what they may hold that a file of somebody's own may not."""

import json
import shutil
from pathlib import Path

import pytest

import autotimm
from autotimm.config import COMMAND_LINE, FitConfig, defaults, options, read_yaml, write_scalar
from autotimm.config.record import completed
from autotimm.errors import UsageError
from training import SMALL

V1 = Path(__file__).parents[1] / "fixtures" / "runs" / "v1" / "classification"
FOUND = {"lr": 0.01}  # as a search for a rate leaves it
REFUSAL = "The `lr` of fit has no effect with `lr_find`"


def read(tmp_path: Path, text: str) -> FitConfig:
    file = tmp_path / "photos.yaml"
    file.write_text(text, encoding="utf-8")
    return FitConfig.layered([(f"file {file}", read_yaml(str(file))[0])])


def record() -> str:
    return FitConfig.from_options("photos", {"lr_find": True}).resolved(FOUND, "recipe").to_yaml()


def without_mark(text: str) -> str:
    """The record as version 1 would have written it."""
    first, _, rest = text.partition("\n")
    assert first.split()[:2] == ["record:", "2"]
    return rest


# Options that version 1 did not have.
LATER = (
    "cache:", "cache_size:", "calibrate:", "check:", "class_levels:", "decode:", "evidence:", "fold:", "folds:",
    "group:", "ignore_exif:", "in_chans:", "label_separator:", "max_objects:", "nms_iou:", "overlap:", "recipe:",
    "portable:", "search_budget:", "shards:", "tile:",
)  # fmt: skip


@pytest.mark.parametrize("count", [3, 41, 64])
def test_a_long_file_is_refused_as_a_short_one_is(tmp_path: Path, count: int):
    lines = {"path": "photos", "lr": 0.1, "lr_find": True}
    for name, declared in options().items():
        if len(lines) < count:
            lines.setdefault(name, declared.word(defaults()[name]))
    text = "".join(f"{name}: {write_scalar(value)}\n" for name, value in lines.items())
    assert text.count("\n") == count
    with pytest.raises(UsageError, match=REFUSAL):
        read(tmp_path, text)
    assert FitConfig.layered([("file x", {"record": "2", **lines})]).lr == 0.1


def test_a_record_says_that_it_is_one(tmp_path: Path):
    config = read(tmp_path, record())
    assert (config.lr, config.lr_find) == (0.01, True)
    assert {*config.sources.values()} == {f"record {tmp_path}/photos.yaml"}
    assert not config.given("val_split")
    assert config.given("lr_find")


def test_a_record_of_version_1_is_known_by_its_options_and_comments(tmp_path: Path):
    text = "".join(line for line in without_mark(record()).splitlines(keepends=True) if not line.startswith(LATER))
    assert read(tmp_path, text).lr == 0.01
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith(("lr", "path", "epochs", "keep")):
            bare = f"{line.partition('  # ')[0].rstrip()}\n"
            with pytest.raises(UsageError, match=REFUSAL):
                read(tmp_path, "".join([*lines[:number], bare, *lines[number + 1 :]]))
    kept = [line for line in lines if not line.startswith("keep:")]
    with pytest.raises(UsageError, match=REFUSAL):
        read(tmp_path, "".join(kept))


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_the_files_of_version_1(name: str):
    file = V1 / name / "config.yaml"
    values, nested = read_yaml(str(file))
    assert (values["record"], nested) == ("1", False)
    config = FitConfig.layered([(f"file {file}", values)])
    assert config.sources["epochs"] == f"record {file}"


@pytest.mark.parametrize("version", ["3", "0", "yes", "none"])
def test_a_record_of_another_version_is_refused(tmp_path: Path, version: str):
    with pytest.raises(UsageError, match=r"The `record` of .*photos.yaml must be a version from 1 to 2. Got"):
        read(tmp_path, f"record: {version}\npath: photos\n")


def test_a_record_begins_a_run_of_its_own(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(record(), encoding="utf-8")
    layers = [(f"file {file}", read_yaml(str(file))[0]), (COMMAND_LINE, {"epochs": "5"})]
    config = FitConfig.layered(layers)
    assert (config.epochs, config.sources["epochs"], config.sources["lr"]) == (5, COMMAND_LINE, f"record {file}")
    with pytest.raises(UsageError, match=REFUSAL):
        FitConfig.layered([*layers, (COMMAND_LINE, {"lr": "0.5"})])


def test_a_finished_record_is_the_begun_one_with_what_was_chosen():
    begun, finished = ((V1 / name / "config.yaml").read_text() for name in ("stopped", "finished"))
    chosen = {"weight_decay": 0.0001, "layer_decay": 1.0, "backbone_scale": 1.0, "clip": 1.0}
    assert completed(begun, chosen, "recipe") == finished.replace("name: finished ", "name: stopped  ")


def test_a_resumed_run_has_the_record_of_one_that_was_not_interrupted(toy_folder: Path, tmp_path: Path):
    """Its sources too; only where the data is now is written anew."""
    run = autotimm.fit(toy_folder, out=str(tmp_path), name="whole", **SMALL)
    text = (run.path / "config.yaml").read_text()
    assert text.startswith("record: 2 ")
    begun = [f"{line.partition(':')[0]}: auto  # default" if line.endswith("# recipe") else line
             for line in text.splitlines()]  # fmt: skip
    assert begun != text.splitlines()
    (run.path / "config.yaml").write_text("\n".join(begun) + "\n")
    document = json.loads((run.path / "manifest.json").read_text())
    document["results"]["status"] = "running"
    (run.path / "manifest.json").write_text(json.dumps(document))
    moved = tmp_path / "moved"
    shutil.copytree(toy_folder, moved)
    run.resume(data=moved)
    before, after = (dict(line.split(": ", 1) for line in lines.splitlines())
                     for lines in (text, (run.path / "config.yaml").read_text()))  # fmt: skip
    assert after.pop("path").split() == [str(moved), "#", "moved", "data"]
    assert before.pop("path").endswith("# argument")
    assert {name: line.split() for name, line in after.items()} == {name: line.split() for name, line in before.items()}
