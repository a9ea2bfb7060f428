"""Train a classifier on one folder of images per class, test it, and predict.

    python examples/train_folder.py path/to/photos

Without a path, the program generates a small data set first.
"""

import sys
import tempfile
from pathlib import Path

import autotimm
from autotimm.data.toy import write_toy_folder


def main(photos: Path, out: Path, **options) -> None:
    run = autotimm.fit(photos, out=out, test_split=0.2, **options)
    print("test:", {name: round(value, 3) for name, value in run.test().items()})
    for prediction in run.predict(photos)[:3]:
        label = prediction.labels[0]
        print(f"{prediction.id}: {label} ({prediction.scores[label]:.0%})")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), Path("runs"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_toy_folder(Path(folder, "photos"), n=96, num_classes=3, image_size=32, seed=0)
            small = {"backbone": "test_resnet", "image_size": 32, "epochs": 3, "num_workers": 0}
            main(Path(folder, "photos"), Path(folder, "runs"), **small)
