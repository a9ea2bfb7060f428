"""Which classes and functions a configuration file may name: one in a run folder is a record, and is not trusted."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from autotimm.config import FitConfig
from autotimm.data.formats.recognize import READER
from autotimm.losses.image_losses import LOSS
from autotimm.models.segmentation.segmenter import DECODER
from autotimm.optim.optimizers import OPTIMIZER
from autotimm.records.imports import RecordedNames, names_in, require_admitted
from autotimm.records.trust import OfRun

__all__ = ["names_of_file", "require_known_names"]


def names_of_file(file: str | None) -> RecordedNames | nullcontext[None]:
    """The context of a configuration file: one in a run folder is a record of the run, any other is the user's own."""
    folder = Path(file).absolute().parent if file is not None else None
    if folder is None or not (folder / "manifest.json").is_file():
        return nullcontext()
    return RecordedNames(OfRun(folder, False, "If you trust whoever made the run, copy the file out of its folder."))


def require_known_names(file: str | None, config: FitConfig) -> None:
    """Refuse the options of a run's ``config.yaml`` that name classes of strangers, before processes are given them.

    Args:
        file: The configuration file.
        config: The options that came from it.

    Raises:
        ModelError: If there is one.
    """
    kinds = {"loss": LOSS, "optimizer": OPTIMIZER, "arch": DECODER, "format": READER}
    with names_of_file(file):
        for name, kind in kinds.items():
            if names_in(value := getattr(config, name)):
                require_admitted(value, kind)
