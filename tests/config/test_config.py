"""The options of ``fit``: values, sources, errors, and files that read back."""

import dataclasses
import inspect
import math
import sys
import time
from pathlib import Path
from textwrap import indent

import pytest

from autotimm.config import COMMAND_LINE, FitConfig, defaults, options, read_yaml, write_scalar
from autotimm.config.value_types import Flag, Name, Number, Share, Text, Whole
from autotimm.errors import UsageError


def refusal(**values: object) -> str:
    with pytest.raises(UsageError) as caught:
        FitConfig.from_options("photos", values)
    return str(caught.value)


def file_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "photos.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def from_file(tmp_path: Path, text: str) -> FitConfig:
    values, nested = read_yaml(file_of(tmp_path, text))
    assert not nested
    return FitConfig.layered([("file photos.yaml", values)])


def test_every_option_is_described_and_has_a_valid_default():
    assert list(options()) == [one.name for one in dataclasses.fields(FitConfig) if one.name != "sources"]
    for name, one in options().items():
        default = defaults()[name]
        assert one.help, name
        assert not one.help.endswith("."), name
        assert one.read(default, name, "test", default, python=True) == default
        assert one.word(default) is not None, f"{name} has no word for None"
        assert (
            one.read(str(one.word(default)) if not isinstance(default, tuple) else default, name, "test", default)
            == default
        )


def test_it_is_frozen_plain_data():
    config = FitConfig(path="photos")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]
    assert {type(value) for value in config.as_dict().values()} <= {int, float, str, bool, list, type(None)}


def test_later_layers_win_and_the_source_is_recorded():
    config = FitConfig.layered(
        [("file photos.yaml", {"path": "a", "epochs": "3", "lr": "1e-3"}), (COMMAND_LINE, {"epochs": "5"})]
    )
    assert (config.path, config.epochs, config.lr, config.batch_size) == ("a", 5, 1e-3, 32)
    assert [config.sources[name] for name in ("path", "epochs", "batch_size")] == [
        "file photos.yaml",
        "command line",
        "default",
    ]


def test_resolving_names_who_decided_and_checks_the_value():
    config = FitConfig(path="photos").resolved({"lr": 5e-4, "optimizer": "adamw"}, "recipe")
    assert (config.lr, config.sources["lr"], config.sources["optimizer"]) == (5e-4, "recipe", "recipe")
    with pytest.raises(UsageError, match="lr"):
        config.resolved({"lr": -1}, "recipe")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("lr", "auto", None),
        ("seed", "none", None),
        ("seed", "0", 0),
        ("seed", str(2**32 - 1), 2**32 - 1),
        ("num_workers", "auto", None),
        ("num_workers", "0", 0),
        ("pretrained", "auto", None),
        ("pretrained", "true", True),
        ("pretrained", "false", False),
        ("pretrained", "weights.pth", "weights.pth"),
        ("deterministic", "False", False),
        ("strict", "yes", True),
        ("loggers", "tensorboard, wandb", ("tensorboard", "wandb")),
        ("metrics", ["Accuracy"], ("Accuracy",)),
        ("name", "123", "123"),
        ("precision", 32, "32"),
        ("out", Path("a/b"), "a/b"),
    ],
)
def test_text_and_things_are_read_alike(name: str, text: object, value: object):
    assert getattr(FitConfig.from_options("photos", {name: text}), name) == value
    assert getattr(FitConfig.from_options("photos", {name: value}), name) == value


def test_the_error_sentence():
    assert refusal(val_split=1.5) == (
        "The `val_split` of autotimm.fit must be a number in [0, 1). Got 1.5 instead. Give 0 to train on everything."
    )
    assert refusal(val_split="1.5") == refusal(val_split=1.5)
    assert "must be a whole number, 1 or more. Got 'ten' instead. The default is 10." in refusal(epochs="ten")
    assert "in [0, 2**32), or the word none" in refusal(seed=2**32)
    assert "Did you mean 'randaugment'?" in refusal(augmentation="randaug")
    assert "Did you mean 'tensorboard'?" in refusal(loggers="wandb,tensorbord")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("epochs", 1.5),
        ("epochs", None),
        ("image_size", 0),
        ("image_size", -32),
        ("batch_size", "0"),
        ("seed", -1),
        ("seed", True),
        ("seed", 1.0),
        ("lr", 0),
        ("lr", "nan"),
        ("lr", "inf"),
        ("test_split", -0.1),
        ("label_smoothing", 1),
        ("deterministic", "maybe"),
        ("deterministic", 1),
        ("pretrained", ""),
        ("pretrained", 3),
        ("backbone", ""),
        ("backbone", 18),
        ("loggers", "tensorbord"),
        ("loggers", []),
        ("loggers", "wandb,wandb"),
        ("threads", 0),
    ],
)
def test_wrong_values_name_their_option(name: str, value: object):
    assert f"The `{name}` of autotimm.fit must be" in refusal(**{name: value})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("epoch", "epochs"),
        ("max_epochs", "epochs"),
        ("data_dir", "path"),
        ("compile_model", "compile"),
        ("workers", "num_workers"),
        ("learning_rate", "lr"),
        ("model", "backbone"),
        ("bachsize", "batch_size"),
    ],
)
def test_unknown_keys_get_a_hint(key: str, hint: str):
    assert f"no option `{key}`. Did you mean '{hint}'" in refusal(**{key: 1})


