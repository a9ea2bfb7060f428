"""Files as people have them: turned, transparent, of 16 bits, damaged, badly named."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_messy_files(folder: Path) -> None:
    """Write one image of each kind that needs care, and files that must be left out."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((90, 60), Image.Resampling.BICUBIC)
    gray = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1)))
    (folder / "b" / "c").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.save(folder / "b" / "progressive.JPG", progressive=True)
    Image.fromarray(gray).save(folder / "deep.png")
    Image.fromarray(gray).save(folder / "deep transparent.png", transparency=int(gray[0, 0]))
    Image.fromarray(gray.astype(np.float32) / 65535).save(folder / "float.tiff")
    Image.merge("RGBA", (*rgb.split(), alpha)).save(folder / "b" / "alpha.png")
    Image.merge("LA", (rgb.convert("L"), alpha)).save(folder / "b" / "c" / "gray alpha.png")
    rgb.convert("P").save(folder / "palette.gif", transparency=3)
    rgb.convert("1").save(folder / "=bits.bmp")
    rgb.save(folder / 'very, "wide".webp', lossless=True)
    rgb.resize((300, 7)).save(folder / "strip.png")
    rgb.save(folder / ".hidden.png")
    (folder / "cut.png").write_bytes((folder / "strip.png").read_bytes()[:150])
    (folder / "letter.jpg").write_text("Dear all")
    (folder / "notes.txt").write_text("no image")
    (folder / "again.png").symlink_to("strip.png")
