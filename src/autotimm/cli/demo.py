"""``autotimm demo``: train, test and predict without any download: on real digits, or on drawn scenes of shapes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any, NamedTuple

from autotimm.cli.fit import FIT, train
from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.predict import PREDICT
from autotimm.cli.run_args import run_answer
from autotimm.cli.test import TEST
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Choice, Path, Whole
from autotimm.constants import TASKS
from autotimm.errors import RunError, missing_extra

if TYPE_CHECKING:
    import numpy as np

    from autotimm.runs.run import Run

__all__ = ["DEMO", "write_digits", "write_new_scenes", "write_scenes"]

_SEED = 42
_TEST_SHARE = 0.2
_EVALUATION_SCENES = {"val": 32, "test": 64}
_UNLABELED_SCENES = 8


class _TaskDemo(NamedTuple):
    """Settings of the demo of one task.

    Attributes:
        epochs: Default number of epochs.
        image_size: Default side of the images in pixels.
        images: Number of training scenes.
        fit: Further arguments of ``autotimm fit``.
        out: Name of the file or folder for the predictions.
    """

    epochs: int
    image_size: int
    images: int
    fit: tuple[str, ...]
    out: str


_SMALL = ("--width", "64", "--batch-size")
_TASK_DEMOS = {
    # The light augmentation does not flip: a mirrored digit is another digit or none.
    "classification": _TaskDemo(10, 32, 0, ("--augmentation", "light"), "predictions.csv"),
    # The task must be named: the scenes have outlines too, so that instance segmentation would be detected.
    "detection": _TaskDemo(6, 128, 256, ("--task", "detection", *_SMALL, "16"), "found.json"),
    "segmentation": _TaskDemo(8, 128, 256, (*_SMALL, "16"), "labels"),
    "instance": _TaskDemo(3, 128, 160, (*_SMALL, "8"), "found.json"),
}


def run(argv: Sequence[str]) -> int:
    """Write images, then run the three commands ``fit``, ``test`` and ``predict`` as a user would type them."""
    given = parse(DEMO, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        answer.update(_show_task(given))
    return 0


def _show_task(given: Given) -> dict[str, Any]:
    """Run the commands for the task that was asked for; return what ``--json`` says of them."""
    task, out = given.value("task"), Folder(given.value("out"))
    demo = _TASK_DEMOS[task]
    size, epochs = given.value("image_size") or demo.image_size, given.value("epochs") or demo.epochs
    if task == "classification":
        data = out / "digits"
        counts, new = write_digits(data), data / "test"
    else:
        regions = task == "segmentation"
        data, new = out / ("regions" if regions else "shapes"), out / "new"
        counts = write_scenes(data, demo.images, size, regions=regions)
        write_new_scenes(new, size)
    print(f"{counts['train']} training images and {counts['test']} test images: {data}")
    run = _run_command(_train, "fit", _fit_arguments(demo, data, out, size, epochs))
    folder, predictions = str(run.path), _unused(out / demo.out)
    _run_command(TEST.run, "test", [folder])
    arguments = [folder, str(new), "--out", predictions]
    arguments += [] if task == "classification" else ["--draw", _unused(out / "pictures")]
    _run_command(PREDICT.run, "predict", arguments)
    print(f"\nrun: {folder}")
    return {"data": data, "predictions": predictions, **run_answer(run)}


def _train(arguments: Sequence[str]) -> Run:
    given = parse(FIT, arguments)
    assert given is not None  # it does not ask for help
    return train(given)


def _fit_arguments(demo: _TaskDemo, data: Folder, out: Folder, size: int, epochs: int) -> list[str]:
    arguments = [str(data), "--backbone", "resnet10t", "--pretrained", "false", "--image-size", str(size)]
    arguments += ["--epochs", str(epochs), *demo.fit, "--seed", str(_SEED)]
    # One thread: more would hardly speed up so small a network, and results would depend on the machine's cores.
    return [*arguments, "--threads", "1", "--out", str(out / "runs")]


def _run_command(verb_run: Callable[[Sequence[str]], Any], verb: str, arguments: list[str]) -> Any:
    """Print a command as a user would type it, then run it."""
    print(f"\n$ {shlex.join(['autotimm', verb, *arguments])}", flush=True)
    return verb_run(arguments)


def _unused(path: Folder) -> str:
    """The path, numbered if it exists: predictions never overwrite anything."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 10_000))
    return str(path if not path.exists() else next(candidate for candidate in numbered if not candidate.exists()))