def test_options_that_depend_on_each_other():
    assert "must sum to less than 1" in refusal(val_split=0.6, test_split=0.5)
    assert "`val_csv` of fit has no effect without `train_csv`" in refusal(val_csv="val.csv")
    assert "`download` of fit has no effect without `dataset_name`" in refusal(download=True)
    with pytest.raises(UsageError, match="There is no data"):
        FitConfig()
    FitConfig(train_csv="train.csv", val_csv="val.csv")


@pytest.mark.parametrize(
    ("useless", "by"),
    [
        ({"lr": 0.01}, "lr_find"),
        ({"batch_size": 32}, "batch_size_find"),
        ({"layer_decay": 0.7}, "freeze_backbone"),
        ({"backbone_scale": 0.1}, "freeze_backbone"),
        ({"drop_path_rate": 0.1}, "freeze_backbone"),
    ],
)
def test_a_value_that_another_option_replaces_is_refused(tmp_path: Path, useless: dict[str, float], by: str):
    ((name, value),) = useless.items()
    message = f"The `{name}` of fit has no effect with `{by}`"
    assert message in refusal(**useless, **{by: True})
    with pytest.raises(UsageError, match=message):
        from_file(tmp_path, f"path: a\n{name}: {value}\n{by}: true\n")
    with pytest.raises(UsageError, match=message):
        FitConfig.layered([("file photos.yaml", {"path": "a", name: str(value)}), (COMMAND_LINE, {by: "true"})])
    FitConfig.from_options("photos", {**useless, by: False})
    # What a recipe, a finder or a task chose was not asked for, and a record that holds it reads back.
    found = FitConfig.from_options("photos", {by: True}).for_task("detection").resolved(useless, "recipe")
    again = from_file(tmp_path, found.to_yaml())
    assert again.as_dict() == found.as_dict()
    assert not FitConfig.from_options("photos", {by: True}).given(name)


def test_values_that_ask_for_nothing_contradict_nothing():
    FitConfig.from_options("photos", {"lr": "auto", "lr_find": True})
    FitConfig.from_options("photos", {"freeze_backbone": True, "layer_decay": 1, "backbone_scale": 1})
    FitConfig.from_options("photos", {"freeze_backbone": True, "drop_path_rate": 0})


def test_a_table_as_path_is_the_table_to_train_on():
    config = FitConfig.from_options("labels.csv", {"image_column": "photo", "val_csv": "val.csv", "image_dir": "b"})
    assert (config.path, config.image_column) == ("labels.csv", "photo")
    with pytest.raises(UsageError, match=r"takes one table to train on. Got labels.TSV and `train_csv`"):
        FitConfig(path="labels.TSV", train_csv="train.csv")


def test_a_dashed_and_an_underscored_key_are_one_key(tmp_path: Path):
    assert from_file(tmp_path, "path: a\nbatch-size: 8\n").batch_size == 8
    with pytest.raises(UsageError, match=r"photos.yaml gives `batch_size` twice"):
        from_file(tmp_path, "path: a\nbatch-size: 8\nbatch_size: 8\n")


def test_values_of_a_file_are_read_as_on_the_command_line(tmp_path: Path):
    config = from_file(
        tmp_path, "path: 2024\nname: 007\nlr: 1e-3\nstrict: no\nseed: none\nlabel_column: [a, b]\ntrain_csv: x\n"
    )
    assert (config.path, config.name, config.lr, config.strict, config.seed) == ("2024", "007", 1e-3, False, None)
    assert config.label_column == ("a", "b")


@pytest.mark.parametrize("empty", ["lr:", "lr: null", "lr: ~"])
def test_an_empty_value_in_a_file_is_a_mistake(tmp_path: Path, empty: str):
    with pytest.raises(UsageError) as caught:
        from_file(tmp_path, f"path: a\n{empty}\n")
    assert str(caught.value) == (
        "The `lr` of photos.yaml has no value. Write a number above 0, or the word auto, such as `lr: auto`, or remove "
        "the line."
    )


