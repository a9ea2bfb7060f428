import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotimm.errors import RunError
from autotimm.records.ledger import FIELDS, Ledger, digest16, malformed, read_ledger


def step(ledger: Ledger, number: int, **changes) -> None:
    fields = {"epoch": 0, "batch": number, "step": number + 1, "ids": f"{number:016x}", "inputs": f"{number + 7:016x}"}
    ledger.add("step", **fields | {"loss": 1 / (number + 3), "lr": 0.001} | changes)


def written(path: Path, steps: int = 5) -> Ledger:
    ledger = Ledger(path)
    ledger.add("start", run="0" * 16, weights="1" * 16, world_size=1)
    for number in range(steps):
        step(ledger, number)
    ledger.flush()
    return ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@contextmanager
def file_size_limit(limit: int):
    """Let the system itself refuse to write more than so many bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- lines -----------------------------------------------------------------------------------------------------------


def test_golden_lines(path):
    # A contract: recorded runs hold such lines.
    ledger = Ledger(path)
    ledger.add("start", run="a" * 16, weights="b" * 16, world_size=1)
    step(ledger, 0, ids=None)
    ledger.flush()
    start = '{"kind":"start","prev":"","run":"aaaaaaaaaaaaaaaa","weights":"bbbbbbbbbbbbbbbb","world_size":1}'
    assert path.read_text() == (
        start + '\n{"batch":0,"epoch":0,"ids":null,"inputs":"0000000000000007","kind":"step",'
        '"loss":"0x1.5555555555555p-2","lr":"0x1.0624dd2f1a9fcp-10","prev":"' + digest16(start) + '","step":1}\n'
    )
    assert digest16(start) == "2ea501d9eecdb74f"


def test_each_line_has_the_digest_of_the_one_before(path):
    ledger = written(path)
    raw = path.read_bytes().split(b"\n")
    assert raw.pop() == b""
    assert [json.loads(line)["prev"] for line in raw] == ["", *(digest16(line) for line in raw[:-1])]
    assert ledger.last == digest16(raw[-1])
    assert ledger.position == {"bytes": path.stat().st_size, "last": ledger.last, "lines": 6}


def test_floats_keep_their_bits_at_every_depth(path):
    ledger = Ledger(path)
    values = {"a": 0.1, "nan": float("nan"), "low": float("-inf"), "zero": -0.0, "deep": [{"b": 1e-310}], "n": 3}
    ledger.add("val", metrics=values)
    ledger.flush()
    metrics = read_ledger(path).lines[0]["metrics"]
    assert metrics.pop("n") == 3
    assert float.fromhex(metrics.pop("deep")[0]["b"]) == 1e-310
    assert {name: float.fromhex(value).hex() for name, value in metrics.items()} == {
        name: values[name].hex() for name in metrics
    }
    assert (metrics["nan"], metrics["low"], metrics["zero"]) == ("nan", "-inf", "-0x0.0p+0")


def test_a_name_that_is_not_utf8_has_a_digest():
    assert digest16("photos/\udcff.png") != digest16("photos/\udcfe.png")
    assert digest16("ü") == digest16("ü".encode())


@pytest.mark.parametrize("text", ["犬", "a\nb", "\udcff", '"', "\x00", "\u2028"])
def test_any_text_stays_on_one_line(path, text):
    ledger = Ledger(path)
    ledger.add("gap", step=1, reason=text)
    ledger.add("end", step=1)
    ledger.flush()
    assert [line.get("reason") for line in read_ledger(path).lines] == [text, None]


def test_a_field_that_is_not_plain_data_is_refused(path):
    ledger = written(path)
    with pytest.raises(TypeError):
        ledger.add("step", loss=object())
    step(ledger, 5)
    ledger.flush()
    assert len(read_ledger(path).lines) == 7
    assert read_ledger(path).problem is None


def test_the_listener_is_called_for_each_added_line(path):
    heard = []
    ledger = Ledger(path, heard.append)
    ledger.add("val", epoch=0, step=1, metrics={"x": 0.5})
    assert heard == [{"kind": "val", "epoch": 0, "step": 1, "metrics": {"x": "0x1.0000000000000p-1"}}]
    assert not path.exists()
    ledger.flush()
    assert [{**line, "prev": ""} for line in heard] == read_ledger(path).lines


# --- writing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_flush(tmp_path):
    ledger = Ledger(tmp_path / "later" / "ledger.jsonl")
    step(ledger, 0)
    (tmp_path / "later").mkdir()
    ledger.flush(sync=True)
    assert len(read_ledger(tmp_path / "later" / "ledger.jsonl").lines) == 1


def test_the_grouping_of_flushes_does_not_matter(tmp_path):
    whole, other = tmp_path / "one", tmp_path / "other"
    written(whole)
    ledger = Ledger(other)
    ledger.add("start", run="0" * 16, weights="1" * 16, world_size=1)
    for number in range(5):
        step(ledger, number)
        ledger.flush(sync=number == 2)
        ledger.flush()
    assert whole.read_bytes() == other.read_bytes()


def test_the_chain_is_computed_without_a_path(path):
    ledger = Ledger(None)
    ledger.add("start", run="0" * 16, weights="1" * 16, world_size=1)
    for number in range(5):
        step(ledger, number)
    ledger.flush(sync=True)
    assert ledger.position == written(path).position
    assert ledger.rewind({"bytes": 10, "last": "f" * 16, "lines": 1})
    assert ledger.last == "f" * 16


def test_a_ledger_continues_after_the_last_line_of_its_file(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    step(ledger := written(whole), 5)
    ledger.flush()
    written(parts)
    again = Ledger(parts)
    assert again.position["lines"] == 6
    step(again, 5)
    again.flush()
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("cut", [1, 50, 150])
def test_an_incomplete_line_left_by_a_crash_is_replaced(path, cut):
    written(path)
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    half = path.read_bytes()
    ledger = Ledger(path)
    assert ledger.position["lines"] == 5
    assert path.read_bytes() == half  # looking changes nothing
    step(ledger, 4)
    ledger.flush()
    assert path.read_bytes() == whole


def test_a_full_disk_loses_nothing(path):
    ledger = written(path)
    before, position = path.read_bytes(), ledger.position
    for number in range(5, 30):
        step(ledger, number)
    with (
        file_size_limit(len(before) + 333),
        pytest.raises(RunError, match=r"ledger\.jsonl must be writable.*too large"),
    ):
        ledger.flush()
    assert path.read_bytes() == before
    assert ledger.position == position
    ledger.flush()
    assert len(read_ledger(path).lines) == 31
    assert read_ledger(path).problem is None


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"The ledger .* must be a file that can be read. It is not \(Is a directory"):
        Ledger(tmp_path).add("end", step=1)
    (tmp_path / "link").symlink_to("missing/x")
    step(ledger := Ledger(tmp_path / "link"), 0)
    with pytest.raises(RunError, match=r"The ledger .*link must be writable. It is not \(No such file"):
        ledger.flush()


def test_a_killed_process_leaves_complete_lines(path):
    code = """
