"""What every verb shares: a strict parser on jsonargparse's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from autotimm.cli.verb import Verb
from autotimm.config import meant
from autotimm.config.value_types import TRUTH
from autotimm.errors import UsageError

__all__ = ["Engine", "Given", "parse"]

_HELP = {"-h": "help", "--help": "help", "--help-all": "help-all"}


@dataclass(frozen=True)
class Given:
    """What the user typed, still as text: only what was given, nothing that was left to its default."""

    verb: Verb
    positionals: dict[str, Any]
    options: dict[str, str]

    def value(self, name: str) -> Any:
        """The converted value of an option, or its default.

        Raises:
            UsageError: If it is wrong.
        """
        default = self.verb.defaults.get(name)
        if name not in self.options:
            return default
        owner = f"autotimm {self.verb.name}"
        return self.verb.options[name].read(self.options[name], _flag(name), owner, default)


class Engine(ArgumentParser):
    """jsonargparse's parser, whose complaints become a :class:`UsageError`."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UsageError(message) from ex


def parse(verb: Verb, argv: Sequence[str]) -> Given | None:
    """Parse the arguments of a verb, or print its help.

    Dashes and underscores in the name of an option are the same. Nothing is ignored: an unknown or repeated option, one
    without its value, and one argument too many are errors. Values stay text; :class:`Option` converts them.

    Returns:
        What was given, or ``None`` if the help was asked for and has been printed.

    Raises:
        UsageError: If the command is wrong.
    """
    flags, plain, doubtful = _explicit(verb, argv)
    if asked := [flag for flag in flags if flag in _HELP]:
        print(verb.help(everything="--help-all" in asked))
        return None
    _check_plain(verb, plain, doubtful)
    engine = Engine(prog=f"autotimm {verb.name}", add_help=False, allow_abbrev=False, default_env=False)
    for one in verb.positionals:
        engine.add_argument(one.name, nargs="*" if one.many else "?", type=str)
    for name in verb.options:
        engine.add_argument(_flag(name), dest=name, type=str)
    # Flags first: argparse gives an empty list to the last positional if a flag stands before it.
    found = vars(engine.parse_args([*flags, *(["--"] if plain else []), *plain]))
    options = {name: found[name] for name in verb.options if found[name] is not None}
    return Given(verb, {one.name: found[one.name] for one in verb.positionals}, options)


def _explicit(verb: Verb, argv: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """Split the words into flags, each as ``--its-name=value``, and the rest.

    Returns:
        The flags, the rest, and those of the rest that follow a bare switch, with its name: they may be its value.
    """
    flags: dict[str, str] = {}
    plain: list[str] = []
    doubtful: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*flags.values()], [*plain, *rest], doubtful
        if not word.startswith("-") or word == "-":
            plain.append(word)
            continue
        flag, has_value, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in _HELP:
            return [flag], [], {}
        name = _known(verb, flag)
        if name in flags:
            raise UsageError(f"autotimm {verb.name} got {flag} twice. Keep one.")
        flags[name] = f"{flag}={value if has_value else _next_value(verb, name, flag, rest)}"
        if verb.options[name].is_switch and rest and not has_value:
            doubtful.setdefault(rest[0], name)
    return [*flags.values()], plain, doubtful


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _known(verb: Verb, flag: str) -> str:
    """The option that a flag means."""
    name = flag[2:].replace("-", "_")
    if flag.startswith("--") and name in verb.options:
        return name
    plain = {one.name: f"autotimm {verb.name} {one.metavar}" for one in verb.positionals}
    hint = meant(name, [*verb.options, *plain], lambda known: plain.get(known) or _flag(known))
    raise UsageError(f"autotimm {verb.name} has no option {flag}. {hint or f'See autotimm {verb.name} --help.'}")


def _next_value(verb: Verb, name: str, flag: str, rest: list[str]) -> str:
    """Take the value of an option from the words that follow it; a bare switch means true."""
    one = verb.options[name]
    if one.is_switch:
        return rest.pop(0) if rest and (rest[0].lower() in TRUTH or rest[0] == one.none) else "true"
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"The `{flag}` of autotimm {verb.name} needs a value: {one.must}.")
    return rest.pop(0)


def _check_plain(verb: Verb, plain: list[str], doubtful: Mapping[str, str]) -> None:
    """Check the number of words that are no flags; of too many, one may have been meant as the value of a switch."""
    needed = [one for one in verb.positionals if one.required]
    if len(plain) < len(needed):
        one = needed[len(plain)]
        raise UsageError(f"autotimm {verb.name} needs {one.metavar}: {one.help}. See autotimm {verb.name} --help.")
    if len(plain) > len(verb.positionals) and not any(one.many for one in verb.positionals):
        for word in (word for word in plain if word in doubtful):
            name = doubtful[word]
            verb.options[name].read(word, _flag(name), f"autotimm {verb.name}", verb.defaults.get(name))
        takes = f"takes {' '.join(one.usage for one in verb.positionals)}" if verb.positionals else "takes no arguments"
        extra = " ".join(plain[len(verb.positionals) :])
        raise UsageError(f"autotimm {verb.name} {takes}. Got {extra} besides. Put quotes around a name with blanks.")
