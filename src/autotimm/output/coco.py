"""Predicted objects as a COCO file: images, categories, and annotations with scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from autotimm.types import ObjectPrediction

__all__ = ["coco_results"]


def coco_results(predictions: Sequence[ObjectPrediction], class_names: Sequence[str]) -> dict[str, Any]:
    """Put predictions into COCO's layout, as plain data for a JSON file.

    The ``annotations`` are at the same time COCO's results, which ``COCO.loadRes`` takes. Numbers of images and
    categories start at 1, in the order of the predictions and of the classes; images without objects are listed too.

    Args:
        predictions: One per image.
        class_names: All classes, in the order of the model.

    Returns:
        ``images`` (``file_name`` is the id of the prediction), ``categories`` and ``annotations``, whose ``bbox`` is x,
        y, width, height in pixels of the original image, with ``segmentation`` as run lengths if there are masks.

    Example:
        >>> found = ObjectPrediction("a/1.jpg", ("cat",), (0.5,), ((1.0, 2.0, 4.0, 6.0),), (8, 9))
        >>> coco_results([found], ["cat"])["annotations"][0]["bbox"]
        [1.0, 2.0, 3.0, 4.0]
    """
    numbers = {name: number for number, name in enumerate(class_names, 1)}
    annotations: list[dict[str, Any]] = []
    for image, found in enumerate(predictions, 1):
        for index, label in enumerate(found.labels):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": numbers[label],
                                **_object(found, index)})  # fmt: skip
    return {
        "images": [
            {"id": number, "file_name": found.id, "height": found.size[0], "width": found.size[1]}
            for number, found in enumerate(predictions, 1)
        ],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()],
        "annotations": annotations,
    }


def _object(found: ObjectPrediction, index: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found.boxes[index]
    width, height = x2 - x1, y2 - y1
    fields = {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0, "score": found.scores[index]}
    if found.masks:
        outline = {"size": list(found.size), "counts": found.masks[index]}
        fields |= {"segmentation": outline, "area": float(coco_mask.area(outline))}
    return fields