import os, signal, sys
from autotimm.records.ledger import Ledger
ledger = Ledger(sys.argv[1])
for number in range(100):
    ledger.add("step", step=number)
    if number % 10 == 9:
        ledger.flush()
    if number == 57:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    lines, problem, _ = read_ledger(path)
    assert [line["step"] for line in lines] == list(range(50))
    assert problem is None


# --- rewinding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
def test_rewinding_and_writing_again_gives_the_same_file(path, fresh):
    ledger = written(path)
    position = ledger.position
    for number in range(5, 9):
        step(ledger, number)
    ledger.flush()
    whole = path.read_bytes()
    step(ledger, 9)  # was never flushed
    ledger = Ledger(path) if fresh else ledger
    assert ledger.rewind(position)
    assert (ledger.last, ledger.position) == (position["last"], position)
    assert path.stat().st_size == position["bytes"]
    for number in range(5, 9):
        step(ledger, number)
    ledger.flush()
    assert path.read_bytes() == whole


def test_rewinding_over_an_incomplete_line(path):
    ledger = written(path)
    position = ledger.position
    step(ledger, 5)
    ledger.flush()
    os.truncate(path, path.stat().st_size - 3)
    again = Ledger(path)
    assert again.last == position["last"]
    assert again.rewind(position)
    step(again, 5)
    again.flush()
    assert read_ledger(path).problem is None


