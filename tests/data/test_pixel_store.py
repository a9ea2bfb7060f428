"""A store of pictures that cannot be used costs time and nothing else: nothing is found, nothing is kept."""

import fcntl
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from autotimm.data import pixel_store
from autotimm.data.file_facts import Stamp
from autotimm.data.pixel_store import Decoded, PixelStore, clear, held_in_common

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_store, "_PATIENCE", 0.01)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def decoded(tmp_path: Path, key: bytes = KEY) -> Decoded:
    stamp = Stamp.of(tmp_path)
    assert stamp is not None
    return Decoded(stamp, b"d" * 32, key, PIXELS)


def filled(home: Path, name: str = "one", limit: int = 10**9) -> PixelStore:
    store = PixelStore(home, name, limit)
    store.add([decoded(home.parent)])
    return store


def found(store: PixelStore, key: bytes = KEY) -> bool:
    pixels = store.picture(key)
    return pixels is not None and np.array_equal(pixels, PIXELS)


def test_what_was_added_is_found_also_after_it_was_closed(home: Path) -> None:
    store = filled(home)
    assert found(store)
    store.close()
    assert clear(home) == []  # nobody holds its lock
    assert not found(store)  # it is opened again, and is empty
    store.add([decoded(home.parent)])
    assert found(store)
    assert store.digest(decoded(home.parent).stamp) == b"d" * 32
    assert clear(home) == ["one"]  # in use


def not_a_folder(home: Path) -> None:
    home.write_text("")


def a_link(home: Path) -> None:
    (home.parent / "other").mkdir()
    home.symlink_to(home.parent / "other")


@pytest.mark.parametrize("make", [not_a_folder, a_link])
def test_a_home_that_is_not_a_folder_of_ones_own_is_not_used(make: Callable[[Path], None], home: Path) -> None:
    make(home)
    store = filled(home)
    assert not found(store)
    assert store.trouble == f"{home} is not a folder of this user's own".lower()
    assert not (home.parent / "other").exists() or [*(home.parent / "other").iterdir()] == []


def test_an_index_that_is_none_is_made_anew_by_who_is_alone(home: Path) -> None:
    first = filled(home)
    index = home / "one" / "index.sqlite3"
    index.write_bytes(b"no index" * 1000)
    second = PixelStore(home, "one", 10**9)
    assert not found(second)  # the first may still read and write: nothing of its files is removed
    assert second.trouble
    assert index.read_bytes().startswith(b"no index")
    first.close()
    third = filled(home)
    assert (found(third), third.trouble) == (True, "")


def test_a_store_that_is_being_removed_is_left_alone(home: Path) -> None:
    first = filled(home)
    first.close()
    with closing(open(home / "one" / "lock", "rb+")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="one is being removed"):
            held_in_common(home / "one")
        store = PixelStore(home, "one", 10**9)
        assert not found(store)
        assert store.trouble == f"{home / 'one'} is being removed".lower()
        assert clear(home) == ["one"]
    assert found(PixelStore(home, "one", 10**9))


def test_an_index_that_is_locked_for_long_is_not_waited_for(home: Path) -> None:
    filled(home).close()
    with closing(sqlite3.connect(home / "one" / "index.sqlite3", isolation_level=None)) as other:
        other.execute("begin exclusive")
        store = PixelStore(home, "one", 10**9)
        assert not found(store)
        assert store.trouble == ""  # nothing is broken
    assert found(PixelStore(home, "one", 10**9))
