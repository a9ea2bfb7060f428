"""Segmenters and detectors taken elsewhere: the graph alone quickly, the files in slow tests."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _networks import dense_task
from numpy.typing import NDArray

from autotimm import SemanticSegmentor
from autotimm.data.toy import write_toy_objects, write_toy_segmentation
from autotimm.errors import ModelError, UsageError
from autotimm.export.agreement_check import check_file
from autotimm.export.build_graph import build_graph
from autotimm.export.object_agreement import compare_objects
from autotimm.export.object_graph import pasted
from autotimm.export.object_heads import Found, Limits
from autotimm.export.tile_graph import objects_of_tiles, sums_of_tiles, tile_grid
from autotimm.models.detection import DETECTORS
from autotimm.models.segmentation.segmenter import SEGMENTERS
from autotimm.runs.prediction_files import as_csv
from autotimm.tasks.letterbox import paste, shown
from autotimm.tasks.tiles import cut, merge_objects, placement, tile_windows
from autotimm.types import Tiling
from training import small_fit

SIDE = 64


@pytest.mark.parametrize("overlap", [None, 0.3], ids=["whole", "tiles"])
@pytest.mark.parametrize(
    ("arch", "in_image"), [*((arch, False) for arch in (*SEGMENTERS, *DETECTORS)), ("mask_rcnn", True)]
)
def test_graph_finds_what_the_run_finds(arch: str, in_image: bool, overlap: float | None) -> None:
    model, spec = dense_task(arch, SIDE, overlap)
    graph = build_graph(model, spec, paste_masks=in_image)
    found: list[float] = []

    def runtime(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            results = graph(torch.from_numpy(images))
        assert tuple(results) == tuple(graph.outputs)
        assert not in_image or results["masks"].shape == (*results["labels"].shape, *images.shape[2:])
        found.append(float((results["labels"] > 0).sum()))
        return {name: value.numpy() for name, value in results.items()}

    check = check_file(model, spec, graph, runtime, table=None, most=6, tolerance=1e-4, by_metric=False)
    assert check.problem == ""
    assert check.images == 6
    assert sum(found) > 0  # not only the first class


@pytest.mark.parametrize("height", [20, 32, 33, 75])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
def test_tiles_of_a_graph_are_those_of_the_run(height: int, overlap: float) -> None:
    tiling, width = Tiling(32, 48, overlap), 100
    images = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    windows, grid = tile_windows(height, width, tiling), tile_grid(images, tiling)
    expected = torch.stack([cut(image, window, tiling) for image in images for window in windows])
    assert torch.equal(grid.tiles(), expected)
    sums = torch.zeros(2, height, width, dtype=torch.int64)
    values = torch.randint(0, 99, (2, len(windows), 32, 48), generator=torch.Generator().manual_seed(1))
    for tiles, total in zip(values, sums, strict=True):
        for window, tile in zip(windows, tiles, strict=True):
            top, left, rows, columns = window
            total[top : top + rows, left : left + columns] += shown(tile, placement(window, tiling))
    assert torch.equal(sums_of_tiles(values.flatten(0, 1)[:, None], grid)[:, 0], sums)


def test_objects_of_tiles_are_merged_as_in_the_run() -> None:
    rng, tiling, classes, places = torch.Generator().manual_seed(0), Tiling(64, 64, 0.25), 40, 30
    for height, width in ((150, 230), (50, 64)):
        windows = tile_windows(height, width, tiling)
        shape = (2 * len(windows), places)
        corners = torch.rand(*shape, 2, 2, generator=rng) * 64
        corners[..., 1, :] = corners[..., 0, :] + (corners[..., 1, :] - corners[..., 0, :]).abs() % 30 + 1
        boxes = corners.flatten(-2).clamp(0, 64)
        scores, labels = torch.rand(shape, generator=rng), torch.randint(0, classes, shape, generator=rng)
        labels[:, :10], labels[:, 10:20] = 0, 39  # many of one class, in the first group and in the last
        grid = tile_grid(torch.zeros(2, 3, height, width, dtype=torch.uint8), tiling)
        found = objects_of_tiles(Found(boxes, scores, labels), grid, Limits(0.0, 0.3, 100), classes)
        of_tiles = [{"boxes": boxes[tile], "scores": scores[tile], "labels": labels[tile]} for tile in range(shape[0])]
        for image in range(2):
            tiles = of_tiles[image * len(windows) : (image + 1) * len(windows)]
            expected = merge_objects(list(zip(windows, tiles, strict=True)), height, width, tiling, 0.3, 100)
            number = len(expected["scores"])
            assert number > 10
            for name, value in expected.items():
                assert torch.equal(getattr(found, name)[image, :number], value), name
            assert (found.labels[image, number:] == -1).all()


def test_pasted_masks_are_those_of_the_run() -> None:
    rng = torch.Generator().manual_seed(0)
    for height, width in ((64, 80), (150, 200), (37, 9)):
        corners = torch.rand(40, 2, 2, generator=rng) * torch.tensor([width, height])
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        boxes[0], boxes[1], boxes[2, 2] = 0, torch.tensor([0.0, 0.0, width, height]), boxes[2, 0]  # two without area
        masks = torch.rand(40, 28, 28, generator=rng)
        expected = paste(masks, boxes, height, width)
        assert torch.equal(pasted(masks[None], boxes[None], height, width)[0].to(torch.uint8), expected)


def objects(*rows: tuple[float, int, tuple[float, ...]]) -> dict[str, torch.Tensor]:
    return {
        "scores": torch.tensor([row[0] for row in rows]),
        "labels": torch.tensor([row[1] for row in rows]),
        "boxes": torch.tensor([row[2] for row in rows]).reshape(-1, 4),
    }


def test_objects_may_differ_only_at_a_limit() -> None:
    limits, box, far = Limits(0.05, 0.5, 100), (0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 50.0, 50.0)
    mine = objects((0.9, 0, box), (0.05005, 1, far))
    assert compare_objects([mine], [objects((0.9, 0, box))], 1e-4, limits)[1:] == (1, 0)  # the score is at its limit
    assert compare_objects([mine], [objects((0.05005, 1, far))], 1e-4, limits)[1:] == (0, 1)
    assert compare_objects([mine], [objects((0.9, 1, box), (0.05005, 1, far))], 1e-4, limits)[1:] == (0, 2)
    half = (0.0, 0.0, 10.0, 5.001)  # overlaps the first box by the limit of 0.5
    doubtful = objects((0.9, 0, box), (0.8, 0, half))
    assert compare_objects([doubtful], [objects((0.9, 0, box))], 1e-4, limits)[1:] == (1, 0)
    equal = objects((0.9, 0, box)), objects((0.9, 0, (0.0, 0.0, 10.0, 7.0)))
    assert compare_objects([equal[0]], [equal[1]], 1e-4, limits)[1:] == (2, 0)
    moved = objects((0.7, 0, (0.0, 0.0, 10.0, 10.1)))
    differences = compare_objects([objects((0.9, 0, box))], [moved], 1e-4, limits).differences
    assert differences == pytest.approx({"scores": 0.2, "boxes": 0.01}, abs=1e-6)


def test_what_cannot_be_exported_says_why() -> None:
    class Mine(SemanticSegmentor):
        pass

    _, spec = dense_task("fpn", SIDE)
    with pytest.raises(ModelError, match="The task Mine cannot be exported: how it turns outputs into predictions"):
        build_graph(Mine("test_resnet", 2, width=64, image_size=SIDE, pretrained=False), spec)
    task, spec = dense_task("fcos", SIDE)
    with pytest.raises(ModelError, match="RGB images, and the model was trained on images of 4 channels"):
        build_graph(task, replace(spec, in_chans=4))
    with pytest.raises(UsageError, match="left out unless the model finds masks of objects"):
        build_graph(task, spec, paste_masks=True)


WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, autotimm=None); program, *sys.argv[1:] = sys.argv[1:];"
    "runpy.run_path(program, run_name='__main__')"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "tile"),
    [*((arch, None) for arch in ("fpn", "deeplabv3plus", "fcos", "retinanet", "faster_rcnn", "mask_rcnn")),
     ("unet", 32), ("fcos", 32)],
)  # fmt: skip
def test_file_and_runner_agree_with_a_trained_run(arch: str, tile: int | None, tmp_path: Path) -> None:
    write = write_toy_segmentation if arch in SEGMENTERS else write_toy_objects
    scenes = write(tmp_path / "scenes", splits={"train": 24, "val": 33, "test": 4}, image_size=SIDE)
    run = small_fit(
        scenes, tmp_path / "runs", arch=arch, width=64, epochs=3, val_split=None, eval_batch_size=4,
        image_size=None if tile else SIDE, tile=tile,
        task={"mask_rcnn": "instance"}.get(arch, "segmentation" if arch in SEGMENTERS else "detection"),
    )  # fmt: skip
    export = run.export(tmp_path / "model" / "m.onnx", with_runner=True, paste_masks=arch == "mask_rcnn")
    assert export.check.disagreements == 0
    report = json.loads((tmp_path / "model" / "export.json").read_text())["m.onnx"]
    assert report["check"]["metrics"]
    with pytest.raises(ModelError, match="must hold a classifier"):
        run.export(tmp_path / "timm", to="timm")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(export.runner), str(scenes / "test"), "--threshold", "0.06"]
    if arch in SEGMENTERS:
        command = command[:-2]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictions = run.predict([scenes / "test"], threshold=None if arch in SEGMENTERS else 0.06)
    expected, found = (list(csv.reader(text.splitlines())) for text in (as_csv(predictions), done.stdout))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for row, true in zip(found[1:], expected[1:], strict=True):
        assert list(map(float, row[2:])) == pytest.approx(list(map(float, true[2:])), abs=0.02), row[0]
