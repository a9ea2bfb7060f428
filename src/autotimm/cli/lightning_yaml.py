"""Files in Lightning's style: ``model``, ``data`` and ``trainer``, each with ``class_path`` and ``init_args``.

They are parsed by jsonargparse from the signatures of the classes. Unlike the rest of the command line, this module
imports torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import pytorch_lightning as pl
from jsonargparse import ArgumentParser, Namespace

import autotimm
from autotimm.errors import ModelError, UsageError, nearest, shortened
from autotimm.records.imports import Kind, admission, import_named, names_in, require_admitted, require_importable
from autotimm.records.own_modules import use_own_modules
from autotimm.runs.recorded_classes import replayed_settings, require_plain
from autotimm.serialization import construct, takes

__all__ = ["build"]

# Section: (required base class, usual class). Any LightningModule or data module will do, not only a Task.
_SECTIONS: dict[str, tuple[type, str]] = {
    "model": (pl.LightningModule, "ImageClassifier"),
    "data": (pl.LightningDataModule, "ImageDataModule"),
    "trainer": (pl.Trainer, "AutoTrainer"),
}
_ARGUMENT = Kind("class", "a class", object, ("autotimm",))


_MOST_VALUES = 2000  # jsonargparse copies a list for each of its elements: 5000 of them take half a minute


class _RaisingParser(ArgumentParser):
    """jsonargparse's parser with :class:`UsageError` for its errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the message and exiting."""
        raise UsageError(message) from ex


def build(nested: Mapping[str, object], file: str) -> tuple[Any, Any, Any]:
    """Build the model, the data module and the trainer that a file describes.

    Args:
        nested: The file's content.
        file: Its name, for error messages.

    Returns:
        The model, the data module and the trainer.

    Raises:
        UsageError: If a class cannot be found, or if an argument is unknown or has the wrong type.
    """
    if _more_values(nested, _MOST_VALUES):
        raise UsageError(
            f"The file {file} must have at most {_MOST_VALUES:,} values. It has more. Build the model, the data and "
            "the trainer in Python, where lists may have any length."
        )
    if admission() is not None:
        return _from_record(nested, file)
    if any(name.partition(".")[0] != "autotimm" for name in names_in(nested)):
        use_own_modules()
    parser = _RaisingParser(prog="autotimm fit", default_env=False)
    arguments: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    for key, (base, usual) in _SECTIONS.items():
        section_class, given[key] = _section(key, nested.get(key, {} if key == "trainer" else None), base, usual, file)
        # Not add_subclass_arguments: jsonargparse makes that a union with None, and its report then hides an error
        # that the class itself raises.
        arguments[key] = parser.add_class_arguments(section_class, key)
    try:
        # Without jsonargparse's defaults: an argument that the file leaves out must not be passed to the class.
        parsed = parser.parse_object(given, defaults=False)
    except UsageError as error:
        raise UsageError(_explain(str(error), arguments, file)) from None
    _require_no_system_calls(parsed, file)
    objects = parser.instantiate(parsed)
    return objects.model, objects.data, objects.trainer


def _more_values(nested: Mapping[str, object], most: int) -> bool:
    """Whether a file has more values than ``most``, at any depth, each as often as its aliases repeat it."""
    values: list[object] = [nested]
    for value in values:  # grows
        values += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        if len(values) > most:
            return True
    return False


def _from_record(nested: Mapping[str, object], file: str) -> tuple[Any, Any, Any]:
    """Build the objects that the config.yaml of a run describes, without jsonargparse, which imports any text."""
    parts = {}
    for key, (base, usual) in _SECTIONS.items():
        section_class, arguments = _section(key, nested.get(key, {} if key == "trainer" else None), base, usual, file)
        arguments = replayed_settings(arguments) if key == "trainer" else arguments
        require_plain(arguments, key)
        if inner := next(_class_paths(arguments, dotted=False), None):
            raise ModelError(
                f"The `{key}` of {file} names the class {inner} for an argument, which no record does. If you trust "
                "whoever wrote the file, copy it out of the run's folder."
            )
        if not takes(section_class, arguments):
            raise UsageError(
                f"The class of `{key}` in {file} must take the arguments {', '.join(arguments) or 'none'}. It does "
                "not. Correct these lines."
            )
        parts[key] = construct(section_class, arguments)
    return parts["model"], parts["data"], parts["trainer"]


