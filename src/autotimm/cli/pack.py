"""``autotimm pack``: write a folder of images into one data set of Lance or litData."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from autotimm.cli.fit import configure
from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import FitConfig, Option, defaults, options
from autotimm.config.value_types import Choice, Path
from autotimm.constants import ENGINES
from autotimm.errors import UsageError, missing_extra, printable

__all__ = ["PACK"]

_OWNER = "autotimm pack"


def run(argv: Sequence[str]) -> int:
    """Pack the data; the last line printed is the command that trains on them."""
    given = parse(PACK, argv)
    if given is None:
        return 0
    to, out = given.value("to"), given.value("out")
    if to is None or out is None:
        missing = "--to lance" if to is None else "--out photos.lance"
        raise UsageError(f"{_OWNER} needs an engine and a new folder. Give for example {missing}.")
    if find_spec(to) is None:
        raise missing_extra(f"The option to={to} of pack", to)
    # It splits nothing off, and images that are no files are none for it.
    config = configure(given, own=("to", "out"), val_split="0")
    assert isinstance(config, FitConfig)  # there is no option for a file
    from autotimm.runs.output_paths import require_new_folder  # imports no torch

    require_new_folder(out, "out", "pack")
    with answering(given) as answer:
        with loading_torch(config.progress):
            from autotimm.data.packed.packing import pack
            from autotimm.runs.factory import settle_data
        config, data = settle_data(config)
        packed = pack(data, to, out, config.progress)
        for notice in data.notices:
            print(f"notice: {printable(str(notice))}")
        rows = ", ".join(f"{number} {split}" for split, number in packed.samples.items() if number)
        print(f"packed: {rows}, {packed.size} bytes of images and masks, for {config.task}")
        print(f"train: autotimm fit {printable(str(packed.path))}")
        answer.update(packed=packed.path, task=config.task, samples=packed.samples, bytes=packed.size,
                      notices=[str(notice) for notice in data.notices])  # fmt: skip
    return 0


_READING = (
    "task", "format", "class_levels", "strict", "check", "in_chans", "ignore_exif", "train_csv", "val_csv", "test_csv",
    "image_dir", "image_column", "label_column", "label_separator", "progress",
)  # fmt: skip

PACK = Verb(
    name="pack",
    summary="write a folder of images into one data set of Lance or litData, for which fit computes the same bits",
    run=run,
    positionals=(Positional("path", "PATH", options()["path"].help, required=False),),
    options={
        "to": Option(Choice(ENGINES), "engine that holds the images", "Options", none="required"),
        "out": Option(Path(metavar="DIR"), "new folder for the data set", "Options", none="required"),
        **{name: options()[name] for name in _READING},
        "json": JSON,
    },
    defaults={"to": None, "out": None, **{name: defaults()[name] for name in _READING}, "json": False},
    examples=(
        "autotimm pack photos --to lance --out photos.lance",
        "autotimm fit photos.lance",
    ),
    notes=(
        "Data are read as fit reads them, with the same options. Image files are copied as they are; those that cannot "
        "be read are left out.",
    ),
    elsewhere=("optimize", "shard", "tar"),
)  # fmt: skip
