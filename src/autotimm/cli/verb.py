"""One verb of the command line: its declaration, its help page, and the line shown while it loads torch."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from autotimm.config import Option

__all__ = ["HelpPage", "Positional", "Verb", "loading_torch"]


@dataclass(frozen=True)
class Positional:
    """A positional argument.

    Attributes:
        name: Key of the parsed value.
        metavar: Placeholder in the usage line.
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
        """Its part of the usage line."""
        placeholder = f"{self.metavar}..." if self.many else self.metavar
        return placeholder if self.required else f"[{placeholder}]"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line, such as ``fit``.

    Attributes:
        name: The verb.
        summary: One line for the list of verbs.
        run: The implementation: takes the arguments after the verb and returns the exit code.
        positionals: Positional arguments.
        options: Options by name, with underscores.
        defaults: The default of each option.
        examples: Commands worth copying.
        notes: Lines at the end of the help page.
        elsewhere: Names of this verb in other tools; the error for such a name suggests this verb.
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
        """The verb and its positional arguments."""
        return " ".join([self.name, *(positional.usage for positional in self.positionals)])

    def help(self, everything: bool = False) -> str:
        """The help page. The short page of a verb with many options shows only the common ones."""
        short = not everything and any(option.common for option in self.options.values())
        shown = {name: option for name, option in self.options.items() if option.common or not short}
        page = HelpPage()
        page.lines([f"{self.summary[0].upper()}{self.summary[1:]}."])
        page.lines([f"autotimm {self.usage}{' [OPTIONS]' if self.options else ''}"], heading="Usage")
        if self.positionals:
            page.table("Arguments", [(positional.metavar, positional.help) for positional in self.positionals])
        for group in dict.fromkeys(option.group for option in shown.values()):
            page.table(group, [self._row(name, option) for name, option in shown.items() if option.group == group])
        page.lines(list(self.examples), heading="Examples")
        more = [f"autotimm {self.name} --help-all lists all {len(self.options)} options."] if short else []
        page.lines([*self.notes, *more])
        return str(page)

    def _row(self, name: str, option: Option) -> tuple[str, str]:
        default = self.defaults.get(name)
        left = f"--{name.replace('_', '-')} {option.metavar(default)}".rstrip()
        shown = option.shown(default)
        return left, f"{option.explained} [{shown}]" if shown else option.explained


_MAX_WIDTH = 110
_INDENT = 2


class HelpPage:
    """Text for a terminal that is built section by section. All its tables share one left column."""

    def __init__(self) -> None:
        """Start an empty page, as wide as the terminal."""
        self._sections: list[tuple[str, list[tuple[str, str]]]] = []
        self._width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)

    def lines(self, lines: list[str], heading: str = "") -> None:
        """Add lines, with or without a heading."""
        self._sections.append((heading, [(line, "") for line in lines]))

    def table(self, heading: str, rows: list[tuple[str, str]]) -> None:
        """Add rows of two columns: what to type, and what it means."""
        self._sections.append((heading, rows))

    def __str__(self) -> str:
        """Lay out all sections that are not empty."""
        column = _INDENT + max((len(left) for _, rows in self._sections for left, right in rows if right), default=0)
        blocks = []
        for heading, rows in self._sections:
            indent = _INDENT if heading else 0
            lines = [f"{_bold(heading)}:"] if heading else []
            lines += [self._row(left, right, indent, column) for left, right in rows]
            blocks.append("\n".join(lines))
        return "\n\n".join(block for block in blocks if block)

    def _row(self, left: str, right: str, indent: int, column: int) -> str:
        margin = " " * indent
        if not right:
            # Commands are not wrapped, so that they can be copied.
            return f"{margin}{left}" if indent else textwrap.fill(left, self._width)
        hanging = " " * (indent + column)
        return textwrap.fill(
            right,
            max(self._width, len(hanging) + 30),
            initial_indent=f"{margin}{left:<{column}}",
            subsequent_indent=hanging,
            break_on_hyphens=False,
        )


def _bold(text: str) -> str:
    no_color = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if no_color else f"\033[1m{text}\033[0m"


_LOADING = "loading torch ..."


@contextmanager
def loading_torch(progress: bool = True) -> Iterator[None]:
    """Show a line on a terminal during the imports in its body, which take seconds, and erase it afterwards.

    Args:
        progress: Whether the user wants to see progress.
    """
    shown = progress and "torch" not in sys.modules and sys.stderr.isatty()
    if shown:
        print(_LOADING, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            # Overwritten with spaces: escape sequences are not understood by every terminal.
            print(f"\r{' ' * len(_LOADING)}\r", end="", file=sys.stderr, flush=True)
