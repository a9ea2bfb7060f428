"""The command line before any work: help, mistakes, and modules that must not be imported for them."""

import contextlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autotimm.cli.fit import FIT, configure
from autotimm.cli.main import VERBS, main
from autotimm.cli.parser import parse
from autotimm.config import FitConfig, options

LIGHT = """
import sys
from autotimm.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "timm", "pytorch_lightning", "PIL", "rich", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def run_light(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process that fails if a heavy library was imported."""
    return subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The single line that a wrong command prints."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def configured(*words: str) -> FitConfig:
    given = parse(FIT, words)
    assert given is not None
    config = configure(given)
    assert isinstance(config, FitConfig)
    return config


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["--version"], ["fit", "--help"], ["fit", "--help-all"], *([verb, "-h"] for verb in VERBS)],
    ids=" ".join,
)
def test_help_imports_nothing_heavy_and_leaves_stderr_empty(words: list[str]):
    done = run_light(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_help_takes_less_than_half_a_second_of_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "autotimm", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_main_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {verb.usage}" in page for verb in VERBS.values())
    assert "Exit codes" in page


def test_short_help_is_short_and_long_help_is_complete(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["fit", "--help"])
    short = capsys.readouterr().out
    main(["fit", "--help-all"])
    full = capsys.readouterr().out
    assert short.count("\n") < 60
    assert max(map(len, full.splitlines())) <= 100
    assert all(f"--{name.replace('_', '-')}" in full for name in options() if name != "path")
    assert "training epochs; small sets get up to 40 [10]" in short


def test_no_control_characters_outside_a_terminal(capsys: pytest.CaptureFixture[str]):
    main(["fit", "--help"])
    assert "\033" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti", "photos"], "no verb 'fti'. Did you mean 'fit'?"),
        (["xyzzy"], "The verbs are fit, inspect"),
        (["train", "photos"], "no verb 'train'. Did you mean 'fit'?"),
        (["trian", "photos"], "no verb 'trian'. Did you mean 'fit'?"),
        (["segmnt", "photos"], "no verb 'segmnt'. Did you mean 'predict'?"),
        (["--epochs", "3", "fit"], "Options follow a verb"),
        (["--verison"], "Did you mean '--version'?"),
        (["fit", "photos", "--epoch", "3"], "autotimm fit has no option --epoch. Did you mean '--epochs'"),
        (["fit", "photos", "--max-epochs", "3"], "no option --max-epochs. Did you mean '--epochs'"),
        (["fit", "photos", "-e", "3"], "no option -e"),
        (["fit", "photos", "--model.lr", "3"], "no option --model.lr"),
        (["fit", "photos", "--epochs"], "`--epochs` of autotimm fit needs a value: a whole number"),
        (["fit", "photos", "--epochs", "--seed", "1"], "`--epochs` of autotimm fit needs a value"),
        (["fit", "photos", "--epochs", "3", "--epochs", "4"], "got --epochs twice"),
        (["fit", "photos", "--batch-size", "3", "--batch_size", "3"], "got --batch-size twice"),
        (["fit", "photos", "more"], "takes [PATH]. Got more as well"),
        (["export", "runs/a", "m.onnx"], "Got m.onnx as well. If it is the file to write, give --out m.onnx."),
        (["verify", "runs/a", "."], "Got . as well. If it is the images, give --data ."),
        (["serve", "runs/a", "8080"], "Got 8080 as well. If it is the port, give --port 8080."),
        (["serve", "runs/a", "--port", "80808"], "must be a whole number in [0, 2**16). Got 80808"),
        (["fit", "my", "photos.d"], "Got photos.d as well. Put quotes around a name that contains spaces."),
        (["fit", "photos", "--strict", "maybe"], "`--strict` of autotimm fit must be true or false. Got 'maybe'"),
        (["fit", "--strict", "1", "photos"], "`--strict` of autotimm fit must be true or false. Got 1"),
        (["fit", "photos", "--multi-label", "maybe"], "must be true or false, or the word auto. Got 'maybe'"),
        (["fit", "photos", "--strict=maybe"], "`--strict` of autotimm fit must be true or false. Got 'maybe'"),
        (["fit", "photos", "--strict", "--seed", "1", "more"], "takes [PATH]. Got more as well"),
        (["fit", "--data", "photos"], "no option --data. Did you mean 'autotimm fit PATH'?"),
        (["fit", "photos", "--learning-rate", "1"], "no option --learning-rate. Did you mean '--lr'?"),
        (["fit"], "There is no data"),
        (["inspect", "photos", "--image-size", "0"], "The `--image-size` of autotimm inspect must be"),
        (["study", "photos", "--lr", "fast"], "The `--lr` of autotimm study must be a number above 0"),
        (["fit", ""], "The `path` of autotimm fit must be a path"),
        (["fit", "photos", "--epochs", "ten"], "The `--epochs` of autotimm fit must be a whole number, 1 or more."),
        (
            ["fit", "photos", "--lr", "-1"],
            "The `--lr` of autotimm fit must be a number above 0, or the word auto. Got -1",
        ),
        (
            ["fit", "photos", "--lr", "-1e-3"],
            "The `--lr` of autotimm fit must be a number above 0, or the word auto. Got -1e-3",
        ),
        (["fit", "photos", "--epoch=3"], "no option --epoch. Did you mean '--epochs'"),
        (["fit", "photos", "-e=3"], "no option -e. See"),
        (["fit", "photos", "--name", "--"], "`--name` of autotimm fit needs a value"),
        (["fit", "--", "photos", "-x"], "takes [PATH]. Got -x as well"),
        (["fit", "photos", "--seed=4294967296"], "The `--seed` of autotimm fit must be a whole number in [0, 2**32)"),
        (["fit", "photos", "--val-split", "1"], "Give 0 to train on everything."),
        (["fit", "photos", "--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["test"], "autotimm test needs RUN|CKPT: a run folder"),
        (["predict", "runs/a"], "autotimm predict needs PATH: images"),
        (["test", "a.ckpt", "--ckpt", "last"], "a.ckpt is a checkpoint already"),
        (["demo", "photos"], "takes no arguments"),
        (["demo", "--epochs", "0"], "The `--epochs` of autotimm demo must be"),
        (["predict", "r", "p", "--fats"], "Did you mean '--fast'"),
        (["fit", "a" * 256], "A name in it is longer than 255 bytes"),
        (["fit", "a/" * 3000], "It is longer than 4095 bytes"),
        (["fit", "a\0b"], "It contains a NUL character"),
        (["fit", "a\ud800"], "It contains a half of a surrogate pair"),
        (["verify", "a\0b"], "The `RUN` of autotimm verify must be a path"),
        (["predict", "runs/a", "b", "c" * 300], "The `PATH` of autotimm predict must be a path"),
        (["fit", "photos", "--out", "x" * 300], "The `--out` of autotimm fit must be a path"),
        (["fit", "photos", "--config", "x" * 300], "cannot be read: File name too long"),
        (["fit", "photos", "--lr", "1e308"], "torch computes with numbers from 1.2e-38 to 3.4e+38."),
        (["fit", "photos", "--mixup-alpha", "1e-300"], "torch computes with numbers from 1.2e-38 to 3.4e+38."),
        (["fit", "photos", "--batch-size", "1" * 30], "It is larger than 2,147,483,647."),
        (["fit", "photos", "--loss", ".."], "must be a name, or an import path such as my_package.Mine. Got '..'"),
        (["fit", "photos", "--optimizer", "a b"], "must be a name, or an import path"),
        (["fit", "photos", "--arch", "a/b"], "must be a name, or an import path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    assert message in refusal(capsys, *words)


@pytest.mark.parametrize(
    "words", [["fti"], ["fit", "photos", "--epoch", "3"], ["fit", "photos", "--epochs", "ten"], ["test"]], ids=" ".join
)
def test_mistakes_are_reported_without_importing_torch(words: list[str]):
    done = run_light(*words)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*\n", done.stderr)


def test_invalid_files_are_reported_without_importing_torch(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("path: photos\nepochs: 3\nepochs: 4\n")
    done = run_light("fit", "--config", str(tmp_path / "a.yaml"))
    assert done.returncode == 2
    assert "gives `epochs` twice" in done.stderr


def test_command_line_overrides_file(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("path: photos\nepochs: 3\nbatch-size: 8\n")
    config = configured("--epochs", "5", "--config", str(tmp_path / "a.yaml"), "other")
    assert (config.path, config.epochs, config.batch_size) == ("other", 5, 8)
    assert config.sources["batch_size"] == f"file {tmp_path / 'a.yaml'}"
    assert config.sources["epochs"] == config.sources["path"] == "command line"


def test_equivalent_spellings():
    assert configured("photos", "--batch_size=8") == configured("--batch-size", "8", "photos")
    assert configured("--strict", "photos") == configured("photos", "--strict", "true")
    assert configured("photos", "--strict=false").strict is False
    assert configured("--strict", "yes", "photos") == configured("photos", "--strict=yes")
    assert configured("photos", "--deterministic", "No").deterministic is False
    assert configured("--strict", "maybe").path == "maybe"  # a folder may have this name
    assert configured("photos", "--deterministic", "false").deterministic is False
    assert configured("photos", "--multi-label", "auto").multi_label is None
    assert configured("photos", "--seed", "none").seed is None
    assert configured("--", "-photos").path == "-photos"
    assert configured("photos", "--name=--x").name == "--x"
    assert configured("photos", "--name", "-x", "--out", "-1").name == "-x"
    assert configured("--name=a=b", "photos").name == "a=b"


def test_help_takes_precedence_over_mistakes(capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--epoch", "3", "--help"]) == 0
    assert "training epochs; small sets" in capsys.readouterr().out
    assert main(["fit", "--strict", "--help_all"]) == 0
    assert "--image-column" in capsys.readouterr().out


def test_positionals_and_options_in_any_order():
    given = parse(VERBS["predict"], ["run", "--out", "p.csv", "a", "--fast", "b c"])
    assert given is not None
    assert given.positionals == {"run": "run", "paths": ["a", "b c"]}
    assert (given.value("out"), given.value("fast"), given.value("ckpt")) == ("p.csv", True, "best")


def test_environment_variables_set_no_options(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("AUTOTIMM_FIT__EPOCHS", "99")
    monkeypatch.setenv("AUTOTIMM_EPOCHS", "99")
    assert configured("photos").epochs == 10


def test_lightning_style_file_excludes_other_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "n.yaml").write_text("model: {class_path: A}\ndata: {class_path: B}\n")
    for words, named in ((["photos"], "PATH"), (["--epochs", "3"], "--epochs")):
        assert f"so that {named} would have no effect" in refusal(
            capsys, "fit", "--config", str(tmp_path / "n.yaml"), *words
        )


def stderr_on_a_terminal(*words: str) -> str:
    """The terminal output of a command that fails after loading torch."""
    parent_end, child_end = os.openpty()
    with os.fdopen(parent_end, "rb", buffering=0) as reader:
        command = [sys.executable, "-m", "autotimm", "fit", "no-such-folder", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=child_end, check=False)
        os.close(child_end)
        assert (done.returncode, done.stdout) == (3, b"")
        shown = b""
        with contextlib.suppress(OSError):  # raised on Linux once the other end is closed
            while piece := reader.read(4096):
                shown += piece
    return shown.decode()


def test_loading_line_on_a_terminal(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "loading torch ..."
    assert stderr_on_a_terminal().startswith(f"{line}\r{' ' * len(line)}\rerror: ")


@pytest.mark.slow
def test_no_loading_line_without_progress(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stderr_on_a_terminal("--progress", "false").startswith("error: ")


@pytest.mark.slow
def test_no_loading_line_outside_a_terminal(tmp_path: Path):
    command = [sys.executable, "-m", "autotimm", "fit", "no-such-folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr.startswith("error: ")


def test_closed_pipe_is_no_error():
    command = f"{sys.executable} -m autotimm fit --help-all | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_names_cannot_steer_a_terminal_or_fake_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["\x1b[2Jfit\nverdict: identical"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: autotimm has no verb '\\x1b[2Jfit\n  verdict: identical'.")
