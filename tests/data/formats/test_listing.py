"""The listing of a folder: order, links, and that each directory is read once, however many formats look at it."""

import json
from pathlib import Path

import pytest

from autotimm.data.formats.listing import Listing
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError
from warm import run

# Counts the directory listings below some folders that whole trainings ask the system for.
COUNT = """
import collections, json, os, sys

counts = collections.Counter()


def count(event, arguments):
    if event in ("os.scandir", "os.listdir"):
        counts[os.path.realpath(os.curdir if arguments[0] is None else arguments[0])] += 1


sys.addaudithook(count)

import autotimm

for root, options in json.loads(sys.argv[1]):
    counts.clear()
    autotimm.fit(root, **options, backbone="test_resnet", pretrained=False, image_size=32, batch_size=4, epochs=1,
                 num_workers=0, threads=1, accelerator="cpu", progress=False, out=sys.argv[2])
    print(json.dumps(counts))
"""


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def names(listing: Listing) -> list[str]:
    return [image.name for image in listing.images_below()]


def test_names_come_in_byte_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "B.png", "é.png", "a/2.JPG", "a/10.jpg", ".a.png", ".b/1.png", "note.md"):
        write(tmp_path / name)
    listing = Listing(tmp_path)
    assert names(listing) == ["B.png", "a/10.jpg", "a/2.JPG", "b.png", "é.png"]
    assert [path.name for path in listing.files(tmp_path)] == ["B.png", "b.png", "note.md", "é.png"]
    assert listing.folders(tmp_path) == [tmp_path / "a"]


def test_files_by_suffix_and_depth(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("1.xml", "a/2.XML", "a/b/3.xml", "a/b/c/4.xml", "a/b/c/d/5.xml")]
    write(tmp_path / "x.json")
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path)
    listing = Listing(tmp_path)
    assert listing.files_below((".xml",)) == paths[:4]
    assert listing.files_below((".xml",), depth=1) == paths[:2]
    assert listing.files_below((".json", ".xml"), depth=0) == [paths[0], tmp_path / "x.json"]


def test_links_never_list_a_file_twice(tmp_path: Path) -> None:
    write(tmp_path / "real" / "1.png")
    away = write(tmp_path / "away" / "2.png")
    data = tmp_path / "data"
    (tmp_path / "real").rename(data)
    (data / "again.png").symlink_to(data / "1.png")
    (data / "loop").symlink_to(data)
    (data / "linked").symlink_to(away.parent)
    search = Listing(data).search_images([data])
    assert [image.name for image in search.images[0]] == ["1.png", "linked/2.png"]
    assert search.links == ["loop", "again.png"]


def test_a_listing_is_a_snapshot(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png")
    listing = Listing(tmp_path)
    assert names(listing) == ["a/1.png"]
    write(tmp_path / "a" / "2.png")
    assert names(listing) == [image.name for image in listing.search_images([tmp_path]).images[0]] == ["a/1.png"]
    assert names(Listing(tmp_path)) == ["a/1.png", "a/2.png"]


def test_the_root_is_below_folders_that_hold_a_single_one(tmp_path: Path) -> None:
    write(tmp_path / "archive" / "data" / "images" / "1.png")
    write(tmp_path / "archive" / "README.md")
    write(tmp_path / "archive" / "data" / "labels" / "1.txt")
    assert Listing(tmp_path).root == tmp_path / "archive" / "data"
    assert Listing(tmp_path / "archive" / "data" / "labels" / "1.txt").base == tmp_path / "archive" / "data" / "labels"
    with pytest.raises(DataError, match="There is no folder"):
        _ = Listing(tmp_path / "nowhere").root


def test_a_fit_lists_each_folder_once(tmp_path: Path) -> None:
    sizes = {"splits": {"train": 8, "val": 4}, "image_size": 48, "num_classes": 2}
    objects = write_toy_objects(tmp_path / "objects", **sizes)
    regions = write_toy_segmentation(tmp_path / "regions", **sizes)
    classes = write_toy_folder(tmp_path / "classes", **sizes)
    narrow = {"width": 64}
    fits = [(str(objects), {**narrow, "task": "auto"}), (str(objects), {**narrow, "task": "detection"}),
            (str(regions), {**narrow, "task": "auto"}), (str(classes), {"task": "auto"})]  # fmt: skip
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = run(["-c", COUNT, json.dumps(fits), tmp_path / "runs"], env=cache)  # its hook cannot be taken back
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    for (root, _), counts in zip(fits, lines, strict=True):
        folders = [path for path in (Path(root), *Path(root).rglob("*")) if path.is_dir()]
        assert {str(folder): counts.get(str(folder.resolve())) for folder in folders} == dict.fromkeys(
            map(str, folders), 1
        )
