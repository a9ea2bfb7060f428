"""What every test and doctest starts from: no hub, a wide terminal, and no switch left over from the test before."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

# Libraries read these when they are imported, which is after this file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COLUMNS", "160")
# Threads of torch that wait for each other spin, which costs seconds where several tests share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A process whose torch has started threads may hang when it is forked, and tests fork: loading processes, killed ones.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Restore the process's switches, generators, thread count and environment after each test."""
    before = dict(os.environ)
    with ExitStack() as stack:
        if "torch" in sys.modules:  # the tests of the torch-free parts must not pull it in
            from autotimm.repro.seed import fixed_threads, preserve_switches
            from autotimm.repro.streams import preserve_generators

            stack.enter_context(preserve_switches())
            stack.enter_context(preserve_generators())
            stack.enter_context(fixed_threads(None))
        yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


# How the recorded runs were made, by an earlier version: kept as a record, and not to be imported by this one.
collect_ignore = ["tests/fixtures/make_runs.py"]
