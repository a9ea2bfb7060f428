"""Facts about files: problems are found, facts are cached, and nothing else depends on the cache."""

import os
from pathlib import Path

import pytest

from autotimm.data import file_facts, image_facts
from autotimm.data.file_facts import FileFacts, Problem, Stamp
from autotimm.data.image_facts import scan

READABLE = image_facts._STORE.file


def files(toy: Path) -> list[Path]:
    return sorted(toy.rglob("*.png"))


def test_problems_are_in_the_order_of_the_files(toy: Path) -> None:
    bad = [files(toy)[i] for i in (20, 3)]
    for path in bad:
        path.write_bytes(b"broken")
    assert [problem.path for problem in scan(files(toy))] == bad[::-1]
    assert scan([bad[0], bad[0]])[0].reason == "not an image"


class Reads:
    """Reads the first byte of files, and notes which."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path) -> int:
        self.paths.append(path)
        return path.read_bytes()[0]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough at once: no program can set a ctime to the past."""
    monkeypatch.setattr(file_facts, "_SETTLED", 0)


@pytest.mark.usefixtures("settled")
def test_a_cached_fact_is_not_computed_again(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "gone"]
    paths[0].write_bytes(b"1")
    paths[1].write_bytes(b"2")
    first, second = Reads(), Reads()
    facts = {paths[0]: 49, paths[1]: 50, paths[2]: Problem(paths[2], "there is no such file")}
    assert FileFacts("bytes", first, "1", threads=1)(paths, False, "") == facts
    assert first.paths == paths[:2]
    assert FileFacts("bytes", second, "1", threads=1)(paths, False, "") == facts
    assert second.paths == []
    FileFacts("bytes", second, "other rules", threads=1)(paths[:1], False, "")
    assert second.paths == [paths[0]]


def reads(path: Path, *, cached: bool = True) -> int:
    """How often a file is read for one fact."""
    reader = Reads()
    FileFacts("bytes", reader, "1", threads=1)([path], False, "", cached=cached)
    return len(reader.paths)


def test_a_fact_of_a_young_file_is_neither_cached_nor_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    assert [reads(path) for _ in range(2)] == [1, 1]
    with monkeypatch.context() as context:
        context.setattr(file_facts, "_SETTLED", 0)
        assert [reads(path) for _ in range(2)] == [1, 0]
    assert reads(path) == 1  # as after a clock was set back: the cache knows a fact, and the file is too young for it


@pytest.mark.usefixtures("settled")
def test_a_fact_of_a_file_from_the_future_is_not_cached(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    os.utime(path, (2**32, 2**32))
    assert [reads(path) for _ in range(2)] == [1, 1]


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_if_the_cache_may_not_be_used_and_the_cache_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    wrong, right = (FileFacts("bytes", lambda _, value=value: value, "1") for value in (0, 1))
    assert wrong([path], False, "") == {path: 0}
    assert right([path], False, "") == {path: 0}
    assert right([path], False, "", cached=False) == {path: 1}
    assert wrong([path], False, "") == {path: 1}


def test_times_that_do_not_fit_into_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    os.utime(path, (2**33 + 2**31, 2**33 + 2**31))  # the year 2310: more nanoseconds than SQLite has room for
    assert reads(path) == 1
    stamp = Stamp.of(path)
    assert stamp is not None
    assert stamp.mtime_ns <= 2**63 - 1


def test_a_changed_file_of_the_same_size_and_mtime_is_read_again(toy: Path) -> None:
    assert scan(files(toy)) == []
    path = files(toy)[0]
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(stamp, stamp))  # as `cp -p` and archives do; the kernel sets ctime all the same
    assert [problem.path for problem in scan(files(toy))] == [path]


def test_a_replaced_file_is_read_again(toy: Path) -> None:
    assert scan(files(toy)) == []
    path = files(toy)[0]
    copy = path.with_suffix(".new")
    copy.write_bytes(bytes(path.stat().st_size))
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    copy.replace(path)
    assert [problem.path for problem in scan(files(toy))] == [path]


def test_a_repaired_file_is_good(toy: Path) -> None:
    path = files(toy)[0]
    good = path.read_bytes()
    path.write_bytes(b"")
    assert len(scan(files(toy))) == 1
    path.write_bytes(good)
    assert scan(files(toy)) == []


@pytest.mark.usefixtures("settled")
def test_cache_is_below_the_users_cache_folder(toy: Path) -> None:
    scan(files(toy))
    assert READABLE.path.exists()
    assert READABLE.path.parent == Path(os.environ["XDG_CACHE_HOME"], "autotimm")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", ["file in the way", "broken", "read-only"])
def test_an_unusable_cache_is_ignored(
    toy: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    if kind == "file in the way":
        home.write_text("")
    elif kind == "broken":
        (home / "autotimm").mkdir(parents=True)
        READABLE.path.write_text("this is no database, and longer than a header" * 10)
    else:
        home.mkdir(mode=0o500)
    files(toy)[0].write_bytes(b"")
    assert [len(scan(files(toy))) for _ in range(2)] == [1, 1]
    assert capfd.readouterr() == ("", "")
    if kind == "broken":  # and made again
        assert READABLE.path.read_bytes().startswith(b"SQLite format 3")


def test_no_files() -> None:
    assert scan([]) == []
