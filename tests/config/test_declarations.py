"""What is declared beside an option, and what is derived from it."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest

import autotimm
import warm
from autotimm.config import (
    FitConfig,
    argument_of,
    argument_option,
    decided_by_recipe,
    defaults,
    options,
    options_at,
    recorded_argument,
    silent_arguments,
    silent_names,
)
from autotimm.config.option import PARTS, STAGES, Option, Shadow, To, option
from autotimm.config.value_types import Flag, Text
from autotimm.constants import TASKS
from autotimm.errors import UsageError
from autotimm.optim import OptimizerOptions
from autotimm.runs import factory

SOURCE = Path(autotimm.__file__).parent
TOOLS = SOURCE.parents[1] / "tools"

# The one edit that adds an option: an argument of the data module for which there is none so far.
ADDED = """\
    drop_last: bool = _data(False, Flag(), "leave out a last batch that is not full", stages=("order", "length"))
"""
SCRIPT = """
import contextlib, io, runpy, sys
import autotimm
assert autotimm.__file__ == sys.path[0] + "/autotimm/__init__.py"
from autotimm.cli.main import main
from autotimm.config import FitConfig, argument_option, read_yaml, recorded_argument
from autotimm.data.toy import write_toy_folder

photos = write_toy_folder("photos", splits={"train": 9, "val": 3}, num_classes=3, seed=7)
small = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size", "4", "--epochs",
         "1", "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--progress", "false", "--out", "."]

def printed(*words):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(words) == 0, words
    return text.getvalue()

assert "--drop-last" in printed("fit", "--help-all")
if sys.argv[1:]:
    table = runpy.run_path(sys.argv[1])["options"]("autotimm.config.FitConfig")
    assert "| `--drop-last` | `false` | true or false | leave out a last batch that is not full |" in table

printed("fit", str(photos), "--drop-last", "--name", "with", *small)
printed("fit", str(photos), "--name", "without", *small)
text = open("with/config.yaml").read()
assert any(line.split() == ["drop_last:", "true", "#", "command", "line"] for line in text.splitlines()), text
assert FitConfig.layered([("file x", read_yaml("with/config.yaml")[0])]).drop_last is True

run, other = autotimm.Run("with"), autotimm.Run("without")
assert (run.data().drop_last, other.data().drop_last) == (True, False)
verdict = run.verify()
assert (verdict.verdict, verdict.steps) == ("identical", 2), verdict  # 9 images: 2 batches of 4, not 3

