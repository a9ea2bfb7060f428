"""What is kept of runs outside of their folders."""

from pathlib import Path

import pytest

from autotimm.records.user_state import read_state, state_folder, write_state


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_was_written_is_read_again() -> None:
    write_state("checked", "a run", {"R1": "checked"})
    assert read_state("checked", "a run") == {"R1": "checked"}
    assert read_state("made", "a run") == read_state("checked", "another run") == {}


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\xff"])
def test_a_damaged_file_says_nothing(text: str) -> None:
    write_state("made", "a run", {"files": {}})
    (file,) = (state_folder() / "made").iterdir()
    file.write_text(text, encoding="latin-1")
    assert read_state("made", "a run") == {}


@pytest.mark.parametrize("run_id", ["../../outside", "/etc/passwd", "a" * 10_000, "nul\0", ""])
def test_an_id_never_becomes_a_path(run_id: str) -> None:
    write_state("made", run_id, {"x": 1})
    assert read_state("made", run_id) == {"x": 1}
    assert [path.parent for path in state_folder().rglob("*.json")] == [state_folder() / "made"]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "autotimm"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "autotimm"