def write_scenes(folder: Folder, images: int, image_size: int, *, regions: bool) -> dict[str, int]:
    """Write scenes of colored shapes into ``train/``, ``val/`` and ``test/``.

    Args:
        folder: Target folder.
        images: Number of training images.
        image_size: Side in pixels.
        regions: Whether to write a class per pixel, for semantic segmentation, instead of a COCO file of boxes and
            outlines.

    Returns:
        The number of images per split.

    Raises:
        RunError: If the folder cannot be written to.
    """
    from autotimm.data.toy import write_toy_objects, write_toy_segmentation

    write = write_toy_segmentation if regions else write_toy_objects
    splits = {"train": images, **_EVALUATION_SCENES}
    try:
        write(folder, splits=splits, image_size=image_size)
    except OSError as error:
        raise RunError(f"The scenes cannot be written to {folder}: {error.strerror}. Give another --out.") from None
    return splits


def write_new_scenes(folder: Folder, image_size: int) -> None:
    """Write a few scenes without annotations, larger and wider than the training images.

    Raises:
        RunError: If the folder cannot be written to.
    """
    from PIL import Image

    from autotimm.data.toy import draw_objects

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_UNLABELED_SCENES):
            scene = draw_objects(f"new/{number:05d}", (3 * image_size, 4 * image_size))
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    except OSError as error:
        raise RunError(f"The scenes cannot be written to {folder}: {error.strerror}. Give another --out.") from None


def write_digits(folder: Folder) -> dict[str, int]:
    """Write scikit-learn's 1,797 scanned digits (8x8 pixels) into ``train/`` and ``test/``, with a folder per digit.

    The split is stratified by digit and keyed by the images' names, so that it is the same on every machine.
    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Returns:
        The number of images per split.

    Raises:
        UsageError: If scikit-learn is not installed.
        RunError: If the folder cannot be written to.
    """
    images, labels = _load_digits()
    from PIL import Image

    from autotimm.data.keyed_split import keyed_split

    ids = [f"{label}/{index:04d}.png" for index, label in enumerate(labels)]
    train, _, test = keyed_split(ids, labels, 0.0, _TEST_SHARE, _SEED)
    try:
        for split, members in (("train", train), ("test", test)):
            for index in members:
                file = folder / split / ids[index]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[index]).save(file)
    except OSError as error:
        raise RunError(f"The digits cannot be written to {folder}: {error.strerror}. Give another --out.") from None
    return {"train": len(train), "test": len(test)}


def _load_digits() -> tuple[np.ndarray[Any, Any], list[int]]:
    """Load the scans, uint8 of shape (1797, 8, 8) with 255 for ink, and their digits."""
    try:
        from sklearn.datasets import load_digits  # an optional extra
    except ImportError:
        raise missing_extra("autotimm demo", "demo") from None
    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype("uint8"), [int(label) for label in bunch.target]


DEMO = Verb(
    name="demo",
    summary="train, test and predict on 1,797 handwritten digits, or on drawn scenes of shapes",
    run=run,
    options={
        "task": Option(Choice(TASKS), "task to show: digits for classification, shapes for the others", "Options"),
        "out": Option(Path(metavar="DIR"), "folder for the images, the run and the predictions", "Options"),
        "epochs": Option(Whole(1), "passes over the training images", "Options", none="auto"),
        "image_size": Option(Whole(1), "side of the network's input in pixels", "Options", none="auto"),
        "json": JSON,
    },
    defaults={
        "task": "classification", "out": "autotimm-demo", "epochs": None, "image_size": None, "json": False,
    },
    examples=("autotimm demo", "autotimm demo --task detection", "autotimm demo --out /tmp/demo --epochs 3"),
    notes=("Takes one to three minutes. Prints the commands that it runs, so that you can try them on your images.",),
)  # fmt: skip
