"""``autotimm VERB ...``: finds the verb, and turns its outcome into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import autotimm
from autotimm.cli.backbones import BACKBONES
from autotimm.cli.demo import DEMO
from autotimm.cli.diff import DIFF
from autotimm.cli.doctor import DOCTOR
from autotimm.cli.fit import FIT
from autotimm.cli.help import Page
from autotimm.cli.levels import LEVELS
from autotimm.cli.predict import PREDICT
from autotimm.cli.reproduce import REPRODUCE
from autotimm.cli.resume import RESUME
from autotimm.cli.selfcheck import SELFCHECK
from autotimm.cli.study import STUDY
from autotimm.cli.test import TEST
from autotimm.cli.validate import VALIDATE
from autotimm.cli.verb import Verb
from autotimm.cli.verify import VERIFY
from autotimm.errors import AutotimmError, UsageError, nearest

__all__ = ["VERBS", "entry", "main"]

_ALL = (
    FIT, RESUME, VALIDATE, TEST, PREDICT, VERIFY, DIFF, LEVELS, REPRODUCE, STUDY, BACKBONES, DOCTOR, SELFCHECK, DEMO
)  # fmt: skip
VERBS: dict[str, Verb] = {verb.name: verb for verb in _ALL}
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def entry() -> None:
    """Run as the program ``autotimm``."""
    # A console script does not see the current folder, where people keep the classes that their files name. It comes
    # last, so that it hides nothing that is installed.
    sys.path.append(os.getcwd())
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``autotimm``; by default those of the process.

    Returns:
        The exit code: 0 ok, 1 the run failed, 2 usage, 3 data, 4 model or weights, 5 different, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a reader that has left is noticed here, not while the interpreter shuts down
        return code
    except AutotimmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # `autotimm backbones | head`: the reader has what it wanted. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"autotimm {autotimm.__version__}")
        return 0
    if words[0].startswith("-"):
        hint = nearest(words[0], ["--help", "--version"]) or "Options follow a verb: autotimm fit PATH --epochs 10."
        raise UsageError(f"autotimm has no option {words[0]}. {hint}")
    if words[0] not in VERBS:
        hint = _meant(words[0]) or f"There are {', '.join(VERBS)}."
        raise UsageError(f"autotimm has no verb '{words[0]}'. {hint}")
    return VERBS[words[0]].run(words[1:])


def _meant(word: str) -> str:
    """Suggest the verb that was meant; it may have been the word of other tools for it, or a slip for that."""
    same = {other: verb.name for verb in VERBS.values() for other in verb.elsewhere}
    closest = nearest(word, [*VERBS, *same], n=1)
    other = next((other for other in same if repr(other) in closest), None)
    return nearest(word, VERBS) if other is None else f"Did you mean '{same[other]}'?"


def _help() -> str:
    page = Page()
    page.lines(["Train vision models on timm backbones, and be able to show that a run repeats."])
    page.lines(["autotimm VERB [ARGUMENTS] [OPTIONS]"], heading="Usage")
    page.table("Verbs", [(verb.usage, verb.summary) for verb in VERBS.values()])
    page.lines(["autotimm demo", *(verb.examples[0] for verb in (FIT, TEST, PREDICT))], heading="Examples")
    page.lines(
        [
            "autotimm VERB --help explains a verb; autotimm --version prints the version.",
            "Exit codes: 0 ok, 1 the run failed, 2 usage, 3 data, 4 model or weights, 5 different, 130 Ctrl-C.",
        ]
    )
    return str(page)
