"""The process of one run: ``python -m autotimm.studies.worker CONFIG.yaml [--watch]``.

With ``--watch`` it ends when its standard input does, that is, when the study that started it has died: a killed study
leaves no process behind that would write into a run together with the study's next start.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from autotimm.config import FitConfig, read_yaml
from autotimm.errors import AutotimmError
from autotimm.studies.one import work

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Make one run; return the exit code."""
    if "--watch" in argv:
        threading.Thread(target=_end_with_input, daemon=True).start()
    values, _ = read_yaml(argv[0])
    try:
        work(FitConfig.layered([(f"file {argv[0]}", values)]))
    except AutotimmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_input() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when the interpreter shuts down
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
