import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from autotimm import errors
from autotimm.errors import (
    AutotimmError,
    ChangedDataError,
    DataError,
    DifferentError,
    IncompleteError,
    LossError,
    ModelError,
    RunError,
    UnreadableSampleError,
    UsageError,
    WeightsError,
    join_names,
    nearest,
    printable,
    require,
    require_choice,
    sentence,
)

EXIT_CODES = {
    AutotimmError: 1,
    UsageError: 2,
    DataError: 3,
    UnreadableSampleError: 3,
    ChangedDataError: 3,
    ModelError: 4,
    WeightsError: 4,
    DifferentError: 5,
    IncompleteError: 6,
    RunError: 1,
    LossError: 1,
}


@pytest.mark.parametrize(("error", "code"), EXIT_CODES.items())
def test_each_error_has_its_exit_code_and_base_class(error, code):
    assert error.exit_code == code
    assert error("why").exit_code == code
    assert issubclass(error, AutotimmError)


def test_exit_codes_of_all_errors_are_listed():
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AutotimmError)}
    assert defined == set(EXIT_CODES)
    assert {error.__name__ for error in defined} <= set(errors.__all__)


def test_only_usage_error_is_a_value_error():
    assert issubclass(UsageError, ValueError)
    assert not any(issubclass(error, ValueError) for error in EXIT_CODES if error is not UsageError)
    assert issubclass(WeightsError, ModelError)


@pytest.mark.parametrize("error", EXIT_CODES)
def test_errors_can_be_pickled(error):
    # Workers of data loaders send their errors to the main process.
    unpickled = pickle.loads(pickle.dumps(error("the `x` of y")))
    assert type(unpickled) is error
    assert str(unpickled) == "the `x` of y"


def test_sentence():
    assert sentence("val_split", "ImageDataModule", "a number in [0, 1)", 1.5, "Give 0 to train on everything.") == (
        "The `val_split` of ImageDataModule must be a number in [0, 1). Got 1.5 instead. Give 0 to train on everything."
    )


def test_sentence_shows_the_repr():
    assert "Got '42' instead." in sentence("seed", "Task", "an integer", "42", "Give 42.")


@pytest.mark.parametrize(
    ("word", "options", "suggestion"),
    [
        ("resnet81", ["resnet18", "vit_tiny"], "Did you mean 'resnet18'?"),
        ("RESNET18", ["resnet18"], "Did you mean 'resnet18'?"),
        ("adamw", ["AdamW", "sgd"], "Did you mean 'AdamW'?"),
        ("xyzzy", ["resnet18"], ""),
        ("--data", ["--task", "--path", "--seed"], ""),
        ("--ckpt", ["--path", "--clip"], ""),
        ("--dir", ["--lr", "--image-dir"], "Did you mean '--image-dir'?"),
        ("fti", ["fit", "validate", "test"], "Did you mean 'fit'?"),
        ("val", ["fit", "validate", "test"], "Did you mean 'validate'?"),
        ("eval", ["fit", "validate", "test"], ""),
        ("bf16", ["32", "bf16-mixed", "16-true"], "Did you mean 'bf16-mixed'?"),
        ("f1", ["val/accuracy", "val/f1"], "Did you mean 'val/f1'?"),
        ("kappa", ["Accuracy", "CohenKappa"], "Did you mean 'CohenKappa'?"),
        ("size", ["image_size", "batch_size", "seed"], "Did you mean 'batch_size' or 'image_size'?"),
        ("image-size", ["image_size", "batch_size"], "Did you mean 'image_size'?"),
        ("weight", ["height", "strict"], "Did you mean 'height'?"),
        ("metric", ["strict"], ""),
        ("--", ["--lr"], ""),
        ("resnet18", [], ""),
        ("", ["resnet18"], ""),
    ],
)
def test_nearest(word, options, suggestion):
    assert nearest(word, options) == suggestion


def test_nearest_names_at_most_n_closest_first():
    names = ["resnet50", "resnet26", "resnet18", "skresnet18", "resnet18d"]
    assert nearest("resnet1", iter(names), n=2) == "Did you mean 'resnet18' or 'resnet18d'?"  # an iterator is enough
    assert nearest("resnet2", names) == "Did you mean 'resnet26'?"
    assert nearest("resnet", names, n=2) == "Did you mean 'resnet18' or 'resnet26'?"


def test_require_accepts_a_true_condition():
    require(True, "size", "Sampler", "at least 1", 1, "Give more.")


def test_require_raises_with_sentence():
    with pytest.raises(UsageError) as caught:
        require(False, "size", "Sampler", "at least 1", 0, "Give more.")
    assert str(caught.value) == "The `size` of Sampler must be at least 1. Got 0 instead. Give more."


def test_require_choice_accepts_an_iterator():
    for option in ("none", "light"):
        require_choice("augmentation", "ImageDataModule", option, iter(["none", "light"]))


@pytest.mark.parametrize(
    ("value", "cure"),
    [("ligth", "Did you mean 'light'?"), ("xyzzy", "Choose one of these."), (None, "Did you mean 'none'?")],
)
def test_require_choice_error_lists_all_options_and_the_nearest(value, cure):
    with pytest.raises(UsageError) as caught:
        require_choice("augmentation", "ImageDataModule", value, iter(["none", "light"]))
    expected = f"The `augmentation` of ImageDataModule must be one of none, light. Got {value!r} instead. {cure}"
    assert str(caught.value) == expected


def test_errors_import_without_torch():
    code = "import sys, autotimm.errors; print(*{'torch', 'numpy', 'timm', 'pytorch_lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat\x1b[2J", "cat\\x1b[2J"),
        ("a\nb\tc\x07\x9b", "a\\nb\\tc\\x07\\x9b"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800", "\\ud800"),
        ("Käse 猫 👨‍👩‍👧 نمی‌دانم", "Käse 猫 👨‍👩‍👧 نمی‌دانم"),
        (Path("a\rb"), "a\\rb"),
    ],
)
def test_names_cannot_steer_a_terminal(text, shown):
    assert printable(text) == shown
    assert join_names([str(text)]) == shown


def test_line_breaks_of_a_message_stay():
    assert printable("one\n\x1b[1mtwo", keep="\n") == "one\n\\x1b[1mtwo"


def test_long_values_are_shortened():
    message = sentence("out", "fit", "a path", "x" * 5000, "Shorten it.")
    assert len(message) < 400
    assert "...xxx" in message