assert argument_option("data", "drop_last") == "drop_last"
assert recorded_argument("inputs.config.data.drop_last").stages == ("order", "length")
assert "the option `drop_last`: on was recorded, off was found" in str(autotimm.diff("with", "without"))
"""


def test_an_added_option_is_one_edit(tmp_path: Path):
    copied = copytree(SOURCE, tmp_path / "src" / "autotimm", ignore=lambda *_: ["__pycache__"])
    file = copied / "config" / "fit_config.py"
    text = file.read_text(encoding="utf-8")
    place = "    strict: bool = "
    assert text.count(place) == 1
    file.write_text(text.replace(place, ADDED + place), encoding="utf-8")
    docs = TOOLS / "docs.py"
    words = ["-c", f"{warm.forgotten('autotimm')}sys.path.insert(0, {str(copied.parent)!r})\n{SCRIPT}"]
    done = warm.run([*words, *([docs] if docs.exists() else [])], tmp_path, {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_every_declaration_names_what_there_is():
    for name, declared in options().items():
        assert {*declared.tasks} <= {*TASKS}, name
        assert {*declared.by_task} <= {*declared.tasks}, name
        others = [shadow.name for shadow in declared.shadows] + [declared.finds or name, declared.needs or name]
        assert {*others} <= {*options()}, name
        for task, value in declared.by_task.items():
            assert declared.read(value, name, task, defaults()[name]) == value


def test_a_declaration_of_no_stage_is_refused():
    with pytest.raises(ValueError, match="'backward' is no part and no stage"):
        Option(Flag(), "help", "group", stages=("backward",))
    with pytest.raises(ValueError, match="'loader' is no part and no stage"):
        Option(Flag(), "help", "group", to=(To("loader"),))


def test_every_converter_is_there_and_used():
    named = {to.converter for declared in options().values() for to in declared.to if to.converter}
    written = inspect.getsource(factory)
    assert named == {"seed", "multi_label", "class_weights", "metrics", "run_dir", "tuner", "early_stopping", "loggers"}
    assert all(f'"{name}": ' in written for name in named)


def test_every_option_becomes_an_argument_or_decides_the_class():
    assert [name for name, declared in options().items() if not declared.to] == ["task", "search_budget"]


def test_a_recipe_decides_what_the_optimizer_takes():
    taken = inspect.signature(OptimizerOptions).parameters
    assert {*decided_by_recipe().values()} == {*taken}


def test_stages_list_their_options():
    assert options_at("rate")[:2] == ["epochs", "lr"]
    assert "num_workers" not in {name for stage in STAGES for name in options_at(stage)}
    assert not options()["num_workers"].changes_bits
    assert options()["lr"].changes_bits


def test_arguments_and_options_are_found_from_each_other():
    assert argument_option("model", "gradient_clip") == "clip"
    assert argument_option("data", "data_dir") == "path"
    assert argument_option("trainer", "callbacks") is None  # of which those of `patience` are only some
    assert (argument_of("trainer", "epochs"), argument_of("data", "epochs")) == ("max_epochs", None)
    assert argument_of("model", "no_such") is None


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("inputs.config.model.lr", "lr", "the learning rate"),
        ("inputs.config.lr", "lr", "the learning rate"),
        ("decisions.recipe.lr", "lr", "the learning rate"),
        ("decisions.batch_size", "batch_size", "the option `batch_size`"),
        ("inputs.config.trainer.max_epochs", "epochs", "the option `epochs` (`max_epochs`)"),
        ("inputs.config.epochs", "epochs", "the option `epochs` (`max_epochs`)"),
        ("inputs.config.data.colors.cat", "", "the option `colors`"),
        ("inputs.config.model_class", "task", "the class of the task"),
    ],
)
def test_names_of_a_manifest(name: str, option: str, words: str):
    argument = recorded_argument(name)
    assert argument is not None
    assert (argument.option, argument.words) == (option, words)


@pytest.mark.parametrize("name", ["inputs.seeds.task", "environment.threads", "inputs.config.model.depth", "decisions"])
def test_other_names_of_a_manifest_are_no_arguments(name: str):
    assert recorded_argument(name) is None


def test_arguments_that_are_no_inputs():
    # The id of a run is the digest of its inputs: runs of version 1 were recorded without these.
    assert silent_arguments("data") == {
        "data_dir", "train_csv", "val_csv", "test_csv", "image_dir", "num_workers", "persistent_workers", "pin_memory",
        "download", "strict", "seed", "cache", "cache_size", "check",
    }  # fmt: skip
    assert silent_arguments("model") == {"seed", "pretrained"}
    assert silent_arguments("trainer") == {
        "seed", "checkpoint_every", "keep", "logger", "enable_progress_bar", "enable_model_summary", "profiler",
        "default_root_dir", "enable_checkpointing", "log_every_n_steps", "run_dir", "callbacks", "threads",
        "evidence",  # which is recorded only where it is on
    }  # fmt: skip
    assert {*PARTS} == {"data", "model", "trainer"}


def test_places_explain_a_difference_only_if_the_data_differ():
    places = {"path", "data_dir", "train_csv", "val_csv", "test_csv", "image_dir"}
    assert silent_names(same_data=True) - silent_names(same_data=False) == places
    assert {"threads", "lr_find", "tuner", "out"} <= silent_names(same_data=False)
    assert not {"seed", "patience", "pretrained", "lr"} & silent_names(same_data=True)


class Counted(Text):
    """Text that counts how often it is read."""

    reads = 0

    def read(self, value: object) -> str:
        Counted.reads += 1
        return super().read(value)


@dataclass(frozen=True)
class More(FitConfig):
    """Two options more."""

    note: str = option("none", Counted(), "a note", "Output")
    quiet: bool = option(False, Flag(), "no notes", "Output", shadows=(Shadow("note", "which drops it"),))


def test_a_subclass_may_declare_more(tmp_path: Path):
    config = More.layered([("argument", {"path": "photos", "note": "mine"})]).resolved({"note": "yours"}, "recipe")
    assert [*options(More)][-2:] == ["note", "quiet"]
    assert "note" not in options()
    assert "note: yours" in config.to_yaml()
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    again = More.layered([(f"file {file}", autotimm.config.read_yaml(str(file))[0])])
    assert (type(again), again.note, again.as_dict()) == (More, "yours", config.as_dict())
    with pytest.raises(UsageError, match="The `note` of fit has no effect with `quiet`, which drops it"):
        More.from_options("photos", {"note": "mine", "quiet": True})


def test_a_value_is_checked_once():
    Counted.reads = 0
    config = More.layered([("argument", {"path": "photos", "note": "mine"})])
    assert Counted.reads == 1
    config = config.resolved({"lr": 0.1}, "recipe").for_task("detection").resolved({"seed": 3}, "drawn")
    assert (Counted.reads, config.note, config.image_size) == (1, "mine", 512)
    config.resolved({"note": "other"}, "recipe")
    assert Counted.reads == 2