def test_an_empty_value_gets_an_example_that_helps(tmp_path: Path):
    for line, example in (("epochs:", "1 or more, such as `epochs: 10`,"), ("path:", "or the word none, or remove")):
        with pytest.raises(UsageError) as caught:
            from_file(tmp_path, f"{line}\n")
        assert f"Write {options()[line[:-1]].kind.must}" in str(caught.value)
        assert example in str(caught.value)


def test_a_default_that_is_called_default_reads_well():
    assert refusal(augmentation="heavy").endswith("The default is 'default'.")
    assert refusal(precision="fp16").endswith("The default is 32.")
    assert options()["augmentation"].shown("default") == "'default'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: a\nepochs: 1\nepochs: 2\n", "gives `epochs` twice in one place, line 3"),
        ("model:\n  class_path: X\n  class_path: Y\n", "gives `class_path` twice in one place, line 3"),
        ("model: {class_path: X}\nepochs: 3\n", "has `epochs` beside `model`"),
        ("data: photos\nepochs: 3\n", "has no option `data`. Did you mean 'path'?"),
        ("model: resnet18\npath: photos\n", "has no option `model`. Did you mean 'backbone'?"),
        ("trainer: gpu\npath: photos\n", "has no option `trainer`. Leave it out."),
        ("data:\n  class_path: X\nepochs: 3\n", "has `epochs` beside `data`"),
        ("model: {class_path: X}\nseed_everything: 1\n", "has `seed_everything` beside `model`"),
        ("path: a\n\tepochs: 1\n", "is not YAML: line 2"),
        ("- a\n- b\n", "must hold options, a line"),
        ("", "must hold options, a line"),
        ("? [a]\n: 1\n", "as a key"),
        ("<<: {epochs: 1}\npath: a\n", "no option `<<`"),
        ("path: a\nepochs: {a: 1}\n", "The `epochs` of photos.yaml must be"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError) as caught:
        from_file(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_yaml(str(tmp_path / "missing.yaml"))
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_yaml(str(tmp_path / "latin.yaml"))


def test_an_alias_that_leads_back_to_itself_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="the anchor `&x` contains itself, line 2"):
        from_file(tmp_path, "path: a\nepochs: &x [*x]\n")
    with pytest.raises(UsageError, match="the anchor `&x` contains itself, line 2"):
        read_yaml(file_of(tmp_path, "model: &x\n  class_path: *x\n"))


LAUGHS = "a: &a0 [ha]\n" + "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
MERGES = "a: &a0 {x: 1}\n" + "".join(f"b{n}: &a{n + 1}\n  <<: [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
FLAT_BOMB = f"path: &a [{'x, ' * 500}]\nmetrics: [{'*a, ' * 21}]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("path: " + "[" * 1000 + "]" * 1000, "line 1 is nested more than 100 levels deep"),
        ("path: " + "{a: " * 100_000, "line 1 is nested more than 100 levels deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(1000)), "line 101 is nested more than 100 levels deep"),
        ("path: " + "- " * 1000, "is not YAML: line 1"),
        (LAUGHS, "its aliases stand for more than 10,000 values"),
        ("model:\n" + indent(LAUGHS, "  "), "its aliases stand for more than 10,000 values"),
        ("model:\n" + indent(MERGES, "  "), "its aliases stand for more than 10,000 values"),
        (FLAT_BOMB, "its aliases stand for more than 10,000 values"),
        ("path: [" + "x," * 300_000, "it has more than 250,000 values"),
    ],
    ids=["lists", "mappings", "lines", "dashes", "laughs", "nested laughs", "merges", "copies", "values"],
)
def test_bombs_are_refused_before_they_are_built(tmp_path: Path, text: str, why: str):
    file = file_of(tmp_path, text)
    before = time.process_time()
    with pytest.raises(UsageError, match=why):
        read_yaml(file)
    assert time.process_time() - before < 10, "a second on an idle machine; what is built takes minutes or all memory"


