"""The description of a verb: what it takes, what it prints as help, and what it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotimm.cli.help import Page
from autotimm.config import Option

__all__ = ["Positional", "Verb"]


@dataclass(frozen=True)
class Positional:
    """An argument without a flag.

    Attributes:
        name: What the parsed value is called.
        metavar: The word for it in the usage line.
        help: One line, without a full stop.
        required: Whether it must be given.
        many: Whether it may be given several times.
    """

    name: str
    metavar: str
    help: str
    required: bool = True
    many: bool = False

    @property
    def usage(self) -> str:
        """How it stands in the usage line."""
        word = f"{self.metavar}..." if self.many else self.metavar
        return word if self.required else f"[{word}]"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: The verb.
        summary: One line for the list of verbs.
        run: What does the work: takes the arguments after the verb and returns the exit code.
        positionals: Its arguments without a flag.
        options: Its options by name, with underscores.
        defaults: The default of each option.
        examples: Commands worth copying.
        notes: Lines at the foot of its help.
        elsewhere: What other tools call it; typed here, it is pointed to.
    """

    name: str
    summary: str
    run: Callable[[Sequence[str]], int]
    positionals: tuple[Positional, ...] = ()
    options: dict[str, Option] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The verb and its arguments."""
        return " ".join([self.name, *(one.usage for one in self.positionals)])

    def help(self, everything: bool = False) -> str:
        """Its help page; the short one shows the common options of a verb that has many."""
        short = not everything and any(one.common for one in self.options.values())
        shown = {name: one for name, one in self.options.items() if one.common or not short}
        page = Page()
        page.lines([f"{self.summary[0].upper()}{self.summary[1:]}."])
        page.lines([f"autotimm {self.usage}{' [OPTIONS]' if self.options else ''}"], heading="Usage")
        if self.positionals:
            page.table("Arguments", [(one.metavar, one.help) for one in self.positionals])
        for group in dict.fromkeys(one.group for one in shown.values()):
            page.table(group, [self._row(name, one) for name, one in shown.items() if one.group == group])
        page.lines(list(self.examples), heading="Examples")
        more = [f"autotimm {self.name} --help-all lists all {len(self.options)} options."] if short else []
        page.lines([*self.notes, *more])
        return str(page)

    def _row(self, name: str, one: Option) -> tuple[str, str]:
        default = self.defaults.get(name)
        left = f"--{name.replace('_', '-')} {one.metavar(default)}".rstrip()
        shown = one.shown(default)
        return left, f"{one.explained} [{shown}]" if shown else one.explained
