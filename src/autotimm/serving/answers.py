"""Predictions as plain data for JSON."""

from __future__ import annotations

import base64
from typing import Any

from autotimm.types import ObjectPrediction, PixelPrediction, Prediction

__all__ = ["as_plain"]


def as_plain(prediction: Prediction | ObjectPrediction | PixelPrediction) -> dict[str, Any]:
    """A prediction as strings, numbers and lists of these.

    Classes have ``labels``, the ``scores`` of all classes, and with a coverage the ``set`` of classes. Objects are a
    list: ``label``, ``score``, ``box`` (x1, y1, x2, y2 in pixels of the image) and with masks ``mask``, COCO's run
    lengths. A class per pixel: ``labels``, the ``shares`` of all classes, and ``png``, an image of 8 bits whose values
    are class indices, in base64. If there are ``neighbours``, each has ``id``, ``labels`` and ``similarity``;
    ``novelty`` is there if it was asked for.

    Example:
        >>> as_plain(ObjectPrediction("a.jpg", ("cat",), (0.5,), ((1.0, 2.0, 3.0, 4.0),), (8, 9)))["objects"]
        [{'label': 'cat', 'score': 0.5, 'box': [1.0, 2.0, 3.0, 4.0]}]
    """
    plain = _result(prediction)
    if prediction.neighbours:
        plain["neighbours"] = [each.as_plain() for each in prediction.neighbours]
    if prediction.novelty is not None:
        plain["novelty"] = prediction.novelty
    return plain


def _result(prediction: Prediction | ObjectPrediction | PixelPrediction) -> dict[str, Any]:
    if isinstance(prediction, ObjectPrediction):
        height, width = prediction.size
        objects: list[dict[str, Any]] = [
            {"label": label, "score": score, "box": list(box)}
            for label, score, box in zip(prediction.labels, prediction.scores, prediction.boxes, strict=True)
        ]
        for each, counts in zip(objects, prediction.masks, strict=False):  # there may be no masks
            each["mask"] = {"size": [height, width], "counts": counts}
        return {"name": prediction.id, "width": width, "height": height, "objects": objects}
    if isinstance(prediction, PixelPrediction):
        png = base64.b64encode(prediction.png).decode("ascii")
        return {"name": prediction.id, "labels": list(prediction.labels), "shares": prediction.scores, "png": png}
    classes = {"name": prediction.id, "labels": list(prediction.labels), "scores": prediction.scores}
    return {**classes, "set": list(prediction.members)} if prediction.members else classes
