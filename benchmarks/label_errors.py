"""Planted label errors that `autotimm inspect --run` finds by the predictions of folds.

Of a folder of class folders, a share of the images is moved to a wrong class, drawn from a seed. A run with folds is
trained on what results, and its list of probable label errors is compared with the images that were moved.

    python benchmarks/label_errors.py [--quick] [--data CLASS_FOLDERS] [--weights FILE]
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from _bench import PHOTOS, WEIGHTS, arguments, data_folder, report
from _drawn import draw_classes

import autotimm

SHARE, SEED = 0.05, 1


def plant(source: Path, folder: Path) -> set[str]:
    """Copy class folders with a share of the images in another class, and return the names of those."""
    paths = sorted(path for path in source.glob("*/*") if path.is_file())
    names = sorted({path.parent.name for path in paths})
    rng, moved = random.Random(SEED), set()
    chosen = set(rng.sample(range(len(paths)), round(SHARE * len(paths))))
    for at, path in enumerate(paths):
        label = path.parent.name
        if at in chosen:
            label = rng.choice([name for name in names if name != label])
        place = folder / label / f"{at:05d}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if at in chosen:
            moved.add(place.name)
    return moved


def main() -> None:
    """Print how many images were moved, how many are listed, and precision and recall of the list."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of a folder per class")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="pretrained weights of the backbone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    options: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "pretrained": str(given.weights), "image_size": 160}
    options |= {"folds": 5, "recipe": "probe"}
    if given.quick:
        options |= {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "folds": 2, "epochs": 1}
        options |= {"recipe": "plain"}  # without pretrained weights there is nothing to probe
    with (
        data_folder(given, PHOTOS / "cls_sign_digits" / "Dataset", draw_classes) as source,
        tempfile.TemporaryDirectory() as scratch,
    ):
        data = Path(scratch) / "data"
        moved = plant(source, data)
        run = autotimm.fit(data, out=f"{scratch}/runs", num_workers=0, threads=given.threads, progress=False, **options)
        findings = autotimm.inspect_data(data, run=run.path, image_size=options["image_size"]).findings
        cases = [case for finding in findings if finding.check == "label_errors" for case in finding.cases]
        listed = {Path(case.id).name for case in cases}
        found = len(listed & moved)
        mean, std = (run.folds[name]["val/accuracy"] for name in ("mean", "std"))
        columns = ("images", "out-of-fold accuracy", "moved", "listed", "of them moved", "precision", "recall")
        precision, recall = (f"{found / max(len(names), 1):.2f}" for names in (listed, moved))
        row = (len(run.evidence()), f"{mean:.3f} ± {std:.3f}", len(moved), len(listed), found, precision, recall)
        report("label_errors", columns, [row], share=SHARE, seed=SEED)


if __name__ == "__main__":
    main()
