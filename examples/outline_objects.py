"""Train Mask R-CNN for instance segmentation, test it, and measure objects in new images.

    python examples/outline_objects.py path/to/data path/to/new/images

The data can be a COCO file with polygons or run lengths, polygons in YOLO format, or one mask image per object. Without
a path, the program generates a small data set first.
"""

import sys
import tempfile
from pathlib import Path

import autotimm
from autotimm.data.toy import write_toy_objects


def main(data: Path, new: Path, out: Path, **options) -> None:
    run = autotimm.fit(data, task="instance", out=out, test_split=0.2, **options)
    print("test:", {name: round(value, 3) for name, value in run.test().items()})
    for image in run.predict(new)[:3]:
        print(f"{image.id}: {len(image.labels)} objects")
        for index, (label, score) in enumerate(zip(image.labels, image.scores, strict=True)):
            print(f"  {label} ({score:.0%}), {int(image.mask(index).sum())} pixels")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        data, new = map(Path, sys.argv[1:])
        main(data, new, Path("runs"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            scenes = write_toy_objects(Path(folder, "scenes"), splits={"train": 60, "val": 8}, image_size=64)
            small = {"backbone": "test_resnet", "width": 64, "image_size": 64, "epochs": 6}
            main(scenes, scenes / "val", Path(folder, "runs"), **small, num_workers=0, threads=1)
