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
from autotimm.export.object_heads import Limits
from autotimm.models.detection import DETECTORS
from autotimm.models.segmentation.segmenter import SEGMENTERS
from autotimm.runs.prediction_files import as_csv
from autotimm.tasks.letterbox import paste
from training import small_fit

SIDE = 64


@pytest.mark.parametrize(
    ("arch", "in_image"), [*((arch, False) for arch in (*SEGMENTERS, *DETECTORS)), ("mask_rcnn", True)]
)
def test_graph_finds_what_the_run_finds(arch: str, in_image: bool) -> None:
    model, spec = dense_task(arch, SIDE)
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
    with pytest.raises(ModelError, match=r"evaluated on tiles.*Predict with `autotimm predict` or `autotimm serve`"):
        build_graph(task, replace(spec, overlap=0.2))
    with pytest.raises(ModelError, match="RGB images, and the model was trained on images of 4 channels"):
        build_graph(task, replace(spec, in_chans=4))
    with pytest.raises(UsageError, match="left out unless the model finds masks of objects"):
        build_graph(task, spec, paste_masks=True)


WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, autotimm=None); program, *sys.argv[1:] = sys.argv[1:];"
    "runpy.run_path(program, run_name='__main__')"
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus", "fcos", "retinanet", "faster_rcnn", "mask_rcnn"])
def test_file_and_runner_agree_with_a_trained_run(arch: str, tmp_path: Path) -> None:
    write = write_toy_segmentation if arch in SEGMENTERS else write_toy_objects
    scenes = write(tmp_path / "scenes", splits={"train": 24, "val": 33, "test": 4}, image_size=SIDE)
    run = small_fit(
        scenes, tmp_path / "runs", arch=arch, image_size=SIDE, width=64, epochs=3, val_split=None, eval_batch_size=4,
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
    predictions = run.predict(scenes / "test", threshold=None if arch in SEGMENTERS else 0.06)
    expected, found = (list(csv.reader(text.splitlines())) for text in (as_csv(predictions), done.stdout))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for row, true in zip(found[1:], expected[1:], strict=True):
        assert list(map(float, row[2:])) == pytest.approx(list(map(float, true[2:])), abs=0.02), row[0]