def test_rewinding_to_the_beginning(path):
    empty = {"bytes": 0, "last": "", "lines": 0}
    assert Ledger(path).position == empty
    assert Ledger(path).rewind(empty)  # no file yet
    assert not path.exists()
    assert written(path).rewind(empty)
    assert path.read_bytes() == b""


def test_a_line_longer_than_a_block_is_found(path):
    ledger = written(path)
    ledger.add("val", metrics={f"val/class_{number}": number / 3 for number in range(2000)})
    ledger.flush()
    position = ledger.position
    step(ledger, 5)
    ledger.flush()
    assert Ledger(path).rewind(position)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 10**9},
        {"bytes": -1},
        {"bytes": 0},
        {"bytes": 40},
        {"last": "0" * 16},
        {"last": ""},
        {"bytes": "x"},
        {"bytes": float("inf")},
        {"bytes": None},
    ],
)
def test_an_unknown_position_leaves_the_file_unchanged(path, change):
    position = written(path).position
    before = path.read_bytes()
    ledger = Ledger(path)
    assert not ledger.rewind(position | change)
    assert path.read_bytes() == before
    ledger.add("gap", step=5, reason="the ledger was damaged")
    ledger.flush()
    assert [line["kind"] for line in read_ledger(path).lines][-2:] == ["step", "gap"]


def test_an_invalid_position_is_refused(path):
    written(path)
    assert not Ledger(path).rewind({})


def test_a_missing_file_or_a_folder_cannot_be_rewound(tmp_path):
    position = written(tmp_path / "ledger.jsonl").position
    assert not Ledger(tmp_path / "missing").rewind(position)
    assert not Ledger(tmp_path).rewind(position)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_reading_gives_every_line_and_the_last_digest(path):
    ledger = written(path)
    lines, problem, last = read_ledger(str(path))
    assert [line["kind"] for line in lines] == ["start"] + ["step"] * 5
    assert (problem, last) == (None, ledger.last)


def damage(raw: list[bytes], number: int, line: bytes | None) -> list[bytes]:
    """Replace (or remove) a line, counted from 1."""
    return raw[: number - 1] + ([] if line is None else [line]) + raw[number:]


@pytest.mark.parametrize(
    ("make", "whole", "problem"),
    [
        (lambda raw: damage(raw, 3, raw[2].replace(b"0x1.", b"0x3.")), 2, "line 3 was changed, or lines after it"),
        (lambda raw: damage(raw, 3, raw[2].replace(b"0x1.", b"0x1. ")), 2, "line 3 was changed, or lines after it"),
        (lambda raw: damage(raw, 4, None), 2, "line 3 was changed, or lines after it were removed"),
        (lambda raw: damage(raw, 1, None), 0, "its first lines were removed"),
        (lambda raw: [raw[0], raw[2], raw[1], *raw[3:]], 0, "line 1 was changed, or lines after it were removed"),
        (lambda raw: [*raw[:3], raw[2], *raw[3:]], 2, "line 3 was changed, or lines after it were removed"),
        (lambda raw: [*raw[:-1], raw[-1][:-1]], 5, "line 6 is cut off"),
        (lambda raw: [*raw[:-1], raw[-1][:20]], 5, "line 6 is cut off"),
        (lambda raw: damage(raw, 4, b"\n"), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 4, b"\xff\xfe{}\n"), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 4, b"[1]\n"), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 4, b'{"kind":"step"}\n'), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 4, b"[" * 100_000 + b"\n"), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 4, b"9" * 5000 + b"\n"), 3, "line 4 is not a record"),
        (lambda raw: damage(raw, 2, raw[1][:30]), 1, "line 2 is not a record"),  # cut, with lines after it
        (lambda raw: [*raw, b"\x00" * 4096], 6, "line 7 is cut off"),  # as some file systems leave it
        (lambda raw: [], 0, "it is empty"),
    ],
)
def test_damage_is_reported_and_earlier_lines_are_kept(path, make, whole, problem):
    written(path)
    sound = read_ledger(path)
    path.write_bytes(b"".join(make(path.read_bytes().splitlines(keepends=True))))
    lines, reported, last = read_ledger(path)
    assert lines == sound.lines[:whole]
    assert reported is not None
    assert reported.startswith(problem)
    assert last == (sound.lines[whole]["prev"] if whole < len(sound.lines) else sound.last)


