"""Commands with drawn options and damaged files: one sentence and a documented exit code, and nothing left behind.

500 cases in all, the same in each run. A case that fails is printed with the command and the damage that lead to it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import autotimm
from autotimm.cli.main import VERBS, main
from autotimm.config import defaults, options
from autotimm.config.value_types import Choice, Flag, Number, StreamSeeds, Whole, Words
from autotimm.config.value_types import Path as PathKind
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from training import small_fit

pytestmark = pytest.mark.slow

DOCUMENTED = {0, 1, 2, 3, 4, 5, 6}
IMAGES = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "16", "--batch-size", "4",
          "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--progress", "false", "--val-split", "0.25",
          "--epochs", "1"]  # fmt: skip
SCENES = [*IMAGES[:4], "--image-size", "32", "--width", "64", "--batch-size", "4", *IMAGES[8:-4], *IMAGES[-2:]]


def cases(number: int) -> Any:
    """Draw this many cases, always the same ones, and show the first that fails as it is."""
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip


# What is checked of each case


def complaint(argv: list[str], world: World) -> str:
    """What is wrong with how a command ends; empty if nothing is."""
    before = world.run_folders()
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(argv)
    except BaseException as error:  # whatever it is: nothing may leave `main`
        return f"{type(error).__name__}: {str(error)[:300]}"
    said = stderr.getvalue()
    if code not in DOCUMENTED:
        return f"exit code {code}"
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    if code in (1, 2, 3, 4) and not re.search(r"^error: |^verdict: ", f"{said}\n{stdout.getvalue()}", re.MULTILINE):
        return f"exit code {code} without a word: {said[-300:]!r}"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said):
        return f"control characters: {said[-300:]!r}"
    new = world.run_folders() - before
    if code != 0 and (left := [folder for folder in new if not trained(folder)]):
        return f"left {left[0]}: {sorted(path.name for path in left[0].iterdir())}"
    if code != 0 and not new and (world.root / "out").exists():
        return "left an empty folder out"
    temporary = [path.name for path in world.scratch.iterdir()]
    return f"temporary files: {temporary[0]}" if temporary else ""


def trained(folder: Path) -> bool:
    return any(line["kind"] == "step" for line in read_ledger(folder / "ledger.jsonl").lines)


def check(argv: list[str], world: World, note: str = "") -> None:
    problem = complaint(argv, world)
    world.clear()
    assert not problem, f"autotimm {' '.join(map(repr, argv))}\n{note}\n{problem}"


# What the cases start from


@dataclass
class World:
    """Toy data, a finished run and an interrupted one, and a place for what a case makes of them."""

    root: Path
    scratch: Path  # for temporary files

    def run_folders(self) -> set[Path]:
        return {path.parent for path in self.root.rglob("config.yaml")}

    def copy(self, name: str) -> Path:
        """A run to damage, or data."""
        place = self.root / "case" / Path(name).name
        shutil.copytree(self.root / name, place, symlinks=True)
        return place

    def clear(self) -> None:
        kept = {"shapes", "objects", "regions", "runs"}
        for path in [*self.scratch.iterdir(), *(path for path in self.root.iterdir() if path.name not in kept)]:
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("fuzz")
    scratch = tmp_path_factory.mktemp("scratch")
    made = make_world(root, scratch)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield made


def make_world(root: Path, scratch: Path) -> World:
    write_toy_folder(root / "shapes", n=12, num_classes=2, image_size=16, seed=7)
    write_toy_objects(root / "objects", splits={"train": 4, "val": 2}, image_size=32)
    write_toy_segmentation(root / "regions", splits={"train": 4, "val": 2}, image_size=32)
    files = sorted((root / "shapes").rglob("*.png"))
    rows = [f"{path.relative_to(root / 'shapes').as_posix()},{path.parent.name}" for path in files]
    (root / "shapes" / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    shapes = root / "shapes"
    small_fit(shapes, root / "runs", image_size=16, batch_size=4, test_split=0.2, name="finished").test()
    run = small_fit(shapes, root / "runs", image_size=16, batch_size=4, epochs=2, name="killed")
    kill_after_first_epoch(run.path)
    return World(root, scratch)


def kill_after_first_epoch(folder: Path) -> None:
    """What SIGKILL in the second epoch leaves: the first one's checkpoint, and a ledger that reaches further."""
    first, second = sorted((folder / "checkpoints").glob("epoch-*.ckpt"))
    second.unlink()
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).unlink()
        shutil.copyfile(first, folder / "checkpoints" / name)
    for name in ("results.json", "model.safetensors"):
        (folder / name).unlink()
    manifest = Manifest.load(folder / "manifest.json")
    manifest.results.clear()
    manifest.results["status"] = "running"
    manifest.save(folder / "manifest.json")


