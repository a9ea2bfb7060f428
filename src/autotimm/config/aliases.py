"""Which option was meant by a name that is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autotimm.errors import nearest

__all__ = ["meant"]

# What other libraries and tools call our options; too far apart in spelling for a "did you mean" to find.
_ELSEWHERE = {
    "amp": "precision",
    "arch": "backbone",
    "data": "path",
    "data_dir": "path",
    "device": "accelerator",
    "early_stopping": "patience",
    "gpu": "accelerator",
    "gpus": "devices",
    "gradient_clip": "clip",
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "model": "backbone",
    "model_name": "backbone",
    "wd": "weight_decay",
    "weights": "pretrained",
}


def meant(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Suggest the options that may have been meant; an empty string if none comes to mind.

    Args:
        name: What was given, with underscores.
        known: The names of all options, with underscores.
        shown: How an option is written where the name was given.

    Example:
        >>> meant("learning_rate", ["lr", "epochs"])
        "Did you mean 'lr'?"
    """
    known = list(known)
    if _ELSEWHERE.get(name) in known:
        return f"Did you mean '{shown(_ELSEWHERE[name])}'?"
    return nearest(shown(name), map(shown, known))