def test_a_change_of_the_last_line_changes_only_its_digest(path):
    ledger = written(path)
    path.write_bytes(path.read_bytes().replace(b'"batch":4', b'"batch":9'))
    assert read_ledger(path).problem is None
    assert read_ledger(path).last != ledger.last


def test_every_cut_is_detected_or_leaves_complete_lines(path):
    written(path, steps=2)
    whole = path.read_bytes()
    ends = {at + 1 for at, byte in enumerate(whole) if byte == 10}
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        lines, problem, _ = read_ledger(path)
        assert (problem is None) == (size in ends)
        assert len(lines) == sum(end <= size for end in ends)


def test_an_unreadable_file_is_reported_without_an_error(tmp_path):
    assert read_ledger(tmp_path / "missing").problem == "it cannot be read (No such file or directory)"
    assert read_ledger(tmp_path).problem == "it cannot be read (Is a directory)"
    assert read_ledger(tmp_path / "missing").lines == []


def test_each_kind_of_line_has_its_fields():
    lines = [
        {"kind": "start", "prev": "", "run": "a", "weights": "b", "world_size": 1},
        {"kind": "step", "prev": "", "epoch": 0, "batch": 0, "step": 1, "ids": None, "inputs": None, "loss": None,
         "lr": "0x1p-1"},
        {"kind": "weights", "prev": "", "step": 1, "weights": "a", "buffers": "b"},
        {"kind": "val", "prev": "", "epoch": 0, "step": 1, "metrics": {"val/loss": "0x1p+0"}},
        {"kind": "epoch", "prev": "", "epoch": 0, "step": 1, "metrics": {}, "weights": "a", "buffers": "b",
         "optimizer": "c", "averaged": None},
        {"kind": "head", "prev": "", "features": "a", "penalty": "0x1p-3", "losses": {"0.1": "0x1p+0"}, "weights": "b",
         "metrics": {}},
        {"kind": "choice", "prev": "", "step": 1, "epochs": [0, 2], "metrics": {}, "tried": {"0+2": {}}},
        {"kind": "dropped", "prev": "", "split": "train", "epoch": 0, "batch": 0, "step": 1, "ids": ["a"], "by": ["b"]},
        {"kind": "gap", "prev": "", "step": 1, "reason": "why"},
        {"kind": "end", "prev": "", "step": 1},
    ]  # fmt: skip
    assert malformed(lines, 1) is None
    assert {line["kind"] for line in lines} == set(FIELDS[1])
    for number, line in enumerate(lines):
        for wrong in ({**line, "note": 1}, {**line, "kind": "other"}, {**line, "step": True}):
            assert malformed([*lines[:number], wrong], 1)[0] == number
        for name in FIELDS[1][line["kind"]]:
            assert f"lacks the field `{name}`" in malformed([{k: v for k, v in line.items() if k != name}], 1)[1]
    assert malformed([{**lines[3], "metrics": {"val/loss": 0.5}}], 1) is not None
    assert malformed([{"kind": "new"}], 2) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"step":1', b'"step":1,"step":1'),
        lambda raw: raw.replace(b'"step":1', b'"step": 1'),
        lambda raw: raw.replace(b'"kind"', b'"k\\u0069nd"'),
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b"1}", b"1.0}").replace(b"1.0}", b"1.00}"),
    ],
    ids=["a field twice", "a space", "an escape", "a space in front", "another number"],
)
def test_a_line_in_another_form_is_no_record(tmp_path, change):
    """Readers would see one of two fields of a name, and no chain protects the last line."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add("end", step=1)
    ledger.flush()
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    assert path.read_bytes() != raw
    assert read_ledger(path).problem == "line 1 is not a record"


def test_the_end_may_name_evidence_and_nothing_else():
    end = {"kind": "end", "prev": "", "step": 6}
    assert malformed([end], 1) is None
    assert malformed([{**end, "evidence": "ab"}], 1) is None
    assert malformed([{**end, "evidence": 1}], 1) == (0, "line 1 has a field `evidence` of another type")