def _section(key: str, value: object, base: type, usual: str, file: str) -> tuple[type, dict[str, Any]]:
    """Check one of the three sections; return its class and arguments."""
    if not isinstance(value, Mapping) or (key != "trainer" and "class_path" not in value):
        raise UsageError(f"The `{key}` of {file} needs a class. Write `class_path: {usual}` under it.")
    if key == "trainer" and "class_path" not in value:
        value = {"class_path": usual, "init_args": dict(value)}
    for unknown in value.keys() - {"class_path", "init_args"}:
        hint = nearest(str(unknown), ["class_path", "init_args"]) or "Move it under `init_args`."
        raise UsageError(f"The `{key}` of {file} has no key `{unknown}`. {hint}")
    kind = Kind(
        f"class of the `{key}` in {file}", f"a subclass of {base.__name__}, such as {usual}", base, ("autotimm",)
    )
    section_class = _find(str(value["class_path"]), key, kind, file)
    arguments = value.get("init_args") or {}
    for path in _class_paths(arguments):
        require_admitted(path, _ARGUMENT)
        require_importable(path, _ARGUMENT)
    if not isinstance(arguments, Mapping):
        raise UsageError(
            f"The `init_args` under `{key}` of {file} must be lines `argument: value`. Write one per line."
        )
    return section_class, dict(arguments)


def _find(path: str, key: str, kind: Kind, file: str) -> type:
    """Import a class by its dotted path; a public class of autotimm also by its name alone."""
    module, _, name = path.rpartition(".")
    if module in ("", "autotimm") and name not in dir(autotimm):
        hint = nearest(name, dir(autotimm)) or "Give the full path of a class of your own, like my_models.MyModel."
        raise UsageError(f"The `{key}` of {file} names the class {path}, which autotimm does not have. {hint}")
    found: type = import_named(path if module else f"autotimm.{name}", kind)
    return found


def _class_paths(value: Any, dotted: bool = True) -> Iterator[str]:
    """The classes that jsonargparse would import for the arguments of a section; only those that are no mere names."""
    if isinstance(value, Mapping):
        if isinstance(path := value.get("class_path"), str) and ("." in path or not dotted):
            yield path
        value = [*value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _class_paths(item, dotted)


def _require_no_system_calls(value: Any, file: str) -> None:
    """Refuse functions of Python itself, to which jsonargparse turns the import path of an argument."""
    items = vars(value).values() if isinstance(value, Namespace) else value if isinstance(value, (list, dict)) else ()
    for item in items.values() if isinstance(items, dict) else items:
        _require_no_system_calls(item, file)
    if callable(value) and str(getattr(value, "__module__", "")).partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(f"{file} names the function {value.__name__} of Python itself. Name one of your own.")


def _explain(message: str, arguments: Mapping[str, list[str]], file: str) -> str:
    """Turn jsonargparse's error message, which may be long and nested, into one sentence."""
    if unknown := re.search(r"Group '(\w+)' does not accept option '([^']+)'", message):
        key, name = unknown.groups()
        known = [argument.partition(".")[2] for argument in arguments[key]]
        hint = nearest(name, known) or f"It takes {', '.join(known) or 'none'}."
        return f"The class of `{key}` in {file} has no argument `{name}`. {hint}"
    if missing := re.search(r"required: (\w+)\.(.*)", message):
        return f"The class of `{missing[1]}` in {file} needs the argument `{missing[2]}`. Write it under `init_args`."
    if wrong := re.match(r'Parser key "([^"]+)":(.*)', message, re.DOTALL):
        types = [shortened(_type_name(text)) for text in re.findall(r"Expected an? (.+?)(?:\. Got|\n|$)", wrong[2])]
        if inner := re.search(r"Option '([^']+)' is not accepted", wrong[2]):
            return f"The `{wrong[1]}` of {file} has no argument `{inner[1]}`. Correct that line."
        got = re.search(r"(?:Got|Given) value: (.*)", wrong[2])
        shown = shortened(got[1]) if got else "something else"
        return (
            f"The `{wrong[1]}` of {file} must be of type {' or '.join(types)}. Got {shown} instead. Correct that line."
        )
    return f"{file} cannot be used: {shortened(' '.join(message.split()))}"


def _type_name(text: str) -> str:
    """A type in the notation of YAML: ``null`` for ``NoneType``."""
    return re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.", "").replace("NoneType", "null")
