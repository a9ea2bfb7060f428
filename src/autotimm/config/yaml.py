"""YAML configuration files: read without losing a key, written so that they read back.

PyYAML keeps the last of two equal keys without a word, turns ``1e-3`` into text and ``no`` into ``False``. Here two
equal keys are refused, and the values of a flat file are read as text, exactly as on the command line; the option
decides what the text means (:mod:`autotimm.config.option`).

A file may come from a stranger, so its size, depth and aliases are checked before it is built.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from autotimm.config.option import meant
from autotimm.errors import UsageError

__all__ = ["NESTED_KEYS", "YamlLimitError", "load_yaml", "read_yaml", "write_scalar"]

# A file with one of these keys at the top is written in Lightning's style: `class_path` and `init_args`.
NESTED_KEYS = frozenset({"model", "data", "trainer"})
_OURS = ("backbone", "path")  # what a flat file calls the first two

# ruamel.yaml was tried instead of PyYAML: it reads 1e3, +1e5, 08 and 0o17 as numbers, which our records hold as
# unquoted text, refuses equal keys only where it converts values, and takes 2.3 s for a file that libyaml reads in 0.3.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may have been built without libyaml

_MOST_BYTES = 16 * 2**20  # the 21,000 class names of ImageNet-21k take 0.7 MB
_MOST_LEVELS = 100  # both composing and using what was read is recursive, and Python stops at 1000 calls
_MOST_VALUES = 250_000  # counted in half a second; twice the images of COCO, were they listed here
_MOST_CHARACTERS = 100_000  # of one text; the longest are scripts that download a data set
_MOST_COPIES = 10_000  # values that aliases stand for: nine lines of nine aliases each make 400 million


class YamlLimitError(yaml.YAMLError):
    """A file is larger, deeper or more repetitive than any that is meant well; the message ends a sentence."""


def load_yaml(path: Path, as_text: Collection[str] = ()) -> Any:
    """Read a YAML file that others have written, with YAML's types.

    Args:
        path: The file.
        as_text: Keys at the top whose value, or each value of their list or mapping, is text as it stands in the file:
            the classes ``[yes, no]`` are not ``True`` and ``False``.

    Raises:
        OSError: If it cannot be read.
        yaml.YAMLError: If it is not YAML; a :class:`YamlLimitError` if it is larger than any that is meant well.
    """
    root = _composed(_read(path))
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value in as_text:
            children = value.value if isinstance(value, yaml.CollectionNode) else [value]
            for child in children:
                node = child[1] if isinstance(child, tuple) else child
                if isinstance(node, yaml.ScalarNode):
                    node.tag = "tag:yaml.org,2002:str"
    return _constructed(root)


def read_yaml(path: str) -> tuple[dict[str, Any], bool]:
    """Read a configuration file.

    Args:
        path: The file.

    Returns:
        Its keys and values, and whether it is written in Lightning's style. The values of a flat file are text, lists
        of text, or ``None`` where nothing stands; those of a Lightning-style file have YAML's types.

    Raises:
        UsageError: If the file cannot be read, is not YAML, gives a key twice, or mixes both styles.
    """
    try:
        mapping = _checked(_composed(_read(Path(path)).decode("utf-8")), path)
        nested = any(key.value in NESTED_KEYS for key, _ in mapping.value)
        loaded = _constructed(mapping) if nested else _flat(mapping)
        if nested:
            _check_texts(loaded)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"The file {path} cannot be read: {why}. Give a YAML file of options.") from None
    except YamlLimitError as error:
        raise UsageError(f"The file {path} cannot be read: {error}. Give a simpler file.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {_place(error)}. Write lines like `epochs: 10`.") from None
    return loaded, nested


def write_scalar(value: object) -> str:
    """Write a text, number, bool or list as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)  # not by the size of the file: it may be a pipe
    if len(content) > _MOST_BYTES:
        raise YamlLimitError(f"it is larger than {_MOST_BYTES // 2**20} MB")
    return content


