"""What the page of a run costs: its share of the CPU time of a training, and how long a page of 1,000 images takes.

Each task is trained by ``autotimm.fit`` on real photographs, from random weights, for a few epochs and with small
images. A training of the usual length and size takes longer and its page does not, so that the shares are upper
bounds. The CPU seconds of all threads are counted, those of the page inside of ``fit``, with the import of what makes
pages. A second page is made by ``Run.report``.

The page of 1,000 validation images is that of a network which was trained for one epoch; all of them are copies of the
72 validation photographs of `cls_clothing`.

Target: under 3 % of a run's time, and under 5 MB.

    python benchmarks/report_share.py [--quick] [--sets classes boxes masks pixels 1000] [--data FOLDER] [--out FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from _bench import PHOTOS, arguments, data_folder, done_lines, keep_line, report
from _drawn import draw_dense, draw_photos

import autotimm
from autotimm.runs import fit as fitting

COLUMNS = ("set", "validation images", "epochs", "px", "run, CPU s", "its page, CPU s", "share, %",
           "page again, CPU s", "MB")  # fmt: skip
SETS: dict[str, dict[str, Any]] = {
    "classes": {"path": "cls_clothing", "image_size": 128, "epochs": 4},
    "boxes": {"path": "det_bccd_voc", "task": "detection", "image_size": 192, "epochs": 1, "width": 64, "lr": 5e-4},
    "masks": {"path": "inst_nuts_coco", "task": "instance", "image_size": 256, "epochs": 4, "width": 64,
              "batch_size": 2, "lr": 2.5e-4},
    "pixels": {"path": "seg_dhcn", "task": "segmentation", "image_size": 128, "epochs": 4, "width": 64},
}  # fmt: skip
MANY = "1000"


def many(root: Path, folder: Path, count: int) -> dict[str, Any]:
    """A folder with few images to learn from, and many to validate on."""
    photos = sorted((root / "cls_clothing" / "validation").glob("*/*.jpg"))
    for split, number in (("train", len(photos)), ("val", count)):
        for place, photo in enumerate(islice(cycle(photos), number)):
            (folder / split / photo.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / split / photo.parent.name / f"{place:04d}.jpg")
    return {"path": folder, "image_size": 64, "epochs": 1}


def measured(own: dict[str, Any], options: Any, scratch: Path) -> dict[str, Any]:
    """Train, and time the page."""
    took, made = [], fitting.leave_report

    def timed(*given: Any) -> None:
        start = time.process_time()
        made(*given)
        took.append(time.process_time() - start)

    fitting.leave_report = timed
    start = time.process_time()
    try:
        run = autotimm.fit(
            **own, backbone="test_resnet" if options.quick else "resnet18", pretrained=False, num_workers=0,
            threads=options.threads, out=str(scratch / "runs"), progress=False,
        )  # fmt: skip
    finally:
        fitting.leave_report = made
    whole = time.process_time() - start
    start = time.process_time()
    page = run.report().path
    return {
        "images": len(run.evidence()), "epochs": own["epochs"], "px": own["image_size"], "run": round(whole, 2),
        "page": round(took[0], 3), "again": round(time.process_time() - start, 3), "bytes": page.stat().st_size,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=(*SETS, MANY), default=[*SETS, MANY])
    parser.add_argument("--data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = done_lines(options.out)

    def draw(root: Path) -> None:
        draw_dense(root)
        draw_photos(root)

    with data_folder(options, PHOTOS, draw) as root:
        for name in (name for name in options.sets if name not in [line["set"] for line in lines]):
            with tempfile.TemporaryDirectory() as scratch:
                if name == MANY:
                    own = many(root, Path(scratch) / "many", 50 if options.quick else int(MANY))
                else:
                    own = {**SETS[name], "path": root.resolve() / SETS[name]["path"]}
                own |= {"epochs": 1, "image_size": 64} if options.quick else {}
                lines.append({"set": name, **measured(own, options, Path(scratch))})
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
            keep_line(lines[-1], options.out)
    rows = [
        (line["set"], line["images"], line["epochs"], line["px"], f"{line['run']:.1f}", f"{line['page']:.2f}",
         f"{100 * line['page'] / line['run']:.1f}", f"{line['again']:.2f}", f"{line['bytes'] / 1e6:.2f}")
        for line in lines
    ]  # fmt: skip
    report("report_share", COLUMNS, rows, threads=options.threads, lines=lines)


if __name__ == "__main__":
    main()
