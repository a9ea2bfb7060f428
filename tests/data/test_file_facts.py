"""The scan: what it finds, what it remembers, and that nothing else depends on the cache."""

import os
import time
from pathlib import Path

import pytest

from autotimm.data.file_facts import _READABLE as CACHE
from autotimm.data.file_facts import scan


def files(toy: Path) -> list[Path]:
    return sorted(toy.rglob("*.png"))


def test_problems_come_in_the_order_of_the_files(toy: Path) -> None:
    bad = [files(toy)[i] for i in (20, 3)]
    for path in bad:
        path.write_bytes(b"broken")
    assert [problem.path for problem in scan(files(toy))] == bad[::-1]
    assert scan([bad[0], bad[0]])[0].reason == "not an image"


def test_a_file_that_was_read_is_not_read_again(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan(files(toy)) == []
    reads: list[Path] = []
    monkeypatch.setattr(CACHE, "look_up", lambda path: not reads.append(path))
    assert scan(files(toy)) == []
    assert reads == []


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_change_under_the_same_size_and_mtime_is_seen(toy: Path, how: str) -> None:
    """As `cp -p`, `rsync -t` and reproducible archives leave it."""
    path = files(toy)[0]
    before = path.stat()
    assert scan(files(toy)) == []
    target = path if how == "in place" else path.with_suffix(".tmp")
    target.write_bytes(bytes(before.st_size))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert [problem.path for problem in scan(files(toy))] == [path]


def test_a_cured_file_is_found_good(toy: Path) -> None:
    path = files(toy)[0]
    good = path.read_bytes()
    path.write_bytes(b"")
    assert len(scan(files(toy))) == 1
    path.write_bytes(good)
    assert scan(files(toy)) == []


def test_cache_is_below_the_users_cache_folder(toy: Path) -> None:
    scan(files(toy))
    assert CACHE.path.exists()
    assert str(CACHE.path).startswith(os.environ["XDG_CACHE_HOME"])


@pytest.mark.parametrize("kind", ["file in the way", "broken", "read-only"])
def test_a_cache_that_cannot_be_used_is_no_cache(
    toy: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    if kind == "file in the way":
        home.write_text("")
    elif kind == "broken":
        (home / "autotimm").mkdir(parents=True)
        CACHE.path.write_text("this is no database, and longer than a header" * 10)
    else:
        home.mkdir(mode=0o500)
    files(toy)[0].write_bytes(b"")
    assert [len(scan(files(toy))) for _ in range(2)] == [1, 1]
    assert capfd.readouterr() == ("", "")
    if kind == "broken":  # and made again
        assert CACHE.path.read_bytes().startswith(b"SQLite format 3")


def test_no_files() -> None:
    assert scan([]) == []


def test_real_photographs_are_scanned_quickly_the_second_time(real: object) -> None:
    root = real("cls_clothing")  # type: ignore[operator]
    found = sorted(root.rglob("*.jpg"))
    assert scan(found) == []
    started = time.process_time()
    assert scan(found) == []
    assert time.process_time() - started < 1
