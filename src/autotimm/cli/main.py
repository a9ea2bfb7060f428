"""``autotimm VERB ...``: run a verb, and turn its outcome into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import autotimm
from autotimm.cli.attest import ATTEST
from autotimm.cli.backbones import BACKBONES
from autotimm.cli.demo import DEMO
from autotimm.cli.diff import DIFF
from autotimm.cli.doctor import DOCTOR
from autotimm.cli.explain import EXPLAIN
from autotimm.cli.export import EXPORT
from autotimm.cli.extend import EXTEND
from autotimm.cli.fit import FIT
from autotimm.cli.inspect import INSPECT
from autotimm.cli.json_output import print_error, wants_json
from autotimm.cli.levels import LEVELS
from autotimm.cli.pack import PACK
from autotimm.cli.predict import PREDICT
from autotimm.cli.publish import PUBLISH
from autotimm.cli.push import PUSH
from autotimm.cli.report import REPORT
from autotimm.cli.reproduce import REPRODUCE
from autotimm.cli.resume import RESUME
from autotimm.cli.seal import SEAL
from autotimm.cli.selfcheck import SELFCHECK
from autotimm.cli.serve import SERVE
from autotimm.cli.study import STUDY
from autotimm.cli.test import TEST
from autotimm.cli.validate import VALIDATE
from autotimm.cli.verb import HelpPage, Verb
from autotimm.cli.verify import VERIFY
from autotimm.errors import AutotimmError, UsageError, nearest, printable
from autotimm.records.own_modules import search_also

__all__ = ["VERBS", "entry", "main"]

_ALL = (
    FIT, INSPECT, PACK, RESUME, EXTEND, VALIDATE, TEST, PREDICT, EXPLAIN, REPORT, EXPORT, PUSH, SERVE, VERIFY, DIFF,
    LEVELS, REPRODUCE, SEAL, PUBLISH, ATTEST, STUDY, BACKBONES, DOCTOR, SELFCHECK, DEMO,
)  # fmt: skip
VERBS: dict[str, Verb] = {verb.name: verb for verb in _ALL}
_BREAK = "\n"  # some messages have several lines
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def entry() -> None:
    """Entry point of the console script ``autotimm``."""
    # Users keep the classes that their configuration files name in the working directory.
    search_also(os.getcwd())
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after ``autotimm``; by default those of the process.

    Returns:
        The exit code: 0 ok, 1 the run failed, 2 usage, 3 data, 4 model or weights, 5 different, 6 incomplete,
        7 consistent, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # raise BrokenPipeError here, not while the interpreter shuts down
        return code
    except AutotimmError as error:
        # Further lines are indented: none of them, which may come from a name, can be taken for one of ours.
        print(f"error: {printable(error, keep=_BREAK)}".replace(_BREAK, f"{_BREAK}  "), file=sys.stderr)
        return _failed(arguments, error, error.exit_code)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return _failed(arguments, error, _INTERRUPTED)
    except BrokenPipeError:
        # `autotimm backbones | head` closes the pipe early, which is no error. What is still buffered is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _failed(arguments: Sequence[str], error: BaseException, exit_code: int) -> int:
    if wants_json(arguments):
        print_error(error, exit_code)
    return exit_code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name = arguments[0]
    if name == "--version":
        print(f"autotimm {autotimm.__version__}")
        return 0
    if name.startswith("-"):
        hint = nearest(name, ["--help", "--version"]) or "Options follow a verb: autotimm fit PATH --epochs 10."
        raise UsageError(f"autotimm has no option {name}. {hint}")
    if name not in VERBS:
        hint = _suggestion(name) or f"The verbs are {', '.join(VERBS)}."
        raise UsageError(f"autotimm has no verb '{name}'. {hint}")
    return VERBS[name].run(arguments[1:])


def _suggestion(word: str) -> str:
    """Suggest a verb for a misspelt one, or for the name that another tool has for it, which may be misspelt too."""
    by_other_name = {other: verb.name for verb in VERBS.values() for other in verb.elsewhere}
    closest = nearest(word, [*VERBS, *by_other_name], n=1)
    other = next((other for other in by_other_name if repr(other) in closest), None)
    return nearest(word, VERBS) if other is None else f"Did you mean '{by_other_name[other]}'?"


def _help() -> str:
    page = HelpPage()
    page.lines(["Train vision models on timm backbones, with runs that can be verified bit for bit."])
    page.lines(["autotimm VERB [ARGUMENTS] [OPTIONS]"], heading="Usage")
    page.table("Verbs", [(verb.usage, verb.summary) for verb in VERBS.values()])
    page.lines(["autotimm demo", *(verb.examples[0] for verb in (FIT, TEST, PREDICT))], heading="Examples")
    page.lines(
        [
            "autotimm VERB --help explains a verb; autotimm --version prints the version.",
            "Exit codes: 0 ok, 1 the run failed, 2 usage, 3 data, 4 model or weights, 5 different, 6 incomplete, "
            "130 Ctrl-C.",
        ]
    )
    return str(page)
