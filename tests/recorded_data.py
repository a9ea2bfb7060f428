"""The toy data that the runs in `fixtures/runs/v1` were made with, drawn again from its seed.

Only here do the tests of these runs import a module below `autotimm.data`: the writers of scenes are not public
elsewhere.
"""

from pathlib import Path

from PIL import Image

from autotimm.data import write_toy_folder

LABELS = ("color", "shape")
_SPLITS = {"train": 24, "val": 6, "test": 6}
_FEW = {"train": 12, "val": 2, "test": 2}


def draw(case: str, folder: Path) -> None:
    """Write the data of a case as `images`, and the tables beside it, into a folder."""
    from autotimm.data.toy import write_toy_objects, write_toy_segmentation

    images = folder / "images"
    if case in ("detection", "instance"):
        write_toy_objects(images, splits=_FEW, image_size=64, num_classes=2, seed=11)
    elif case == "segmentation":
        write_toy_segmentation(images, splits=_FEW, image_size=64, num_classes=2, seed=11)
    else:
        write_toy_folder(images, splits=_SPLITS, image_size=32, num_classes=3, seed=11)
    _uncompress(images)
    if case == "multi_label":
        _write_tables(folder, images)


def _uncompress(images: Path) -> None:
    """Replace PNG by BMP: a run knows files by their bytes, and compressed ones depend on the release of Pillow."""
    for path in sorted(images.rglob("*.png")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
    for path in images.rglob("*.json"):
        path.write_text(path.read_text().replace(".png", ".bmp"))


def _write_tables(folder: Path, images: Path) -> None:
    """Write a table per split: two labels that may both be right, or none."""
    for split in _SPLITS:
        rows = []
        for path in sorted((images / split).rglob("*.bmp")):
            number = int(path.stem) % 3
            rows.append(f"{path.relative_to(images).as_posix()},{int(number > 0)},{int(number > 1)}")
        (folder / f"{split}.csv").write_text("\n".join([f"image,{','.join(LABELS)}", *rows]) + "\n")
