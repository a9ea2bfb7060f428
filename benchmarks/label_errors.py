"""Planted label errors that `autotimm inspect --run` finds by the predictions of folds.

Of a folder of class folders, a share of the images is moved to a wrong class, drawn from a seed. A run with folds is
trained on what results, and its list of probable label errors is compared with the images that were moved.

    python benchmarks/label_errors.py CLASS_FOLDERS WEIGHTS_FILE
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

import autotimm

SHARE, SEED = 0.05, 1
OPTIONS = {"backbone": "tf_efficientnet_lite0", "image_size": 160, "folds": 5, "recipe": "probe", "progress": False}


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
    source, weights = map(Path, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        moved = plant(source, data)
        run = autotimm.fit(data, pretrained=str(weights), out=f"{scratch}/runs", **OPTIONS)
        findings = autotimm.inspect_data(data, run=run.path, image_size=160).findings
        cases = [case for finding in findings if finding.check == "label_errors" for case in finding.cases]
        listed = {Path(case.id).name for case in cases}
        found = len(listed & moved)
        accuracy = run.folds["mean"]["val/accuracy"], run.folds["std"]["val/accuracy"]
        print(f"{len(run.evidence())} images, out-of-fold accuracy {accuracy[0]:.3f} ± {accuracy[1]:.3f}")
        print(f"{len(moved)} moved, {len(listed)} listed, {found} of them moved")
        print(f"precision {found / max(len(listed), 1):.2f}, recall {found / len(moved):.2f}")


if __name__ == "__main__":
    main()
