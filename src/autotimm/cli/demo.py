"""``autotimm demo``: train, test and predict on real handwritten digits, with nothing to download."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

from autotimm.cli.fit import train
from autotimm.cli.parser import parse
from autotimm.cli.predict import PREDICT
from autotimm.cli.test import TEST
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.kinds import Path, Whole
from autotimm.errors import RunError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DEMO", "write_digits"]

_SEED = 42
_TEST_SHARE = 0.2


def run(argv: Sequence[str]) -> int:
    """Write the digits, then run the same three commands that a reader would type."""
    given = parse(DEMO, argv)
    if given is None:
        return 0
    out = Folder(given.value("out"))
    digits = out / "digits"
    epochs, size = str(given.value("epochs")), str(given.value("image_size"))
    written = write_digits(digits)
    print(f"{written['train']} images to train on and {written['test']} to test on: {digits}")
    fit = [str(digits), "--backbone", "resnet10t", "--pretrained", "false", "--image-size", size, "--epochs", epochs]
    # The light augmentation does not mirror: a mirrored digit is another digit or none.
    # One thread: so small a network gains nothing from more, and the numbers do not depend on the machine's cores.
    fit += ["--augmentation", "light", "--seed", str(_SEED), "--threads", "1", "--out", str(out / "runs")]
    run = _step(train, "fit", fit)
    if run is None:
        raise RunError("The demo's training did not finish.")
    folder = str(run.path)
    _step(TEST.run, "test", [folder])
    _step(PREDICT.run, "predict", [folder, str(digits / "test"), "--out", str(out / "predictions.csv")])
    print(f"\nrun: {folder}")
    return 0


def _step(work: Callable[[Sequence[str]], Any], verb: str, words: list[str]) -> Any:
    """Show a command as it would be typed, then do it."""
    print(f"\n$ {shlex.join(['autotimm', verb, *words])}", flush=True)
    return work(words)


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
        raise UsageError(
            "autotimm demo needs scikit-learn, which brings the digits. Install it with: pip install 'autotimm[demo]'"
        ) from None
    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype("uint8"), [int(label) for label in bunch.target]


DEMO = Verb(
    name="demo",
    summary="train, test and predict on 1,797 handwritten digits",
    run=run,
    options={
        "out": Option(Path(metavar="DIR"), "folder for the digits, the run and the predictions", "Options"),
        "epochs": Option(Whole(1), "passes over the training images", "Options"),
        "image_size": Option(Whole(1), "side in pixels of what the network sees", "Options"),
    },
    defaults={"out": "autotimm-demo", "epochs": 10, "image_size": 32},
    examples=("autotimm demo", "autotimm demo --out /tmp/demo --epochs 3"),
    notes=(
        "Takes a minute or two on two cores. It prints the commands that it runs, for you to try on your own images.",
    ),
)