def _check_limits(content: str | bytes) -> None:
    """Refuse YAML that is too large to build, in a pass over it that builds nothing and counts.

    Raises:
        yaml.YAMLError: If it is not YAML; a :class:`YamlLimitError` if it is deeper or more repetitive than any that is
            meant well.
    """
    values = 0  # so far, those that aliases stand for included
    written = 0
    sizes: dict[str | None, int] = {}  # how many values each anchor stands for
    unfinished: list[tuple[str | None, int]] = []  # the anchor of each open list or mapping, and the values before it
    for event in yaml.parse(content, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in unfinished):
                raise YamlLimitError(f"the anchor `&{event.anchor}` contains itself, line {line}")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            values += 1
            written += 1
            if isinstance(event, yaml.CollectionStartEvent):
                unfinished.append((event.anchor, values - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_CHARACTERS:
                raise YamlLimitError(f"line {line} has a text of more than {_MOST_CHARACTERS:,} characters")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = unfinished.pop()
            if anchor:
                sizes[anchor] = values - before
        if len(unfinished) > _MOST_LEVELS:
            raise YamlLimitError(f"line {line} is nested more than {_MOST_LEVELS} levels deep")
        if written > _MOST_VALUES:
            raise YamlLimitError(f"it has more than {_MOST_VALUES:,} values")
        if values - written > _MOST_COPIES:
            raise YamlLimitError(f"its aliases stand for more than {_MOST_COPIES:,} values")


def _check_texts(value: Any) -> None:
    """Check the texts in a file in Lightning's style: jsonargparse parses each of them as YAML once more."""
    if isinstance(value, str):
        if len(value) > _MOST_LEVELS:  # shorter ones cannot exceed a limit
            with suppress(yaml.MarkedYAMLError, yaml.reader.ReaderError):
                _check_limits(value)
    elif isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            _check_texts(child)


def _composed(content: str | bytes) -> yaml.Node | None:
    """Parse a file that keeps the limits."""
    _check_limits(content)
    root: yaml.Node | None = yaml.compose(content, Loader=_LOADER)
    return root


def _constructed(root: yaml.Node | None) -> Any:
    """Convert a parsed file into YAML's types."""
    try:
        return None if root is None else yaml.SafeLoader("").construct_document(root)
    except (AttributeError, LookupError, ValueError) as error:  # from `!!bool x`, `!!int ""`, 2024-13-01
        raise yaml.MarkedYAMLError(problem=f"a value does not fit its type ({error})") from error


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, " if mark else ""
    return f"{where}{getattr(error, 'problem', None) or 'unexpected characters'}"


def _checked(root: yaml.Node | None, path: str) -> yaml.MappingNode:
    """Refuse what is no mapping, what gives a key twice, and what mixes two styles."""
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"The file {path} must hold options, a line `key: value` for each. It holds none.")
    _check_unique(root, path, seen=set())
    keys = {key.value for key, _ in root.value}
    strange = sorted(keys - NESTED_KEYS)
    words = [key.value for key, value in root.value if key.value in NESTED_KEYS and isinstance(value, yaml.ScalarNode)]
    if strange and len(words) == len(keys & NESTED_KEYS) > 0:
        # `data: photos`: not a section of Lightning's style, but what another tool calls an option of ours.
        raise UsageError(f"{path} has no option `{words[0]}`. {meant(words[0], _OURS) or 'Leave it out.'}")
    if keys & NESTED_KEYS and strange:
        raise UsageError(
            f"{path} has `{strange[0]}` beside `{min(keys & NESTED_KEYS)}`. With model, data and trainer, every "
            f"setting is an argument of one of the three: move `{strange[0]}` under the `init_args` of the right one."
        )
    return root


def _check_unique(node: yaml.Node, path: str, seen: set[int]) -> None:
    """Refuse a key that stands twice in one mapping, at any depth."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))  # an alias may lead back to its own anchor
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_unique(child, path, seen)
        return
    keys: set[str] = set()
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in keys:
            shown = key.value if isinstance(key, yaml.ScalarNode) else "? ..."
            problem = "twice in one place" if isinstance(key, yaml.ScalarNode) else "as a key, which must be a word"
            raise UsageError(f"{path} gives `{shown}` {problem}, line {key.start_mark.line + 1}. Keep one.")
        keys.add(key.value)
        _check_unique(child, path, seen)


def _flat(root: yaml.MappingNode) -> dict[str, Any]:
    return {key.value: _value(value) for key, value in root.value}


def _value(node: yaml.Node) -> Any:
    """Text as it stands in the file, a list of such, or an empty mapping, which no option accepts."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) if isinstance(child, yaml.ScalarNode) else {} for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {}
    return None if node.tag == "tag:yaml.org,2002:null" else node.value
