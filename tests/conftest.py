"""What tests in several folders start from."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotimm.data.toy import write_toy_folder
from shared_data import shared, without_shared


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count = without_shared(terminalreporter.stats.get("skipped", []))
    if count:
        tests = "1 test was" if count == 1 else f"{count} tests were"
        terminalreporter.write_line(f"{tests} skipped for want of real data in ../shared.")


def pytest_collection_finish() -> None:
    gc.freeze()  # or collections go through the modules of all libraries again and again


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test takes the power away; what processes of their own write is on the disk all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Which images were read whole, and which runs were made here, is remembered in folders of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell without job control starts what it puts in the background with Ctrl-C ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 pixels in three class folders; only to be read."""
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "shapes", n=24, num_classes=3, seed=7)


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Path of a real data set by name; skips the test where ``../shared/data`` lacks it."""
    return lambda name: shared(f"data/{name}")
