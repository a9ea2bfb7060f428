"""What every verb shares: a strict parser on :mod:`argparse`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotimm.cli.verb import Verb
from autotimm.config import meant
from autotimm.config.value_types import TRUTH
from autotimm.errors import UsageError

__all__ = ["Given", "parse"]

_HELP = ("-h", "--help", "--help-all")


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


class _Once(argparse.Action):
    """Keeps the value of an option, and refuses a second one, which argparse would let win."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Take the value."""
        if self.dest in namespace:
            raise UsageError(f"{parser.prog} got {_flag(self.dest)} twice. Keep one.")
        setattr(namespace, self.dest, values)


def parse(verb: Verb, argv: Sequence[str]) -> Given | None:
    """Parse the arguments of a verb, or print its help.

    Dashes and underscores in the name of an option are the same. Nothing is ignored: an unknown or repeated option, one
    without its value, and one argument too many are errors. Values stay text; :class:`Option` converts them.

    Returns:
        What was given, or ``None`` if the help was asked for and has been printed.

    Raises:
        UsageError: If the command is wrong.
    """
    # argparse treats "--" and flags between positionals differently from one Python to the next. So it is given neither
    # and only picks the options out; what it leaves over are positionals, in order.
    end = argv.index("--") if "--" in argv else len(argv)
    words, doubtful = _spelled_out(verb, argv[:end])
    if asked := [word for word in words if word in _HELP]:
        print(verb.help(everything="--help-all" in asked))
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
        options, plain = parser.parse_known_args(words)
    except argparse.ArgumentError as error:  # "expected one argument", the only one that is left
        flag = error.argument_name or ""
        must = verb.options[_name(flag)].must
        raise UsageError(f"The `{flag}` of autotimm {verb.name} needs a value: {must}.") from None
    for word in plain:
        if word.startswith("-") and word != "-":
            raise UsageError(_unknown(verb, word.partition("=")[0]))
    plain += argv[end + 1 :]
    _check_plain(verb, plain, doubtful)
    positionals = {
        one.name: plain[index:] if one.many else next(iter(plain[index:]), None)
        for index, one in enumerate(verb.positionals)
    }
    return Given(verb, positionals, vars(options))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _spelled_out(verb: Verb, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Write flags with dashes, and with ``=`` what argparse would read otherwise.

    It would take any word for the value of a bare switch, and a value such as ``-1e-3`` for a flag.

    Returns:
        The words, and those that follow a bare switch, with its name: they may have been meant as its value.
    """
    spelled: list[str] = []
    doubtful: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            spelled.append(word)
            continue
        following = rest[0] if rest else ""
        flag, equals, value = word.partition("=")
        option = verb.options.get(name := _name(flag))
        if option is None or equals:
            pass
        elif option.is_switch:
            if following.lower() not in {*TRUTH, option.none}:
                equals, value = "=", "true"
                doubtful.setdefault(following, name)
        elif following.startswith("-") and not following.startswith("--"):
            equals, value = "=", rest.pop(0)
        spelled.append(f"{_flag(name)}{equals}{value}")
    return spelled, doubtful


def _unknown(verb: Verb, flag: str) -> str:
    """Say that a verb has no such option, and which was meant."""
    plain = {one.name: f"autotimm {verb.name} {one.metavar}" for one in verb.positionals}
    hint = meant(flag[2:].replace("-", "_"), [*verb.options, *plain], lambda known: plain.get(known) or _flag(known))
    return f"autotimm {verb.name} has no option {flag}. {hint or f'See autotimm {verb.name} --help.'}"


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
