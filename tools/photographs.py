"""Draw the picture of the README: what a classifier says of photographs that it never saw, one of each class.

    python tools/photographs.py RUN FOLDER

FOLDER has a folder per class. The first photographs by name are taken, right or wrong. The picture in docs/images was
drawn of the test side of the clothing data set (https://github.com/alexeygrigorev/clothing-dataset-small, CC0), six of
its classes with 46 photographs each to learn from, after

    autotimm fit clothing --backbone tf_efficientnet_lite0 --epochs 12 --batch-size 16
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

import autotimm

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "photographs.jpg"
SIDE, GAP, LINE = 200, 8, 52


def panel(photograph: Path, prediction: autotimm.Prediction) -> Image.Image:
    """A photograph with the likeliest classes and their scores below it."""
    whole = Image.new("RGB", (SIDE, SIDE + LINE), "white")
    whole.paste(ImageOps.fit(ImageOps.exif_transpose(Image.open(photograph)).convert("RGB"), (SIDE, SIDE)))
    draw = ImageDraw.Draw(whole)
    best = sorted(prediction.scores.items(), key=lambda item: -item[1])[:2]
    for row, ((name, score), size, color) in enumerate(zip(best, (18, 14), ("black", "dimgray"), strict=True)):
        draw.text((2, SIDE + 4 + 24 * row), f"{name} {score:.1%}", fill=color, font=ImageFont.load_default(size))
    return whole


def main(run: str, folder: str) -> None:
    """Predict and draw."""
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    photographs = [min(path for path in names.iterdir() if path.is_file()) for names in classes]
    predictions = [autotimm.Run(run).predict(photograph)[0] for photograph in photographs]
    panels = [panel(*pair) for pair in zip(photographs, predictions, strict=True)]
    whole = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + LINE), "white")
    for place, image in enumerate(panels):
        whole.paste(image, (place * (SIDE + GAP), 0))
    whole.save(TARGET, quality=85, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
