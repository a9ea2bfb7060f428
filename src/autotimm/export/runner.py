"""Predict images with the ONNX file beside this program.

    python predict.py photos/ --out predictions.csv

Written by ``autotimm export --with-runner``. It reads files as autotimm does and writes the rows of ``autotimm
predict``, but needs only numpy, Pillow and onnxruntime. Images that cannot be read are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile
from PIL import Image, ImageOps

# By content, whatever the extension. Not all that Pillow knows: for EPS it starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "PCX", "PSD",
           "QOI", "SGI", "TGA")  # fmt: skip
EXTENSIONS = ("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff",
              "webp")  # fmt: skip
OF_TOOLS = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "lost+found",
            "system volume information")  # fmt: skip
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError,
          MemoryError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip
UNDONE = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}  # fmt: skip
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def find(paths: Sequence[str]) -> dict[str, str]:
    """The image files below some paths, by the names that they have in the table."""
    found: dict[str, str] = {}
    for path in paths:
        name = as_text(Path(path).as_posix())
        files = sorted(walk(path, set()), key=os.fsencode) if os.path.isdir(path) else []
        found |= {f"{name}/{as_text(os.path.relpath(file, path).replace(os.sep, '/'))}": file for file in files}
        found |= {} if os.path.isdir(path) else {name: path}
    return found


def as_text(name: str) -> str:
    """A file name as valid text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(folder: str, seen: set[str]) -> Iterator[str]:
    """Image files to any depth, each under one name; real files and folders come before links to them."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    entries = [entry for entry in entries if entry.name.lower() not in OF_TOOLS]
    seen.add(os.path.realpath(folder))
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), os.fsencode(entry.name))):
        if (real := os.path.realpath(entry.path)) in seen:
            continue
        if entry.is_dir():
            yield from walk(entry.path, seen)
        elif os.path.splitext(entry.name)[1].lower()[1:] in EXTENSIONS:
            seen.add(real)
            yield entry.path


def without_masks(files: dict[str, str]) -> dict[str, str]:
    """Leave out masks beside their images, such as ``1_mask.png`` beside ``1.jpg``."""
    stems = {os.path.splitext(file)[0] for file in files.values()}
    images = {stem: re.sub(r"[-_ ]masks?$", "", stem, flags=re.IGNORECASE) for stem in stems}
    masks = {stem for stem, image in images.items() if image != stem and image in stems}
    return {name: file for name, file in files.items() if os.path.splitext(file)[0] not in masks}


def read(path: str, rule: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Decode a file to RGB ``uint8`` (1, 3, H, W), without transparency, by the model's rule of input."""
    if not os.path.isfile(path):
        raise OSError("it is no file")
    with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
        image: Any = file
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise OSError("it has too many pixels")
        turn = 1
        with contextlib.suppress(*BROKEN):
            turn = image.getexif().get(0x0112, 1) if image.format != "PNG" or "exif" in image.info else 1
        if rule.get("least") and image.format in ("JPEG", "MPO"):
            height, width = rule["least"][::-1] if rule["upright"] and turn in (5, 6, 7, 8) else rule["least"]
            image.draft(None, (width, height))
        if image.format == "TIFF":
            image.filename = ""  # Pillow 13 mixes up the rows of files that it maps into memory and turns
        image.load()
        with contextlib.suppress(*BROKEN):
            if rule["upright"]:
                ImageOps.exif_transpose(image, in_place=True)
            elif image.format == "TIFF" and turn in UNDONE:
                image = image.transpose(UNDONE[turn])  # those Pillow turns by itself
        return np.ascontiguousarray(np.asarray(to_rgb(image)).transpose(2, 0, 1)[None])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB."""
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        wide = np.nan_to_num(values.astype(np.float64), nan=0.0)
        wide = wide * (255.0 if wide.max() <= 1 else 1.0) if image.mode == "F" else np.clip(wide, 0, 65535) / 257
        gray = Image.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8))
        if isinstance(transparent, int):
            gray.paste(255, mask=Image.fromarray(values == transparent))
        return gray.convert("RGB")
    if image.mode not in ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # Pillow keeps the upper halves
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")


def rows(meta: dict[str, str], results: dict[str, Any], threshold: float | None) -> Iterator[tuple[str, list[Any]]]:
    """The label and the numbers of each line that the table has for an image."""
    names, least = json.loads(meta["class_names"]), json.loads(meta["thresholds"])
    least = [threshold] * len(names) if threshold else least
    if meta["task"] in ("boxes", "instances"):
        for label, score, box in zip(results["labels"][0], results["scores"][0], results["boxes"][0], strict=True):
            if label >= 0 and float(score) >= least[label]:
                yield names[label], [score, *box]
        return
    if meta["task"] == "pixels":
        scores = np.bincount(results["labels"][0].ravel(), minlength=len(names)) / results["labels"][0].size
        chosen = sorted(np.flatnonzero(scores).tolist(), key=lambda index: -scores[index])
    else:
        scores = results["scores"][0]
        reached = [index for index in range(len(names)) if least and float(scores[index]) >= least[index]]
        chosen = reached if least is not None else [int(scores.argmax())]
    yield "|".join(names[index] for index in chosen), [scores.max(), *scores]


def cell(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if re.match(r"'*[=+\-@\t\r]", text) else text


def line(cells: Sequence[str]) -> str:
    """A line of the table."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # with this end, a carriage return in a name is quoted
    return text.getvalue().removesuffix("\r\n") + "\n"


