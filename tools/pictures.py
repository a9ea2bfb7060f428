"""Draw the pictures of the documentation again: what the demos of the three dense tasks find on scenes they never saw.

    python tools/pictures.py [TASK ...]

Each takes two to four minutes, since it trains for longer than the demo does; the same seed gives the same picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = {"detection": 9, "segmentation": 8, "instance": 6}
SHOWN, GAP = (1, 4, 7), 8  # scenes with several classes


def strip(paths: list[Path]) -> Image.Image:
    """Pictures of one size side by side."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width, height = pictures[0].size
    whole = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place * (width + GAP), 0))
    return whole


def main(tasks: list[str]) -> None:
    """Run the demos and keep their first pictures."""
    for task in tasks or EPOCHS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "autotimm", "demo", "--task", task, "--out", folder, "--epochs"]
            subprocess.run([*command, str(EPOCHS[task])], check=True)
            found = sorted((Path(folder) / "pictures").glob("*.png"))
            target = ROOT / "docs" / "images" / f"{task}.jpg"
            target.parent.mkdir(exist_ok=True)
            strip([found[number] for number in SHOWN]).save(target, quality=85, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
