import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotimm.records import atomic
from autotimm.records.atomic import atomic_path, sweep, write_text


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("old")
    return path


def alone(path: Path) -> bool:
    """Whether nothing but `path` is in its folder, hidden files included."""
    return [child.name for child in path.parent.iterdir()] == [path.name]


@contextmanager
def file_size_limit(limit: int):
    """Let the system itself refuse to write more than so many bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_write_text_writes_and_replaces(path):
    write_text(path, "new")
    assert path.read_text() == "new"
    assert alone(path)


def test_write_text_makes_a_new_file_and_takes_a_string_as_path(tmp_path):
    write_text(str(tmp_path / "a b ü.txt"), "x")
    assert (tmp_path / "a b ü.txt").read_text() == "x"
    assert alone(tmp_path / "a b ü.txt")


def test_text_is_utf8_with_plain_line_ends(path):
    write_text(path, "ä\n犬\r\n")
    assert path.read_bytes() == "ä\n犬\r\n".encode()


def test_the_temporary_path_is_beside_the_file_hidden_and_not_there_yet(path):
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        assert temporary.name.startswith(".")
        assert not temporary.exists()
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert alone(path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_writing_keeps_the_old_file(path, error):
    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert alone(path)


def test_a_failure_before_the_first_byte_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "new.txt"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_over_the_size_limit_keeps_the_old_file(path):
    with file_size_limit(4096), pytest.raises(OSError, match="File too large") as caught:
        write_text(path, "x" * 100_000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert alone(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_keeps_the_old_file(path):
    def fill() -> None:
        with atomic_path(path) as temporary:
            temporary.symlink_to("/dev/full")  # whatever is written here meets the kernel's own ENOSPC
            temporary.write_bytes(b"x" * 100_000)

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert alone(path)


def test_after_a_failure_the_next_write_succeeds(path):
    with file_size_limit(4096), pytest.raises(OSError, match="File too large"):
        write_text(path, "x" * 100_000)
    write_text(path, "x" * 100_000)
    assert path.stat().st_size == 100_000
    assert alone(path)


def test_a_process_killed_while_writing_keeps_the_old_file(path):
    # run_path: the module alone, without the package, hence without the seconds that torch takes to load
    code = """
import os, runpy, signal, sys
with runpy.run_path(sys.argv[1])["atomic_path"](sys.argv[2]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, atomic.__file__, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_reader_never_sees_a_partial_file(path):
    old = open(path)  # noqa: SIM115 - held open across the write
    write_text(path, "new")
    with old:
        assert old.read() == "old"


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(path):
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"
    assert alone(path)


@pytest.mark.parametrize("below", ["missing/new.txt", "manifest.json/new.txt"])
def test_a_missing_folder_is_an_error(path, below):
    with pytest.raises(OSError, match=r"new\.txt"):
        write_text(path.parent / below, "x")
    assert path.read_text() == "old"
    assert alone(path)


def test_nested_writes_to_different_files_are_independent(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
        first.write_text("1")
        second.write_text("2")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("1", "2")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    for name in (".manifest.json.4711.tmp", ".last.ckpt.1.tmp", "manifest.json", ".lock", "notes.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", ".lock", "notes.tmp", ".mine.tmp"}