def test_a_large_file_is_refused_by_its_size(tmp_path: Path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # takes no room on the disk
    with pytest.raises(UsageError, match=r"large.yaml cannot be read: it is larger than 16 MB. Give a sim"):
        read_yaml(str(path))


def test_anchors_in_moderation_are_welcome(tmp_path: Path):
    text = "model: &m\n  class_path: A\n  init_args: {list: &l [1, 2]}\ndata:\n  <<: *m\n  init_args: {again: *l}\n"
    values, _ = read_yaml(file_of(tmp_path, text))
    assert values["data"] == {"class_path": "A", "init_args": {"again": [1, 2]}}
    assert from_file(tmp_path, "path: &p a\nname: *p\n").name == "a"
    deep: object = read_yaml(file_of(tmp_path, f"model: {'[' * 98}x{']' * 98}\n"))[0]["model"]
    for _ in range(98):
        (deep,) = deep  # type: ignore[misc]
    assert deep == "x"


@pytest.mark.parametrize("value", ["!!bool x", '!!int ""', "!!float x", "2024-13-01", "!!timestamp x", "9" * 5000])
def test_a_value_that_does_not_fit_its_type_is_named(tmp_path: Path, value: str):
    with pytest.raises(UsageError, match=r"is not YAML: a value does not fit its type \("):
        read_yaml(file_of(tmp_path, f"model: {{class_path: A, init_args: {{x: {value}}}}}\n"))


def test_the_lightning_style_keeps_yaml_types(tmp_path: Path):
    values, nested = read_yaml(file_of(tmp_path, "model:\n  class_path: A\n  init_args: {lr: null, n: 3}\n"))
    assert nested
    assert values == {"model": {"class_path": "A", "init_args": {"lr": None, "n": 3}}}


def test_written_configurations_read_back(tmp_path: Path):
    config = FitConfig.from_options(
        "füße # und/ein sehr langer Weg/" + "x" * 90,
        {
            "epochs": 3,
            "lr": 1e-5,
            "name": "null",
            "seed": None,
            "train_csv": "~x: y",
            "label_column": ["a b", "c,d"],
            "monitor": "a\nb",
        },
    ).resolved({"optimizer": "adamw"}, "recipe: CNN")
    text = config.to_yaml()
    assert "\nepochs: 3" in text
    assert "# argument\n" in text
    assert "# recipe: CNN\n" in text
    assert from_file(tmp_path, text).as_dict() == config.as_dict()


@pytest.mark.parametrize("value", ["a", "true", "1e-3", "null", "", "# x", "a: b", "- a", 3, 0.1, True, ["a", "1"]])
def test_scalars_stand_on_one_line(value: object):
    assert "\n" not in write_scalar(value)


def test_python_may_say_none_but_only_where_there_is_a_word_for_it():
    assert FitConfig.from_options("photos", {"lr": None, "seed": None}).seed is None
    assert "Got None" in refusal(image_size=None)


def test_the_fields_are_what_fit_takes():
    parameters = inspect.signature(FitConfig).parameters
    assert list(parameters)[-1] == "sources"
    assert all(one.default is not inspect.Parameter.empty for one in parameters.values())


@pytest.mark.parametrize(
    ("kind", "must"),
    [
        (Whole(1), "a whole number, 1 or more"),
        (Number(0, 1, low_open=True), "a number in (0, 1]"),
        (Number(), "a number of at least 0"),
        (Number(low_open=True), "a number above 0"),
        (Flag(), "true or false"),
        (Share(), "a share above 0 and at most 1, such as 10% or 0.1"),
        (Text(), "text"),
    ],
)
def test_kinds_say_what_they_are(kind: object, must: str):
    assert kind.must == must  # type: ignore[attr-defined]


def test_shares():
    assert [Share().read(value) for value in ("10%", " 2.5 % ", "0.1", 1)] == [0.1, 0.025, 0.1, 1.0]
    assert Share().word(0.1) == "10%"
    for value in ("0%", "101%", 10, "ten", True, "%"):
        with pytest.raises((ValueError, TypeError)):
            Share().read(value)


def test_numbers_of_other_libraries_are_numbers():
    numpy = sys.modules.get("numpy") or pytest.importorskip("numpy")
    config = FitConfig.from_options("photos", {"epochs": numpy.int64(3), "lr": numpy.float32(0.5)})
    assert (config.epochs, config.lr) == (3, 0.5)
    assert (type(config.epochs), type(config.lr)) == (int, float)


@pytest.mark.parametrize("value", [1e39, 1e-39, -1e308, "1e400", 10**400, 5e-324])
def test_numbers_that_32_bit_floats_cannot_hold_are_refused(value: object):
    with pytest.raises(ValueError):  # noqa: PT011  # the caller words it
        Number(-math.inf).read(value)


@pytest.mark.parametrize("value", [0, 0.0, 3.4e38, 1.2e-38, "1e-3"])
def test_all_others_are_numbers(value: object):
    assert Number().read(value) == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw", "my_losses.Focal", "lookahead_adamw", "faster_rcnn", "a.b.c", "two-words"])
def test_names_and_import_paths(name: str):
    assert Name().read(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a.", "a..b", "a b", "a/b", "1a", "a.1", "a\n", "-a", None, 3])
def test_what_is_no_import_path(name: object):
    with pytest.raises(ValueError):  # noqa: PT011  # the caller words it
        Name().read(name)


def test_an_option_with_a_dash_and_with_an_underscore_is_refused():
    with pytest.raises(UsageError, match=r"a\.yaml gives `batch_size` twice, with a dash and with an underscore"):
        FitConfig.layered([("file a.yaml", {"batch-size": "4", "batch_size": "8"})])
