"""Cross-validate on a folder of images, and look at the training images that the folds get most wrong.

    python examples/cross_validate.py path/to/photos

Each image is predicted by a network that has not seen it. Images of one patient or one video belong into the same
fold: give `group`, here the letter before the first underscore of a file's name. Without a path, the program generates
a small data set first.
"""

import sys
import tempfile
from pathlib import Path

import autotimm
from autotimm.data.toy import write_toy_folder


def main(photos: Path, out: Path, **options) -> None:
    run = autotimm.fit(photos, out=out, **options)
    for name in ("fold-1", "fold-2", "mean", "std"):
        print(name, {metric: round(value, 3) for metric, value in run.folds[name].items()})

    evidence = run.evidence()
    order = evidence["losses"].argsort()[::-1]
    print("least expected:", [evidence.ids[index] for index in order[:3]])

    print("the model of all images is in", run.path.name, "and each fold can be verified:")
    print(autotimm.Run(run.path / "fold-1").verify())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), Path("runs"), folds=5)
    else:
        with tempfile.TemporaryDirectory() as folder:
            photos = write_toy_folder(Path(folder, "photos"), n=36, num_classes=3, image_size=32, seed=0)
            for number, path in enumerate(sorted(photos.rglob("*.png"))):
                path.rename(path.with_name(f"{'abcdefghij'[number % 10]}_{number}.png"))
            small = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "epochs": 2, "num_workers": 0}
            main(photos, Path(folder, "runs"), folds=2, group="/([a-z])_", **small)