# Values of options

LONG = "x" * 300
STRANGE = [
    "", " ", "..", "../..", "/", "nope", "a\0b", LONG, "p/" * 2500, "\x1b[2J", "[red]x[/red]", "=cmd()", "é\u202e",
    "\ud800", "\udce9",
    "-1", "0", "1e308", "1e-300", "nan", "-inf", "1" * 30, "1.5", "true", "none", "auto", "null", "[]", "{}", "1,2",
    "init=1", "a=b", "os.system", "torch.nn.L1Loss", "%s%n", "~", "~nobody/x", "$HOME", "\n", "*",
    "shapes", "shapes/labels.csv", "runs/finished", "10min",
    "hf-hub:", "hf-hub:a/b", "resnet18.nope", "cross_entropy", "sgd",
]  # fmt: skip
RIGHT: dict[str, list[str]] = {
    "optimizer": ["sgd", "adamw", "lion", "torch.optim.SGD"],
    "loss": ["auto", "cross_entropy", "focal", "torch.nn.CrossEntropyLoss"],
    "metrics": ["Accuracy", "Accuracy,CohenKappa"],
    "monitor": ["val/loss", "val/accuracy", "train/loss"],
    "backbone": ["test_resnet", "test_vit", "test_convnext"],
    "name": ["mine", "ü b"],
    "checkpoint_every": ["1", "1s"],
    "keep": ["1", "last"],
    "loggers": ["tensorboard"],
    "stream_seeds": ["init=7"],
    "path": ["shapes", "shapes/labels.csv"],
    "train_csv": ["shapes/labels.csv"],
    "image_dir": ["shapes"],
    "out": ["out", "out/deep/er"],
}
FEW = {"devices", "threads", "num_workers"}  # a large one starts so many processes, and is refused elsewhere
NEVER = {"download", "compile", "lr_find", "batch_size_find"}  # minutes, or the network


def right_values(name: str) -> list[str]:
    """Values of an option that mean something, by its kind."""
    kind = options()[name].kind
    if name in RIGHT:
        return RIGHT[name]
    if isinstance(kind, Flag):
        return ["true", "false"]
    if isinstance(kind, Choice):
        return [*kind.options]
    if isinstance(kind, Whole):
        return ["1"] if name in FEW | {"epochs"} else ["1", "2", "8", "17"]
    if isinstance(kind, Number):
        return ["1e-30", "0.01", "0.5", "1", "1e10", "3e38"]
    if isinstance(kind, (Words, StreamSeeds, PathKind)):
        return ["none"]
    return ["auto"]


def strange_value(name: str) -> st.SearchStrategy[str]:
    strange = [value for value in STRANGE if not (name in FEW and re.fullmatch(r"\d+", value))]
    return st.sampled_from(strange) | st.text(st.characters(codec=None, max_codepoint=0x2FFF), max_size=8)


@st.composite
def fit_options(draw: st.DrawFn) -> dict[str, str]:
    """Some options, of which one at most has a strange value: the first wrong one ends the command."""
    names = draw(st.lists(st.sampled_from(sorted({*options()} - NEVER)), min_size=1, max_size=4, unique=True))
    wrong = draw(st.sampled_from([*names, *[""] * len(names)]))
    return {name: draw(strange_value(name) if name == wrong else st.sampled_from(right_values(name))) for name in names}


