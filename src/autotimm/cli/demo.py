"""``autotimm demo``: train, test and predict, with nothing to download: real digits, or scenes of shapes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any, NamedTuple

from autotimm.cli.fit import train
from autotimm.cli.parser import parse
from autotimm.cli.predict import PREDICT
from autotimm.cli.test import TEST
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.kinds import Choice, Path, Whole
from autotimm.config.tasks import TASKS
from autotimm.errors import RunError, missing_extra

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DEMO", "write_digits", "write_new_scenes", "write_scenes"]

_SEED = 42
_TEST_SHARE = 0.2
_SCENES = {"val": 32, "test": 64}
_NEW = 8


class _Show(NamedTuple):
    """What the demo of a task does.

    Attributes:
        epochs: Passes over the training images, if nobody says.
        image_size: Side of the images in pixels, if nobody says.
        images: Scenes to train on.
        fit: What the command that trains says besides.
        out: What the predictions are written to.
    """

    epochs: int
    image_size: int
    images: int
    fit: tuple[str, ...]
    out: str


_SHAPES = ("--width", "64", "--batch-size")
_SHOWS = {
    # The light augmentation does not mirror: a mirrored digit is another digit or none.
    "classification": _Show(10, 32, 0, ("--augmentation", "light"), "predictions.csv"),
    # The scenes have outlines too, so that without a word they would be taken for instance segmentation.
    "detection": _Show(6, 128, 256, ("--task", "detection", *_SHAPES, "16"), "found.json"),
    "segmentation": _Show(8, 128, 256, (*_SHAPES, "16"), "labels"),
    "instance": _Show(3, 128, 160, (*_SHAPES, "8"), "found.json"),
}


def run(argv: Sequence[str]) -> int:
    """Write images, then run the same three commands that a reader would type."""
    given = parse(DEMO, argv)
    if given is None:
        return 0
    task, out = given.value("task"), Folder(given.value("out"))
    show = _SHOWS[task]
    size, epochs = given.value("image_size") or show.image_size, given.value("epochs") or show.epochs
    if task == "classification":
        data = out / "digits"
        written, new = write_digits(data), data / "test"
    else:
        regions = task == "segmentation"
        data, new = out / ("regions" if regions else "shapes"), out / "new"
        written = write_scenes(data, show.images, size, regions=regions)
        write_new_scenes(new, size)
    print(f"{written['train']} images to train on and {written['test']} to test on: {data}")
    run = _step(train, "fit", _fit_words(show, data, out, size, epochs))
    if run is None:
        raise RunError("The demo's training did not finish.")
    folder = str(run.path)
    _step(TEST.run, "test", [folder])
    words = [folder, str(new), "--out", _unused(out / show.out)]
    words += [] if task == "classification" else ["--draw", _unused(out / "pictures")]
    _step(PREDICT.run, "predict", words)
    print(f"\nrun: {folder}")
    return 0


def _fit_words(show: _Show, data: Folder, out: Folder, size: int, epochs: int) -> list[str]:
    words = [str(data), "--backbone", "resnet10t", "--pretrained", "false", "--image-size", str(size)]
    words += ["--epochs", str(epochs), *show.fit, "--seed", str(_SEED)]
    # One thread: so small a network gains little from more, and the numbers do not depend on the machine's cores.
    return [*words, "--threads", "1", "--out", str(out / "runs")]


def _step(work: Callable[[Sequence[str]], Any], verb: str, words: list[str]) -> Any:
    """Show a command as it would be typed, then do it."""
    print(f"\n$ {shlex.join(['autotimm', verb, *words])}", flush=True)
    return work(words)


def _unused(path: Folder) -> str:
    """The path, with a number where an earlier demo has left something: predictions are never written over."""
    tries = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 10_000))
    return str(path if not path.exists() else next(one for one in tries if not one.exists()))


def write_scenes(folder: Folder, images: int, image_size: int, *, regions: bool) -> dict[str, int]:
    """Write scenes of colored shapes as ``train/``, ``val/`` and ``test/``.

    Args:
        folder: Where to.
        images: How many to train on.
        image_size: Side in pixels.
        regions: Whether to write a class for each pixel instead of a COCO file of boxes and outlines.

    Returns:
        The number of images per split.

    Raises:
        RunError: If the folder cannot be written to.
    """
    from autotimm.data.toy_objects import write_toy_objects, write_toy_segmentation

    write, splits = write_toy_segmentation if regions else write_toy_objects, {"train": images, **_SCENES}
    try:
        write(folder, splits=splits, image_size=image_size)
    except OSError as error:
        raise RunError(f"The scenes cannot be written to {folder}: {error.strerror}. Give another --out.") from None
    return splits


def write_new_scenes(folder: Folder, image_size: int) -> None:
    """Write a few scenes without annotations, larger and wider than those that the network saw.

    Raises:
        RunError: If the folder cannot be written to.
    """
    from PIL import Image

    from autotimm.data.toy_objects import draw_objects

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_NEW):
            scene = draw_objects(f"new/{number:05d}", (3 * image_size, 4 * image_size))
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    except OSError as error:
        raise RunError(f"The scenes cannot be written to {folder}: {error.strerror}. Give another --out.") from None


def write_digits(folder: Folder) -> dict[str, int]:
    """Write scikit-learn's 1,797 scans of digits (8x8 pixels) as ``train/`` and ``test/`` with a folder per digit.

    The split is keyed by each image's name, so that it is the same everywhere, and keeps the shares of the digits.
    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Returns:
        The number of images per side.

    Raises:
        UsageError: If scikit-learn is not installed.
        RunError: If the folder cannot be written to.
    """
    images, labels = _load_digits()
    from PIL import Image

    from autotimm.data.split import keyed_split

    ids = [f"{label}/{index:04d}.png" for index, label in enumerate(labels)]
    train, _, test = keyed_split(ids, labels, 0.0, _TEST_SHARE, _SEED)
    try:
        for side, members in (("train", train), ("test", test)):
            for index in members:
                file = folder / side / ids[index]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[index]).save(file)
    except OSError as error:
        raise RunError(f"The digits cannot be written to {folder}: {error.strerror}. Give another --out.") from None
    return {"train": len(train), "test": len(test)}


def _load_digits() -> tuple[np.ndarray[Any, Any], list[int]]:
    """Load the bundled scans: uint8 (1797, 8, 8), 255 is ink; and their digits."""
    try:
        from sklearn.datasets import load_digits  # an optional extra
    except ImportError:
        raise missing_extra("autotimm demo", "demo") from None
    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype("uint8"), [int(label) for label in bunch.target]


DEMO = Verb(
    name="demo",
    summary="train, test and predict on 1,797 handwritten digits, or on scenes of shapes",
    run=run,
    options={
        "task": Option(Choice(TASKS), "what is learned: digits are classified, all else is about shapes", "Options"),
        "out": Option(Path(metavar="DIR"), "folder for the images, the run and the predictions", "Options"),
        "epochs": Option(Whole(1), "passes over the training images", "Options", none="auto"),
        "image_size": Option(Whole(1), "side in pixels of what the network sees", "Options", none="auto"),
    },
    defaults={"task": "classification", "out": "autotimm-demo", "epochs": None, "image_size": None},
    examples=("autotimm demo", "autotimm demo --task detection", "autotimm demo --out /tmp/demo --epochs 3"),
    notes=("Takes one to three minutes. It prints the commands that it runs, for you to try on your own images.",),
)
