"""Train a semantic segmenter, test it, and write label images for new images.

    python examples/segment_images.py path/to/data path/to/new/images

The data can be images with mask images (by index, palette or color), or Cityscapes. Without a path, the program
generates a small data set first.
"""

import sys
import tempfile
from pathlib import Path

from torchvision.io import write_png

import autotimm
from autotimm.data.toy import draw_objects, write_toy_segmentation


def main(data: Path, new: Path, out: Path, **options) -> None:
    run = autotimm.fit(data, task="segmentation", out=out, test_split=0.2, **options)
    print("test:", {name: round(value, 3) for name, value in run.test().items()})
    (run.path / "labels").mkdir()
    for image in run.predict(new):
        (run.path / "labels" / f"{Path(image.id).stem}.png").write_bytes(image.png)
        shares = ", ".join(f"{name} {image.scores[name]:.0%}" for name in image.labels)
        print(f"{image.id}: {shares}; classes {sorted(set(image.mask().flatten().tolist()))}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        data, new = map(Path, sys.argv[1:])
        main(data, new, Path("runs"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": 60, "val": 8}
            scenes = write_toy_segmentation(Path(folder, "scenes"), splits=splits, image_size=64)
            new = Path(folder, "new")
            new.mkdir()
            for number in range(3):
                write_png(draw_objects(f"new/{number}", size=64).image, str(new / f"{number}.png"))
            small = {"backbone": "test_resnet", "width": 64, "image_size": 64, "epochs": 8, "lr": 3e-3}
            main(scenes, new, Path(folder, "runs"), **small, num_workers=0, threads=1)