def shown(text: str) -> str:
    """A text without characters that steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def open_model(path: str) -> Any:
    """Open the ONNX file.

    Raises:
        ValueError: If it is no file that autotimm has exported.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take CPU time
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, Fail, RuntimeError) as error:
        raise ValueError(f"{path} cannot be opened ({shown(str(error))})") from None
    if not {"task", "class_names", "thresholds", "input"} <= session.get_modelmeta().custom_metadata_map.keys():
        raise ValueError(f"{path} was not exported by autotimm: it says nothing of its classes")
    return session


def write_table(path: str, text: str) -> None:
    """Write a new file as a whole, or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with open(path, "x", encoding="utf-8", newline="") as out:
        try:
            out.write(text)
            out.flush()
        except OSError:
            os.unlink(path)
            raise


def predicted(session: Any, files: dict[str, str], threshold: float | None) -> tuple[str, list[str]]:
    """The table of some images, and the names of those that cannot be read, each with the reason."""
    meta, outputs = session.get_modelmeta().custom_metadata_map, [output.name for output in session.get_outputs()]
    Image.init()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    objects = meta["task"] in ("boxes", "instances")
    titles = ["x1", "y1", "x2", "y2"] if objects else json.loads(meta["class_names"])
    table, unreadable = [line(["path", "label", "score", *map(cell, titles)])], []
    for name, file in files.items():
        try:
            image = read(file, json.loads(meta["input"]))
        except BROKEN as error:
            unreadable.append(shown(f"{name} ({(str(error).splitlines() or [type(error).__name__])[0]})"))
            continue
        results = dict(zip(outputs, session.run(None, {"images": image}), strict=True))
        for label, values in rows(meta, results, threshold):
            table.append(line([cell(name), cell(label), *(f"{float(value):.9g}" for value in values)]))
    return "".join(table), unreadable


def main() -> int:
    """Predict the images given on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", help="images, or folders of images")
    parser.add_argument("--out", help="a new CSV file; without it the table is printed")
    parser.add_argument("--model", help="the ONNX file; by default the one beside this program")
    parser.add_argument("--threshold", type=float, help="minimum score of reported labels and objects, in (0, 1)")
    given = parser.parse_args()
    models = [given.model] if given.model else sorted(map(str, Path(__file__).parent.glob("*.onnx")))
    if len(models) != 1:
        parser.error(f"there are {len(models)} ONNX files beside this program: give --model")
    if given.out and os.path.lexists(given.out):
        parser.error(f"{given.out} is there already: give another name")
    if given.out and not os.path.isdir(os.path.dirname(os.path.abspath(given.out))):
        parser.error(f"there is no folder for {given.out}: make it first")
    if missing := [path for path in given.paths if not os.path.exists(path)]:
        parser.error(f"there is no file or folder {missing[0]}")
    if given.threshold is not None and not 0 < given.threshold < 1:
        parser.error("--threshold must be a number in (0, 1)")
    try:
        session = open_model(models[0])
    except ValueError as error:
        parser.error(f"{error}: give another --model")
    meta = session.get_modelmeta().custom_metadata_map
    if given.threshold is not None and json.loads(meta["thresholds"]) is None:
        parser.error("--threshold must be left out: each image or pixel gets one class, the likeliest")
    files = find(given.paths)
    files = without_masks(files) if meta["task"] == "pixels" else files
    if not files:
        parser.error(f"there are no images in {' and '.join(given.paths)}")
    table, unreadable = predicted(session, files, given.threshold)
    if unreadable:
        print(f"{len(unreadable)} of {len(files)} images cannot be read: {', '.join(unreadable)}", file=sys.stderr)
    if len(unreadable) == len(files):
        return 3
    if given.out is None:
        print(table, end="")
        return 0
    try:
        write_table(given.out, table)
    except OSError as error:
        print(f"{given.out} could not be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"predictions: {given.out} ({len(files) - len(unreadable)} images)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