def command(values: dict[str, str], base: list[str] = IMAGES) -> list[str]:
    given = [(flag[2:].replace("-", "_"), value) for flag, value in zip(base[::2], base[1::2], strict=True)]
    merged = {"path": "shapes", "out": "out", **dict(given), **values}
    path = merged.pop("path")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in merged.items()]
    return ["fit", *words, "--", path]


@given(fit_options())
@cases(160)
def test_options(world: World, values: dict[str, str]) -> None:
    check(command(values), world)


# Files of options


def any_value() -> st.SearchStrategy[Any]:
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=True), st.sampled_from(STRANGE),
    )  # fmt: skip
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=3,
    )


PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": (
        autotimm.ImageClassifier, {"backbone": "test_resnet", "num_classes": 2, "image_size": 16, "pretrained": False}
    ),
    "data": (autotimm.ImageDataModule, {"data_dir": "shapes", "image_size": 16, "batch_size": 4, "num_workers": 0}),
    "trainer": (
        autotimm.AutoTrainer,
        {"max_epochs": 1, "accelerator": "cpu", "threads": 1, "enable_progress_bar": False, "run_dir": "out/run"},
    ),
}  # fmt: skip
# Long trainings, many processes, and files outside of the run folder: refused or wanted, but not here.
NOT_HERE = {
    "max_epochs", "min_epochs", "max_steps", "min_steps", "num_workers", "threads", "devices", "num_nodes", "tuner",
    "profiler", "default_root_dir", "download", "compile_model", "fast_dev_run", "run_dir", "logger", "strategy",
    "kwargs", "self", "barebones",
}  # fmt: skip


