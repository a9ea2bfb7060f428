"""The cache of facts in pages: what is kept is found, whatever the order, the sizes and the neighbours."""

import os
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from autotimm.data import fact_pages
from autotimm.data.fact_pages import FACT, FactPages, Known
from autotimm.data.file_facts import FactStore, Stamp, absolute_paths, stamp_rows


def known_of(paths: list[bytes], version: int = 0, rules: str = "1") -> Known:
    """Facts that differ for each path and version."""
    facts = np.zeros(len(paths), FACT)
    facts["rules"] = 1
    for place, path in enumerate(paths):
        facts["size"][place] = (hash(path) % 1000, version)
    return Known(facts, ("", rules), {place: ("", path.decode()) for place, path in enumerate(paths) if b"7" in path})


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> FactPages:
    monkeypatch.setattr(fact_pages, "_MOST", 8)
    return FactPages("pages")


def test_what_is_kept_is_found_after_any_changes(pages: FactPages) -> None:
    rng, held = random.Random(0), dict[bytes, int]()
    names = [f"/data/{number:03d}.jpg".encode() for number in range(200)]
    for version in range(60):
        some = sorted(rng.sample(names, rng.choice((1, 3, 30))))
        if version % 5 == 4:
            pages.remove(some)
            held = {name: kept for name, kept in held.items() if name not in some}
        else:
            pages.keep(some, known_of(some, version, rules=str(version % 3)))
            held |= dict.fromkeys(some, version)
        asked = sorted(rng.sample(names, 50)) if version % 2 else names
        found = pages.find(asked)
        for place, name in enumerate(asked):
            fact = found.facts[place]
            assert (fact["rules"] > 0) == (name in held)
            if name in held:
                assert fact["size"].tolist() == [hash(name) % 1000, held[name]]
                assert found.rules[fact["rules"]] == str(held[name] % 3)
                assert found.notes.get(place) == (("", name.decode()) if b"7" in name else None)
    with sqlite3.connect(pages.file.path) as connection:
        sizes = [number for (number,) in connection.execute("select number from pages")]
    assert max(sizes) <= 8
    assert sum(sizes) == len(held)


def test_sorted_files_fill_pages_and_are_written_once(pages: FactPages) -> None:
    names = [f"/data/{number:03d}.jpg".encode() for number in range(64)]
    for start in range(0, 64, 16):
        pages.keep(names[start : start + 16], known_of(names[start : start + 16]))
    with sqlite3.connect(pages.file.path) as connection:
        assert list(connection.execute("select number from pages")) == [(8,)] * 8


def test_of_a_path_that_is_listed_twice_the_last_counts(pages: FactPages) -> None:
    names = [b"/a", b"/b", b"/b"]
    known = known_of(names)
    known.facts["size"][2] = (1, 2)
    pages.keep(names, known)
    assert pages.find([b"/b"]).facts["size"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "damage",
    [
        "update pages set facts = substr(facts, 2)",
        "update pages set paths = x'2f'",
        "update pages set more = '{}'",
        "update pages set more = '[1'",
        """update pages set more = '{"rules": [], "notes": {}}'""",
        "update pages set facts = 7",
    ],
)
def test_a_damaged_page_is_nothing_and_the_file_is_made_again(pages: FactPages, damage: str) -> None:
    names = [b"/a", b"/b"]
    pages.keep(names, known_of(names))
    with sqlite3.connect(pages.file.path) as connection:
        connection.execute(damage)
    assert not pages.find(names).facts["rules"].any()
    assert not pages.file.path.exists()
    pages.keep(names, known_of(names))
    assert pages.find(names).facts["rules"].all()


def test_the_table_of_earlier_versions_is_removed() -> None:
    FactStore("pages", "rules text").insert([(b"/a", 1, 2, 3, 4, 5, "1")])
    pages = FactPages("pages")
    assert not pages.find([b"/a"]).facts["rules"].any()
    with sqlite3.connect(pages.file.path) as connection:
        assert connection.execute("select name from sqlite_master where name = 'facts'").fetchall() == []


def _keep(start: int) -> None:
    pages = FactPages("pages")
    for number in range(start, 400, 4):
        pages.keep([f"/data/{number:03d}.jpg".encode()], known_of([f"/data/{number:03d}.jpg".encode()]))


def test_several_processes_write_at_once() -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(_keep, range(4)))
    names = [f"/data/{number:03d}.jpg".encode() for number in range(400)]
    assert FactPages("pages").find(names).facts["rules"].mean() > 0.9  # one that waits for a second goes without


PLAIN = ["a.jpg", "b/c.jpg", "b/é.jpg", "b/\udcff.jpg", ".hidden/a.jpg"]
ODD = ["./a.jpg", "b/../a.jpg", "b//c.jpg", "../x.jpg", "b/.", "..", "b/", "", ".a", "b/./c.jpg"]


@pytest.mark.parametrize("names", [PLAIN, ODD, PLAIN + ODD, ["a.jpg"], []])
@pytest.mark.parametrize("start", [str, os.path.abspath, lambda name: f"/{name}", lambda name: f"//x/{name}"])
def test_absolute_paths_are_those_of_stamps(names: list[str], start: Callable[[str], str]) -> None:
    names = [start(name) for name in names]
    expected = [b"" if name == "" else os.fsencode(os.path.abspath(name)) for name in names]
    found = absolute_paths(names)
    files = [place for place, name in enumerate(names) if os.path.basename(name) not in ("", ".", "..")]
    assert [found[place] for place in files] == [expected[place] for place in files]
    assert len(found) == len(names)


def test_names_that_no_file_can_have_have_no_path() -> None:
    assert absolute_paths(["/a", "/b\0c", "/\ud800"]) == [b"/a", b"", b""]


def test_rows_of_stamps_are_stamps(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    stamp = Stamp.of(path)
    assert stamp is not None
    names = [str(path), str(tmp_path / "none"), "\0"]
    assert stamp_rows(names).tolist() == [list(stamp[1:]), [0] * 5, [0] * 5]
