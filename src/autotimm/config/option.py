"""One option: everything that is said about it, and the one rule by which its value is read.

What an option is called, which constructor argument it becomes, which stage of training it acts on and what it replaces
is declared here, once. Help, construction, replay, likely causes and the docs are derived from it.

A value comes from a command line (always text), from a YAML file (read as text on purpose, see
:mod:`autotimm.config.yaml`) or from Python. All three go through :meth:`Option.read`, so that ``--lr 1e-3``,
``lr: 1e-3`` and ``lr=1e-3`` mean the same and are refused with the same sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autotimm.config.value_types import Choice, Flag, Kind
from autotimm.constants import TASKS
from autotimm.errors import UsageError, nearest, sentence

__all__ = ["PARTS", "STAGES", "Option", "Shadow", "To", "meant", "option"]


PARTS = ("data", "model", "trainer")
"""What a run is built from: the data module, the task and the trainer, as they are called in ``config.yaml``."""

STAGES = ("start", "order", "inputs", "forward", "rate", "update", "validation", "length")
"""Stages of training in which two runs can differ, as :class:`autotimm.records.ledger_diff.Difference` names them:
initial weights, order of the samples, pixels and targets, loss, learning rate, weights, evaluation, number of steps."""


@dataclass(frozen=True)
class To:
    """The constructor argument that an option becomes.

    Attributes:
        part: Which constructor: one of :data:`PARTS`.
        name: The argument; empty if it is called as the option is.
        converter: The function of :mod:`autotimm.runs.factory` that makes the argument, where it is not the value
            itself. Options that share an argument name the same converter.
        default_word: The value that stands for the constructor's own default.
    """

    part: str
    name: str = ""
    converter: str = ""
    default_word: str = ""


@dataclass(frozen=True)
class Shadow:
    """Another option that has no effect while this one is on.

    Attributes:
        name: The other option.
        why: Why it has no effect, as the end of a sentence.
        harmless: Its values that change nothing, and so contradict nothing.
    """

    name: str
    why: str
    harmless: tuple[Any, ...] = ()


class _Bare(str):
    """Text whose ``repr`` has no quotes."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Option:
    """The declaration of one option, from which everything else that concerns it is derived.

    Attributes:
        kind: What its value is.
        help: One line, without a full stop.
        group: The heading that it stands under.
        none: The word for Python's ``None``; ``None`` if the option always has a value.
        cure: What to do about a wrong value, as a sentence; by default the error names the default.
        needs: Another option, without which this one has no effect.
        common: Whether the short help shows it.
        to: The constructor arguments that it becomes; empty if it decides something else, such as the class.
        stages: The stages of training it acts on, the one it acts on first in front, out of :data:`STAGES`. Empty if it
            can change no bit of a run.
        recorded: Where the manifest records what came of it, in place of the value: ``data``, ``seeds``,
            ``environment.threads``.
        recipe: ``decides`` if a recipe sets it where it is left open, ``reads`` if a recipe is chosen by it.
        finds: The option whose value it searches for before training.
        shadows: Options that have no effect beside it.
        tasks: The tasks on which it has an effect.
        by_task: Defaults of single tasks, in place of the general one.
        words: What it is called in a likely cause; empty for its name.
    """

    kind: Kind
    help: str
    group: str
    none: str | None = None
    cure: str = ""
    needs: str = ""
    common: bool = False
    to: tuple[To, ...] = ()
    stages: tuple[str, ...] = ()
    recorded: str = ""
    recipe: Literal["", "decides", "reads"] = ""
    finds: str = ""
    shadows: tuple[Shadow, ...] = ()
    tasks: tuple[str, ...] = TASKS
    by_task: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    def __post_init__(self) -> None:
        """Refuse a declaration with an unknown part or stage."""
        wrong = [stage for stage in self.stages if stage not in STAGES]
        wrong += [to.part for to in self.to if to.part not in PARTS]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no part and no stage; there are {', '.join(PARTS + STAGES)}")

    @property
    def changes_bits(self) -> bool:
        """Whether another value can change a bit of a run."""
        return bool(self.stages)

    @property
    def must(self) -> str:
        """What the value must be, the word for ``None`` included."""
        return f"{self.kind.must}, or the word {self.none}" if self.none else self.kind.must

    def metavar(self, default: object) -> str:
        """What stands for the value in the help: nothing for a switch that is off by default."""
        if self.is_switch and default is False:
            return ""
        # Where the word for None is the default, the help shows it as such.
        return f"{self.kind.metavar}|{self.none}" if self.none and default is not None else self.kind.metavar

    def shown(self, default: object) -> str:
        """The default as it stands in the help: nothing for a switch that is off by default."""
        if self.is_switch and default is False:
            return ""
        word = self.word(default)
        # In quotes, so that the word `default` reads as a choice.
        return "" if word is None else repr(word) if word == "default" else _plain(word)

    @property
    def explained(self) -> str:
        """The help, with the words to choose from where the metavar does not name them."""
        if isinstance(self.kind, Choice) and self.kind.metavar == Choice.TOO_MANY:
            return f"{self.help}: {', '.join(self.kind.options)}"
        return self.help

    @property
    def is_switch(self) -> bool:
        """Whether the bare name on the command line means true."""
        return isinstance(self.kind, Flag)

    def word(self, value: object) -> object:
        """Turn a value into what a YAML file holds: plain data, and a word instead of ``None``."""
        return self.none if value is None else self.kind.word(value)

    def read(self, value: object, name: str, owner: str, default: object, python: bool = False) -> Any:
        """Convert and check a value.

        Args:
            value: Text, or the thing itself.
            name: What the option is called where the value was given.
            owner: Who was given it.
            default: The default, shown in the cure.
            python: Whether ``None`` may be given as itself. In a file it may not: a line that was left empty is more
                often a mistake than a wish.

        Raises:
            UsageError: If the value is wrong.
        """
        if self.none is not None and (value == self.none or (value is None and python)):
            return None
        word = self.word(default)
        if value is None and not python:
            # `none` as an example would rarely be what the line was meant to say.
            example = "" if word == "none" else f", such as `{name}: {_plain(word)}`"
            raise UsageError(f"The `{name}` of {owner} has no value. Write {self.must}{example}, or remove the line.")
        try:
            return self.kind.read(value)
        except (TypeError, ValueError):
            cure = self.kind.suggest(value) or self.cure or f"The default is {_shown_default(word)}."
            raise UsageError(sentence(name, owner, self.must, _shown(value), cure)) from None


def _shown_default(word: object) -> str:
    """The default in a sentence; text in quotes, since a default may be called "default"."""
    return repr(_shown(word)) if isinstance(word, str) else _plain(word)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: object) -> object:
    """Show a number that was given as text without quotes."""
    return _Bare(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d[\d._eE+-]*", value) else value


def option(default: Any, kind: Kind, help: str, group: str, **more: Any) -> Any:
    """Make a dataclass field that carries its :class:`Option` as metadata."""
    metadata: Mapping[str, Option] = {"option": Option(kind, help, group, **more)}
    return field(default=default, metadata=metadata)


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
