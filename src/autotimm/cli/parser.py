"""The strict argument parser of all verbs, on top of :mod:`argparse`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotimm.cli.verb import Verb
from autotimm.config import meant
from autotimm.config.value_types import TRUTH, path_problem
from autotimm.errors import UsageError, sentence

__all__ = ["Given", "parse"]

_HELP = ("-h", "--help", "--help-all")


@dataclass(frozen=True)
class Given:
    """The arguments of a command, still as text. Options that were not given are absent."""

    verb: Verb
    positionals: dict[str, Any]
    options: dict[str, str]

    def value(self, name: str) -> Any:
        """The converted value of an option, or its default.

        Raises:
            UsageError: If the value is invalid.
        """
        default = self.verb.defaults.get(name)
        if name not in self.options:
            return default
        owner = f"autotimm {self.verb.name}"
        return self.verb.options[name].read(self.options[name], _flag(name), owner, default)


class _Once(argparse.Action):
    """Stores the value of an option, and refuses a second one; argparse would silently take the last."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the value."""
        if self.dest in namespace:
            raise UsageError(f"{parser.prog} got {_flag(self.dest)} twice. Keep one.")
        setattr(namespace, self.dest, values)


def parse(verb: Verb, argv: Sequence[str]) -> Given | None:
    """Parse the arguments of a verb, or print its help.

    Dashes and underscores in option names are equivalent. Nothing is ignored: an unknown or repeated option, an option
    without its value, and a superfluous argument are errors. Values stay text; :class:`Option` converts them.

    Returns:
        The arguments, or ``None`` if help was requested and has been printed.

    Raises:
        UsageError: If the command is invalid.
    """
    # The handling of "--" and of flags between positionals varies between versions of argparse. So argparse sees
    # neither: it only picks out the options, and what it leaves over are the positionals, in order.
    end = argv.index("--") if "--" in argv else len(argv)
    words, after_switch = _normalize(verb, argv[:end])
    if help_flags := [word for word in words if word in _HELP]:
        print(verb.help(everything="--help-all" in help_flags))
        return None
    parser = argparse.ArgumentParser(
        prog=f"autotimm {verb.name}",
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    for name in verb.options:
        parser.add_argument(_flag(name), dest=name, action=_Once)
    try:
        options, values = parser.parse_known_args(words)
    except argparse.ArgumentError as error:  # "expected one argument": the only error that is possible here
        flag = error.argument_name or ""
        must = verb.options[_name(flag)].must
        raise UsageError(f"The `{flag}` of autotimm {verb.name} needs a value: {must}.") from None
    for value in values:
        if value.startswith("-") and value != "-":
            raise UsageError(_unknown(verb, value.partition("=")[0]))
    values += argv[end + 1 :]
    _check_positionals(verb, values, after_switch)
    positionals = {
        positional.name: values[index:] if positional.many else next(iter(values[index:]), None)
        for index, positional in enumerate(verb.positionals)
    }
    return Given(verb, positionals, vars(options))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _normalize(verb: Verb, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Write flags with dashes, and join value and flag by ``=`` where argparse would misread them.

    argparse would take any word after a bare switch as its value, and a value such as ``-1e-3`` as a flag.

    Returns:
        The words, and the words that follow a bare switch, with its name: one may have been meant as its value.
    """
    normalized: list[str] = []
    after_switch: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            normalized.append(word)
            continue
        following = rest[0] if rest else ""
        flag, equals, value = word.partition("=")
        option = verb.options.get(name := _name(flag))
        if option is None or equals:
            pass
        elif option.is_switch:
            if following.lower() not in {*TRUTH, option.none}:
                equals, value = "=", "true"
                after_switch.setdefault(following, name)
        elif following.startswith("-") and not following.startswith("--"):
            equals, value = "=", rest.pop(0)
        normalized.append(f"{_flag(name)}{equals}{value}")
    return normalized, after_switch


def _unknown(verb: Verb, flag: str) -> str:
    """The error for an unknown option, with the option that was probably meant."""
    positionals = {positional.name: f"autotimm {verb.name} {positional.metavar}" for positional in verb.positionals}
    hint = meant(
        flag[2:].replace("-", "_"),
        [*verb.options, *positionals],
        lambda known: positionals.get(known) or _flag(known),
    )
    return f"autotimm {verb.name} has no option {flag}. {hint or f'See autotimm {verb.name} --help.'}"


def _check_positionals(verb: Verb, values: list[str], after_switch: Mapping[str, str]) -> None:
    """Check positional arguments, all of them paths; one too many may have been meant as the value of a switch."""
    for index, value in enumerate(values):
        if problem := path_problem(value):
            known = [*verb.positionals[index:], *verb.positionals[-1:]]  # one too many is of the kind of the last
            name = known[0].metavar if known else "argument"
            raise UsageError(sentence(name, f"autotimm {verb.name}", "a path", value, problem))
    required = [positional for positional in verb.positionals if positional.required]
    if len(values) < len(required):
        missing = required[len(values)]
        raise UsageError(
            f"autotimm {verb.name} needs {missing.metavar}: {missing.help}. See autotimm {verb.name} --help."
        )
    if len(values) > len(verb.positionals) and not any(positional.many for positional in verb.positionals):
        for value in (value for value in values if value in after_switch):
            name = after_switch[value]
            verb.options[name].read(value, _flag(name), f"autotimm {verb.name}", verb.defaults.get(name))
        usage = " ".join(positional.usage for positional in verb.positionals)
        takes = f"takes {usage}" if usage else "takes no arguments"
        extra = values[len(verb.positionals) :]
        cure = "Put quotes around a name that contains spaces." if usage else "Leave it out."
        cure = _option_for(verb, extra) or cure
        raise UsageError(f"autotimm {verb.name} {takes}. Got {' '.join(extra)} as well. {cure}")


def _option_for(verb: Verb, extra: Sequence[str]) -> str:
    """The option that was meant by one argument too many, as a sentence; empty if none can be told."""
    if len(extra) != 1:
        return ""
    word = extra[0]
    there, names_file = os.path.lexists(word), "." in os.path.basename(word)
    out = verb.options.get("out")
    writes = out is not None and out.kind.metavar.startswith("FILE")  # not the folder of new runs
    meanings = {
        "port": (word.isdecimal(), "the port"),
        "data": (there, "the images"),
        "out": (writes and names_file and not there, "the file to write"),
    }
    for name, (fits, what) in meanings.items():
        if fits and name in verb.options:
            return f"If it is {what}, give --{name} {shlex.quote(word)}."
    return ""
