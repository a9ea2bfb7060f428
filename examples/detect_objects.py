"""Train a detector, test it, and detect objects in new images.

    python examples/detect_objects.py path/to/data path/to/new/images

The data can be in COCO, VOC or YOLO format, or a table of boxes; the format is detected. Without a path, the program
generates a small data set first.
"""

import sys
import tempfile
from pathlib import Path

import autotimm
from autotimm.data.toy import write_toy_objects


def main(data: Path, new: Path, out: Path, **options) -> None:
    # Without `task`, data with polygons would be used for instance segmentation.
    run = autotimm.fit(data, task="detection", out=out, test_split=0.2, **options)
    print("test:", {name: round(value, 3) for name, value in run.test().items()})
    for image in run.predict(new)[:3]:
        print(f"{image.id}: {len(image.labels)} objects")
        for label, score, box in zip(image.labels, image.scores, image.boxes, strict=True):
            print(f"  {label} ({score:.0%}) at", ", ".join(f"{edge:.0f}" for edge in box))  # left, top, right, bottom


if __name__ == "__main__":
    if len(sys.argv) > 1:
        data, new = map(Path, sys.argv[1:])
        main(data, new, Path("runs"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            scenes = write_toy_objects(Path(folder, "scenes"), splits={"train": 60, "val": 8}, image_size=64)
            small = {"backbone": "test_resnet", "width": 64, "image_size": 64, "epochs": 6}
            main(scenes, scenes / "val", Path(folder, "runs"), **small, num_workers=0, threads=1)
