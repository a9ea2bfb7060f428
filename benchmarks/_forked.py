"""Work in forked processes: each begins with everything imported, and with environment variables of its own.

Libraries read variables such as ``ATEN_CPU_CAPABILITY`` when they first compute. The parent never computes, so that a
child computes with those that it is given, and costs no second of imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autotimm.runs.stretches.process import main

_FORK = multiprocessing.get_context("fork")
Work = Callable[..., Iterator[Any]]


class Child:
    """What a child asks of its parent: to have a job done by a process with other variables."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def launch(self, job: Path, variables: Mapping[str, str]) -> tuple[int, str]:
        """Do a job of stretches in another process; the exit code, and no words."""
        self._connection.send(("job", (job, dict(variables))))
        return self._connection.recv(), ""


def forked(work: Work, *given: Any, variables: Mapping[str, str] | None = None) -> Iterator[Any]:
    """What a generator function yields in a child that has further environment variables.

    Args:
        work: Called with a :class:`Child` and ``given``.
        given: Its arguments.
        variables: The environment variables.

    Raises:
        RuntimeError: If the child ends before the work.
    """
    connection, other = _FORK.Pipe()
    child = _FORK.Process(target=_run, args=(work, given, variables or {}, other))
    child.start()
    other.close()
    while True:
        try:
            kind, content = connection.recv()
        except EOFError:
            raise RuntimeError(f"A process of {work.__name__} ended before its work was done.") from None
        if kind == "end":
            for name in content:  # what it has imported, the next ones need not import again
                _import(name)
            break
        if kind == "job":
            job, more = content
            process = _FORK.Process(target=_job, args=(job, {**(variables or {}), **more}))
            process.start()
            process.join()
            connection.send(process.exitcode)
        else:
            yield content
    child.join()


def _import(name: str) -> None:
    if name not in sys.modules and not name.startswith("__"):
        try:
            importlib.import_module(name)
        except Exception:  # some cannot be imported by their name; that only costs time
            sys.modules.pop(name, None)


def _run(work: Work, given: tuple[Any, ...], variables: Mapping[str, str], connection: Connection) -> None:
    os.environ.update(variables)
    for result in work(Child(connection), *given):
        connection.send(("result", result))
    connection.send(("end", [*sys.modules]))


def _job(job: Path, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    sys.exit(main(job))
