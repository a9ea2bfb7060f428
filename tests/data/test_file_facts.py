"""The scan: what it finds, what it remembers, and that nothing else depends on the cache."""

import os
import time
from pathlib import Path

import pytest

from autotimm.data.file_facts import cache_file, scan


def files(toy: Path) -> list[Path]:
    return sorted(toy.rglob("*.png"))


def test_problems_come_in_the_order_of_the_files(toy: Path) -> None:
    bad = [files(toy)[i] for i in (20, 3)]
    for path in bad:
        path.write_bytes(b"broken")
    assert [problem.path for problem in scan(files(toy))] == bad[::-1]
    assert scan([bad[0], bad[0]])[0].reason == "not an image"


def test_what_was_read_is_not_read_again(toy: Path) -> None:
    assert scan(files(toy)) == []
    path = files(toy)[0]
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(stamp, stamp))
    assert scan(files(toy)) == []  # only size and time of change are looked at
    os.utime(path, ns=(stamp, stamp + 1))
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
    assert cache_file("readable").exists()
    assert str(cache_file("readable")).startswith(os.environ["XDG_CACHE_HOME"])


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
        cache_file("readable").write_text("this is no database, and longer than a header" * 10)
    else:
        home.mkdir(mode=0o500)
    files(toy)[0].write_bytes(b"")
    assert [len(scan(files(toy))) for _ in range(2)] == [1, 1]
    assert capfd.readouterr() == ("", "")
    if kind == "broken":  # and made again
        assert cache_file("readable").read_bytes().startswith(b"SQLite format 3")


def test_no_files() -> None:
    assert scan([]) == []


def test_real_photographs_are_scanned_quickly_the_second_time(real: object) -> None:
    root = real("cls_clothing")  # type: ignore[operator]
    found = sorted(root.rglob("*.jpg"))
    assert scan(found) == []
    started = time.process_time()
    assert scan(found) == []
    assert time.process_time() - started < 1
