"""From the options of ``fit`` to the constructor arguments they become, and back: what replay and causes ask.

Everything here is derived from the declarations beside the options. Only the arguments that no option stands for, which
a run made from objects can have been given, are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from autotimm.config.fit_config import options
from autotimm.config.option import Option, To

__all__ = [
    "Argument",
    "argument_of",
    "argument_option",
    "arguments_of",
    "decided_by_recipe",
    "names_of_recipe",
    "options_at",
    "recorded_argument",
    "silent_arguments",
    "silent_names",
]


class Argument(NamedTuple):
    """A constructor argument of a run, as its manifest records it.

    Attributes:
        part: ``data``, ``model`` or ``trainer``.
        name: What the constructor calls it.
        option: The option of ``fit`` that becomes it; empty if none does.
        stages: The stages of training it acts on, the one it acts on first in front, out of
            :data:`autotimm.config.option.STAGES`. Empty if it can change no bit of a run.
        words: What it is called in a sentence: ``the learning rate``, or ``the option `epochs` (`max_epochs`)``.
        recorded: Where the manifest records what came of it, in place of the value.
    """

    part: str
    name: str
    option: str
    stages: tuple[str, ...]
    words: str
    recorded: str = ""


def _other(part: str, name: str, *stages: str, recorded: str = "") -> Argument:
    return Argument(part, name, "", stages, f"the option `{name}`", recorded)


# Arguments that a run made from objects can have, and that no option of `fit` becomes.
_OTHERS = (
    _other("data", "train_transforms", "inputs"),
    _other("data", "eval_transforms", "validation"),
    _other("data", "crop_pct", "inputs", "validation"),
    _other("data", "interpolation", "inputs", "validation"),
    _other("data", "colors", "inputs", "start"),
    _other("data", "drop_last", "order", "length"),
    _other("data", "persistent_workers"),
    _other("data", "pin_memory"),
    _other("model", "num_classes", "start"),
    _other("model", "ignore_index", "forward"),
    _other("trainer", "max_steps", "rate", "length"),
    _other("trainer", "min_steps", "length"),
    _other("trainer", "min_epochs", "length"),
    _other("trainer", "max_time", "length"),
    _other("trainer", "limit_train_batches", "length", "rate"),
    _other("trainer", "limit_val_batches", "validation", "length"),
    _other("trainer", "overfit_batches", "order", "length"),
    _other("trainer", "val_check_interval", "validation", "length"),
    _other("trainer", "check_val_every_n_epoch", "validation", "length"),
    _other("trainer", "gradient_clip_val", "update"),
    _other("trainer", "gradient_clip_algorithm", "update"),
    _other("trainer", "num_nodes", "order", "forward", "update"),
    _other("trainer", "strategy", "forward", "update"),
    _other("trainer", "sync_batchnorm", "forward", "update"),
    _other("trainer", "benchmark", "forward", "update"),
    _other("trainer", "use_autotimm_seeding", "forward"),
    _other("trainer", "callbacks", "forward", "update", "length", recorded="environment.callbacks"),
    _other("trainer", "default_root_dir"),
    _other("trainer", "enable_checkpointing"),
    _other("trainer", "enable_model_summary"),
    _other("trainer", "log_every_n_steps"),
    _other("trainer", "profiler"),
)
# The manifest names the class of a part beside its arguments.
_CLASSES = {
    "model_class": Argument("model", "model_class", "task", ("start", "forward"), "the class of the task"),
    "data_class": Argument("data", "data_class", "task", ("start", "order", "inputs"), "the class of the data module"),
}


def arguments_of(name: str, declared: Option) -> Iterator[Argument]:
    """The constructor arguments that an option becomes."""
    for to in declared.to:
        argument = to.name or name
        aside = "" if argument == name else f" (`{argument}`)"
        words = declared.words or f"the option `{name}`{aside}"
        yield Argument(to.part, argument, name, declared.stages, words, declared.recorded)


def argument_option(part: str, argument: str) -> str | None:
    """The option of ``fit`` that becomes an argument of a part; ``None`` if none does.

    Of several that share one argument, as ``lr_find`` and ``batch_size_find`` share ``tuner``, it is the first.

    Example:
        >>> argument_option("trainer", "max_epochs"), argument_option("trainer", "profiler")
        ('epochs', None)
    """
    known = _known().get((part, argument))
    return (known.option or None) if known is not None else None


def argument_of(part: str, option: str) -> str | None:
    """The argument of a part that an option is passed on as; ``None`` if it is not, or a converter makes it.

    Example:
        >>> argument_of("trainer", "accumulate"), argument_of("trainer", "patience")
        ('accumulate_grad_batches', None)
    """
    declared = options().get(option)
    tos = declared.to if declared is not None else ()
    return next((to.name or option for to in tos if to.part == part and not to.converter), None)


def decided_by_recipe() -> dict[str, str]:
    """The options that a recipe sets where they are left open, with the arguments of the task they become.

    Example:
        >>> decided_by_recipe()["clip"]
        'gradient_clip'
    """
    deciding = [name for name, declared in options().items() if declared.recipe == "decides"]
    return {name: argument_of("model", name) or name for name in deciding}


def names_of_recipe() -> set[str]:
    """Options and arguments that a recipe decides or is chosen by: where one of them is changed, it is chosen again."""
    of_recipe = {name: declared for name, declared in options().items() if declared.recipe}
    becomes = [argument for name, declared in of_recipe.items() for argument in arguments_of(name, declared)]
    return {*of_recipe, *(argument.name for argument in becomes)}


def options_at(stage: str) -> list[str]:
    """The options that act on a stage of training, those that act on it first in front.

    Example:
        >>> options_at("rate")[:2]
        ['epochs', 'lr']
    """
    acting = {name: declared.stages.index(stage) for name, declared in options().items() if stage in declared.stages}
    return sorted(acting, key=acting.__getitem__)


def recorded_argument(name: str) -> Argument | None:
    """What a value in a manifest is: an argument of a part, or a decision on one; ``None`` if it is neither.

    Args:
        name: The section and the name there, with dots, such as ``inputs.config.model.gradient_clip``,
            ``decisions.recipe.lr`` or ``decisions.batch_size``. The part may be missing.

    Example:
        >>> recorded_argument("inputs.config.trainer.max_epochs").words
        'the option `epochs` (`max_epochs`)'
        >>> recorded_argument("decisions.recipe.lr").stages, recorded_argument("environment.threads")
        (('rate', 'update'), None)
    """
    for prefix in ("inputs.config.", "decisions.recipe.", "decisions."):
        if name.startswith(prefix):
            break
    else:
        return None
    first, _, rest = name.removeprefix(prefix).partition(".")
    if first in _CLASSES and not rest:
        return _CLASSES[first]
    if (known := _known().get((first, rest.partition(".")[0]))) is not None:
        return known
    by_name = _by_name()
    return by_name.get(first) if not rest else None


def silent_arguments(part: str) -> set[str]:
    """The arguments of a part whose values are no part of a run's inputs.

    They can change no bit, or what came of them is recorded elsewhere, such as the digest of the data for its place.
    """
    arguments = [argument for argument in _known().values() if argument.part == part]
    return {argument.name for argument in arguments if not argument.stages or argument.recorded}


def silent_names(*, same_data: bool) -> set[str]:
    """Options and arguments that need not be set back to explain a difference, by their names.

    They can change no bit, search for a value that is recorded as a decision, or are compared as a part of the
    environment.

    Args:
        same_data: Whether both runs have seen the same data, so that its place does not matter.
    """

    def silent(of: Option | Argument) -> bool:
        elsewhere = of.recorded.startswith("environment.") or (same_data and of.recorded == "data")
        return not of.stages or elsewhere

    silent_options = {name for name, declared in options().items() if declared.finds or silent(declared)}
    return silent_options | {argument.name for argument in _known().values() if silent(argument) or _finds(argument)}


def _finds(argument: Argument) -> bool:
    return bool(argument.option and options()[argument.option].finds)


@cache
def _known() -> dict[tuple[str, str], Argument]:
    # What a converter makes holds more than its option: the callbacks are not only those of `patience`.
    converted = [argument for argument, to in _declared() if to.converter]
    passed_on = [argument for argument, to in _declared() if not to.converter]
    # From the weakest to the strongest; of options that share an argument the first counts.
    return {(argument.part, argument.name): argument for argument in (*reversed(converted), *_OTHERS, *passed_on)}


def _declared() -> Iterator[tuple[Argument, To]]:
    for name, declared in options().items():
        yield from zip(arguments_of(name, declared), declared.to, strict=True)


@cache
def _by_name() -> dict[str, Argument]:
    """Arguments by their own names and by those of their options, where the part is not known."""
    by_option = {argument.option: argument for argument, _ in reversed([*_declared()])}
    return by_option | {argument.name: argument for argument in reversed(_known().values())}
