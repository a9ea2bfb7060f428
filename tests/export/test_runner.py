"""The program beside an exported file: the rows of each task, and files that it reads as autotimm does."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm.data.image_io import read_rgb
from autotimm.export.runner import find, read, rows, walk, without_masks
from messy import write_messy_files

RULE = {"upright": True}


def meta(task: str, least: list[float] | None) -> dict[str, str]:
    return {"task": task, "class_names": '["cat", "dog", "owl"]', "thresholds": json.dumps(least)}


def test_labels_are_those_that_reach_their_thresholds() -> None:
    results = {"scores": np.array([[0.5, 0.125, 0.25]], np.float32)}
    ((label, values),) = rows(meta("labels", [0.75, 0.125, 0.25]), results, None)
    assert (label, values) == ("dog|owl", [0.5, 0.5, 0.125, 0.25])
    assert [label for label, _ in rows(meta("labels", [0.75, 0.125, 0.25]), results, 0.25)] == ["cat|owl"]
    assert [label for label, _ in rows(meta("labels", [0.75, 0.75, 0.75]), results, None)] == [""]
    assert [label for label, _ in rows(meta("classes", None), results, None)] == ["cat"]


def test_objects_have_a_row_each_from_the_threshold_on() -> None:
    boxes = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    scores = np.array([[0.875, 0.5, 0.25, 0.0]], np.float32)
    results = {"labels": np.array([[2, 0, 2, -1]]), "scores": scores, "boxes": boxes}
    found = list(rows(meta("boxes", [0.625, 0.5, 0.25]), results, None))
    assert found == [("owl", [0.875, 0, 1, 2, 3]), ("owl", [0.25, 8, 9, 10, 11])]  # the last one fills the table
    assert [label for label, _ in rows(meta("instances", [0.5] * 3), results, 0.125)] == ["owl", "cat", "owl"]


def test_pixels_are_shares_from_the_largest_on() -> None:
    labels = np.array([[[2, 2, 2], [2, 0, 0]]], np.uint8)
    ((label, values),) = rows(meta("pixels", None), {"labels": labels}, None)
    assert label == "owl|cat"
    assert values == pytest.approx([4 / 6, 2 / 6, 0, 4 / 6])


def test_masks_beside_their_images_are_no_images() -> None:
    names = ["a.jpg", "a_mask.png", "b-Masks.png", "c.png", "c masks.gif"]
    assert [*without_masks({name: f"x/{name}" for name in names})] == ["a.jpg", "b-Masks.png", "c.png"]


def test_files_are_found_once_and_those_of_tools_never(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.JPG", "a/@eaDir/1.png", "a/.b/1.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "0.png").symlink_to("1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert sorted(walk(str(tmp_path), set())) == [str(tmp_path / "a/1.png"), str(tmp_path / "a/2.JPG")]
    one = (tmp_path / "a" / "notes.txt").as_posix()
    assert find([one]) == {one: one}  # who names a file means it


def test_every_kind_of_image_has_the_pixels_that_autotimm_reads(tmp_path: Path) -> None:
    write_messy_files(tmp_path)
    wide = Image.fromarray(np.arange(48, dtype=np.int32).reshape(6, 8) * 2000)
    wide.save(tmp_path / "integers.tiff")
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / "color.png", transparency=(10, 20, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.radial_gradient("L").crop((0, 0, 90, 60)).save(tmp_path / "turned.tiff", exif=turned)
    files = [file for file in walk(str(tmp_path), set()) if Path(file).name not in ("cut.png", "letter.jpg")]
    assert len(files) == 15
    for file in files:
        for upright in (True, False):
            expected = np.asarray(read_rgb(file, upright)).transpose(2, 0, 1)[None]
            assert np.array_equal(read(file, {"upright": upright}), expected), (file, upright)


def test_images_are_refused_that_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4095)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(OSError, match="it has too many pixels"):
        read(str(tmp_path / "large.png"), RULE)
    with pytest.raises(OSError, match="it is no file"):
        read(str(tmp_path), RULE)
