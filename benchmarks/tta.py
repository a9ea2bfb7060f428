"""Whether looking at images more than once helps: ``predict --tta flip`` and ``multiscale`` beside one look.

Each network begins with ImageNet weights and is trained for a few epochs by ``autotimm.fit``; its best epoch then sees
the same test images once, in two views and in three:

- ``clothing`` and ``digits``: accuracy of the small sets of ``_small_sets.py``; digits are shown by hands;
- ``boxes``: `det_bccd_voc`, blood cells, FCOS, mAP of the test images, all scores counted as ``autotimm test`` does;
- ``pixels``: `seg_dhcn`, rooms of a building, FPN, mIoU of the test images.

Metrics are those of ``autotimm test --tta``. The gain is given with each seed, since a few test images say little.
Results are written line by line to ``--out``; a second call with the same file goes on from there.

    python benchmarks/tta.py [--quick] [--sets clothing boxes] [--seeds 0 1 2] [--epochs 10] [--out FILE]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from _bench import PHOTOS, WEIGHTS, Outcome, arguments, data_folder, done_lines, keep_line, median, report
from _drawn import draw_dense
from _small_sets import SETS, deal, write_tables
from safetensors.torch import save_file

import autotimm
from autotimm.constants import VIEWS
from autotimm.data import DataModule
from autotimm.tasks.views import looking, views_of
from autotimm.types import Batch, Stage

BACKBONE = "tf_efficientnet_lite0"
LOOKS = ("once", *VIEWS)
DENSE = {"boxes": "det_bccd_voc", "pixels": "seg_dhcn"}
MEASURED = {"boxes": "mAP", "pixels": "mIoU"}
NAMES = ("clothing", "digits", *DENSE)


def fitted(name: str, root: Path, seed: int, options: Any, folder: Path) -> autotimm.Run:
    """Train a network from ImageNet weights."""
    own: dict[str, Any]
    if name in DENSE:
        own = {"path": root / DENSE[name], "image_size": options.dense_size, "batch_size": 8, "width": 64}
    else:
        chosen = SETS[name](root, folder)
        if options.quick:
            chosen = chosen._replace(train=24, val=12, test=deal(chosen.test, (24,), "quick")[0])
        tables = write_tables(chosen.drawn(seed), chosen.columns, folder)
        own = {f"{split}_csv": table for split, table in tables.items()}
        own |= {"image_dir": "/", "image_column": "image", "label_column": chosen.columns,
                "image_size": options.image_size, "batch_size": 16}  # fmt: skip
    return autotimm.fit(
        **own, backbone=BACKBONE, pretrained=str(options.weights), epochs=options.epochs, seed=seed, num_workers=0,
        threads=options.threads, cache="ram", out=str(folder / "runs"), progress=False,
    )  # fmt: skip


def measured(task: Any, data: DataModule, look: str, name: str) -> dict[str, float]:
    """The test metric of one way to look at images, and the CPU seconds that it took."""
    task.eval()
    start = time.process_time()
    with looking(task, () if look == "once" else views_of(look, data.spec.image_size)), torch.inference_mode():
        batches = map(Batch.of, data.test_dataloader())
        found = task.measure(((batch, task.step(batch, Stage.TEST)) for batch in batches), Stage.TEST)
    return {"score": found[f"test/{name}"], "cpu_seconds": round(time.process_time() - start, 2)}


def results(options: Any, root: Path) -> list[dict[str, Any]]:
    """Train everything that is not in the file yet; seed by seed, so that an interrupted call has whole ones."""
    lines = done_lines(options.out)
    done = {(line["set"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for name in (name for name in options.sets if (name, seed) not in done):
            with tempfile.TemporaryDirectory() as folder:
                run = fitted(name, root, seed, options, Path(folder))
                task, data = run.model("best"), run.data()
                data.setup("test")
                metric = MEASURED.get(name, "accuracy")
                line: dict[str, Any] = {"set": name, "seed": seed}
                line |= {look: measured(task, data, look, metric) for look in LOOKS}
                for look in LOOKS:
                    tested = run.test(tta=None if look == "once" else look)
                    assert abs(line[look]["score"] - tested[f"test/{metric}"]) < 1e-6, "a look is what `test` measures"
            line |= {"images": len(data.tables["test"]), "load": round(os.getloadavg()[0], 1)}
            lines.append(line)
            print(json.dumps(line), file=sys.stderr)
            keep_line(line, options.out)
    return lines


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=(*NAMES, "shapes"), default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help=f"weights of {BACKBONE}, as safetensors")
    parser.add_argument("--image-size", type=int, default=96, help="of the small sets")
    parser.add_argument("--dense-size", type=int, default=192, help="of boxes and pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with data_folder(options, PHOTOS, draw_dense) as root, tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.sets, options.seeds, options.epochs = ["shapes", *DENSE], [0], 1
            options.image_size, options.dense_size = 64, 96  # of which 3/4 are more than a pixel of the coarsest map
            options.weights = Path(scratch) / "random.safetensors"
            save_file(timm.create_model(BACKBONE).state_dict(), options.weights)
        lines = results(options, root.resolve())
    rows = []
    for name in options.sets:
        of_set = [line for line in lines if line["set"] == name]
        once = [line["once"] for line in of_set]
        for look in LOOKS:
            found = [line[look] for line in of_set]
            gains = [100 * (ours["score"] - theirs["score"]) for ours, theirs in zip(found, once, strict=True)]
            cost = median(ours["cpu_seconds"] / theirs["cpu_seconds"] for ours, theirs in zip(found, once, strict=True))
            outcome = Outcome([100 * each["score"] for each in found], 0)
            gained = (
                "" if look == "once" else f"{sum(gains) / len(gains):+.1f} ({', '.join(f'{g:+.1f}' for g in gains)})"
            )
            rows.append((name, MEASURED.get(name, "accuracy"), look, f"{outcome.mean:.1f} ± {outcome.std:.1f}",
                         "" if look == "once" else gained, f"{cost:.1f}"))  # fmt: skip
    columns = ("set", "measured", "tta", "test score, %", "gain (of each seed)", "times the CPU seconds")
    report("tta", columns, rows, backbone=BACKBONE, epochs=options.epochs, lines=lines)


if __name__ == "__main__":
    main()