def write_options(world: World, content: Any) -> None:
    text = yaml.safe_dump(content, allow_unicode=True)
    (world.root / "case").mkdir()
    (world.root / "case" / "options.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    check(["fit", "--config", "case/options.yaml"], world, text)


@given(st.sampled_from(sorted({*options()} - NEVER - FEW)), any_value())
@cases(25)
def test_files_of_options(world: World, name: str, value: Any) -> None:
    base = {flag[2:].replace("-", "_"): value for flag, value in zip(IMAGES[::2], IMAGES[1::2], strict=True)}
    write_options(world, {**base, "path": "shapes", "out": "out", name: value})


@given(st.sampled_from([*PARTS, "trainer"]), st.data())
@cases(60)
def test_files_in_lightning_style(world: World, part: str, data: st.DataObject) -> None:
    content = {key: {"class_path": cls.__name__, "init_args": {**given}} for key, (cls, given) in PARTS.items()}
    names = sorted({*inspect.signature(PARTS[part][0]).parameters} - NOT_HERE)
    content[part]["init_args"][data.draw(st.sampled_from(names))] = data.draw(any_value())
    write_options(world, content)


# Damage to files


def damage_bytes(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    kind = draw.choice(["cut", "empty", "flipped", "noise", "latin-1", "utf-16", "long line"])
    if kind == "cut":
        content = content[: draw.randrange(len(content) + 1)]
    elif kind == "empty":
        content = b""
    elif kind == "flipped" and content:
        at = draw.randrange(len(content))
        content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    elif kind == "noise":
        content = draw.randbytes(200)
    elif kind == "latin-1":
        content = content.replace(b"e", b"\xe9", 3)
    elif kind == "utf-16":
        content = content.decode("latin-1").encode("utf-16")
    elif kind == "long line":
        content = b"a" * 200_000 + content
    path.write_bytes(content)
    return kind


WRONG = [None, True, -1, 0, 1e308, float("nan"), "", "x", "\x1b[31m", [], {}, [1], {"a": 1}, ["x"], "9" * 400, 10**400]


CELLS = ["", "x", "\x1b[2J", '"', "a\0b", LONG, "-1", "=cmd()", "../../x", "nan"]


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from leaves(item, (*place, name))


def damage_leaf(value: Any, draw: random.Random) -> str:
    """Replace a value at any depth by one of another type, or remove it."""
    place = draw.choice([*leaves(value)])
    parent = value
    for name in place[:-1]:
        parent = parent[name]
    if draw.random() < 0.25:
        del parent[place[-1]]
        return f"without {place}"
    parent[place[-1]] = draw.choice(WRONG)
    return f"{place}: {str(parent[place[-1]])[:40]!r}"


def dump(value: Any) -> str:
    """As JSON, in which a number of 400 digits is written as well."""
    return json.dumps(value, ensure_ascii=True)


def damage_values(path: Path, draw: random.Random) -> str:
    """Change a value in a file of data, and leave its form."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        said = damage_leaf(value, draw)
        path.write_text(dump(value))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        value = json.loads(lines[at])
        said = damage_leaf(value, draw)
        lines[at] = dump(value)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix in (".yaml", ".yml"):
        value = yaml.safe_load(path.read_text())
        said = damage_leaf(value, draw)
        path.write_text(yaml.safe_dump(value))
    else:
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        cells = lines[at].split(",")
        cells[draw.randrange(len(cells))] = draw.choice(
            ["", "x", "\x1b[2J", '"', "a\0b", LONG, "-1", "=cmd()", "../../x", "nan"]
        )
        lines[at] = ",".join(cells + ["more"] * draw.randrange(2))
        said = lines[at]
        path.write_text("\n".join(lines) + "\n")
    return said


def damage(path: Path, others: list[Path], draw: random.Random) -> str:
    """Damage a file in one of many ways, and say how."""
    texts = (".json", ".jsonl", ".csv", ".yaml", ".txt")
    kind = draw.choice(["bytes", "values", "values", "swapped", "gone", "folder", "link"])
    if kind == "values" and path.suffix in texts:
        return f"{path.name}: {damage_values(path, draw)}"
    if kind == "swapped":
        other = draw.choice(others)
        path.write_bytes(other.read_bytes())
        return f"{path.name} is {other.name}"
    if kind in ("gone", "folder", "link"):
        path.unlink()
        path.mkdir() if kind == "folder" else path.symlink_to(path.name) if kind == "link" else None
        return f"{path.name}: {kind}"
    return f"{path.name}: {damage_bytes(path, draw)}"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


VERBS_OF_RUNS: dict[str, Callable[[str], list[str]]] = {
    "verify": lambda run: ["verify", run],
    "epochs": lambda run: ["verify", run, "--epochs", "1:1"],
    "validate": lambda run: ["validate", run],
    "validate images": lambda run: ["validate", run, "shapes"],
    "test": lambda run: ["test", run],
    "last": lambda run: ["test", run, "--ckpt", "last"],
    "predict": lambda run: ["predict", run, "shapes"],
    "levels": lambda run: ["levels", run],
    "diff": lambda run: ["diff", run, "runs/finished"],
    "diff back": lambda run: ["diff", "runs/finished", run],
    "resume": lambda run: ["resume", run],
    "reproduce": lambda run: ["reproduce", run, "--out", "out/again"],
    "fit": lambda run: ["fit", "--config", f"{run}/config.yaml", "--out", "out", "--name", "again"],
}


@given(st.sampled_from(["finished", "killed", "killed"]), st.sampled_from(sorted(VERBS_OF_RUNS)), st.integers(0, 2**32))
@cases(145)
def test_files_of_a_run(world: World, name: str, verb: str, seed: int) -> None:
    draw, run = random.Random(seed), world.copy(f"runs/{name}")
    files = files_of(run)
    said = damage(draw.choice(files), files, draw)
    verb = "resume" if name == "killed" and draw.random() < 0.4 else verb
    check(VERBS_OF_RUNS[verb](f"case/{name}"), world, said)


def damage_image(path: Path, draw: random.Random) -> str:
    kind = draw.choice(["bytes", "large", "float", "tiny", "animated", "named", "swapped"])
    if kind == "large":
        Image.new("1", (20_000, 20_000)).save(path)  # beyond Pillow's limit, in 50 KB
    elif kind == "float":
        Image.new("F", (16, 16), draw.choice([float("nan"), 1e30, -5.0])).save(path.with_suffix(".tif"))
    elif kind == "tiny":
        Image.new("RGBA", (1, draw.choice([1, 3000]))).save(path)
    elif kind == "animated":
        Image.new("P", (16, 16)).save(
            path.with_suffix(".gif"), save_all=True, append_images=[Image.new("P", (16, 16), 1)]
        )
    elif kind == "named":
        path.rename(
            path.with_name(draw.choice(["\x1b[2J.png", "=1.png", "a\nb.png", "é\u202e.png", "-r.png", "[red].png"]))
        )
    elif kind == "swapped":
        path.write_bytes(
            draw.choice([b"<svg/>", b"\xff\xd8\xff\xe0" + bytes(50), b"GIF89a", b"%PDF-1.4", b"BM" + bytes(60)])
        )
    return f"{path.name}: {kind if kind != 'bytes' else damage_bytes(path, draw)}"


@given(st.integers(0, 2**32))
@cases(40)
def test_images(world: World, seed: int) -> None:
    draw, folder = random.Random(seed), world.copy("shapes")
    said = [damage_image(draw.choice(sorted(folder.rglob("*.png"))), draw) for _ in range(draw.choice([1, 1, 3]))]
    if draw.random() < 0.3:
        names = ["\x1b]0;x\x07", "=cmd()", "[b]", " ", "a,b", "é\n", "-x", "\udce9"]
        next(folder.glob("*/")).rename(folder / draw.choice(names))
    verbs = [
        command({"path": "case/shapes"}), command({"path": "case/shapes", "strict": "true"}),
        ["predict", "runs/finished", "case/shapes", "--out", "out.csv"], ["validate", "runs/finished", "case/shapes"],
    ]  # fmt: skip
    check(draw.choice(verbs), world, "; ".join(said))


HOSTILE = [
    "../../../etc/passwd", "/etc/passwd", "C:\\x.png", "a\0b.png", LONG + ".png", "", ".", "..",
    "\x1b[2J.png", "\ud800",    " ", "[red]x", "=cmd()", "p/" * 3000 + "x.png", "\n", "con.png", 7, 1e400, None,
]  # fmt: skip


def damage_coco(path: Path, draw: random.Random) -> str:
    content = json.loads(path.read_text())
    if draw.random() < 0.5:
        entry = draw.choice(content[draw.choice(["images", "categories"])])
        field = "file_name" if "file_name" in entry else "name"
        entry[field] = draw.choice(HOSTILE)
        said = f"{field}: {str(entry[field])[:30]!r}"
    else:
        said = damage_leaf(content, draw)
    path.write_text(dump(content))
    return said


@given(st.integers(0, 2**32), st.sampled_from(["coco", "coco", "table", "regions"]))
@cases(70)
def test_annotations(world: World, seed: int, kind: str) -> None:
    draw = random.Random(seed)
    if kind == "table":
        folder = world.copy("shapes")
        table = folder / "labels.csv"
        said = damage_values(table, draw) if draw.random() < 0.6 else damage_bytes(table, draw)
        check(command({"path": "case/shapes/labels.csv"}), world, said)
        return
    folder = world.copy("objects" if kind == "coco" else "regions")
    if kind == "coco":
        said = damage_coco(draw.choice(sorted(folder.rglob("*.json"))), draw)
    else:
        files = [path for path in files_of(folder) if "mask" in str(path) or path.suffix != ".png"] or files_of(folder)
        said = damage(draw.choice(files), files, draw)
    task = "detection" if kind == "coco" else "segmentation"
    check(command({"path": f"case/{folder.name}", "task": task}, SCENES), world, said)


def test_every_option_is_drawn() -> None:
    """The lists above know of no option that has gone, and of each task."""
    assert NEVER | FEW | {*RIGHT} <= {*options()} == {*defaults()}
    assert {verb for make in VERBS_OF_RUNS.values() for verb in make("x")[:1]} <= {*VERBS}
