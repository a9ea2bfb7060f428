"""Folders for ``timm.create_model("local-dir:DIR", pretrained=True)``: weights, and the configuration of the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import Tensor, nn

from autotimm.data.inference_loaders import evaluation_transform
from autotimm.errors import ModelError
from autotimm.export.agreement_check import seeded_sample
from autotimm.export.export_result import Check, Export
from autotimm.export.exporter import TOLERANCES, add_report, written_beside
from autotimm.export.formats import REPORT
from autotimm.export.hub_name import CARD
from autotimm.image_size import height_and_width
from autotimm.models.backbone.architectures import find_architecture
from autotimm.models.backbone.model_args import fitting_arguments
from autotimm.models.backbone.pooled import PooledClassifier
from autotimm.records.atomic import write_text
from autotimm.records.digest import file_digest
from autotimm.tasks import Task
from autotimm.tasks.classification import ImageClassifier
from autotimm.types import DataSpec

__all__ = ["export_timm"]

_WEIGHTS = "model.safetensors"  # as timm calls it
_IMAGES = 8  # from a seed: both sides are torch on the same pixels


def export_timm(task: Task, spec: DataSpec, out: Path, origin: Mapping[str, str], card: str | None = None) -> Export:
    """Export a classifier as a folder that timm loads; its logits equal those of the task.

    Args:
        task: The trained task, on the CPU.
        spec: What it knows of its data.
        out: The new folder.
        origin: Texts about the run, for ``export.json``.
        card: The model card; ``None`` for none.

    Raises:
        ModelError: If timm has no such model, or it disagrees with the task. No folder is left.
        RunError: If the folder cannot be written.
    """
    if type(task) is not ImageClassifier or not isinstance(task.network, PooledClassifier):
        raise ModelError(
            f"A folder for timm must hold a classifier, since timm has no detectors and no decoders. This is a "
            f"{type(task).__name__}. Use --to onnx or --to torch."
        )
    model, arguments = _timm_model(task, task.network)
    with written_beside(out) as folder:
        try:
            save_for_hf(
                model, str(folder), model_config={"label_names": list(spec.class_names)}, model_args=arguments,
                safe_serialization=True, data_config=_data_config(task.network, spec),
            )  # fmt: skip
        except SafetensorError as error:
            raise OSError(str(error)) from error  # of a full disk
        # Written once more: the writer of safetensors leaves a file that only its owner may read.
        shutil.copyfile(folder / _WEIGHTS, folder / f"{_WEIGHTS}.tmp")
        os.replace(folder / f"{_WEIGHTS}.tmp", folder / _WEIGHTS)
        check = _compare(task.network, spec, folder)
        if check.problem:
            raise ModelError(f"timm's model must have the logits of the run, but {check.problem}. Use --to onnx.")
        digest = file_digest(folder / _WEIGHTS)
        least = task.least_scores(task.num_classes)  # timm has neither: they are for those who read its logits
        fitted = {"temperature": task.temperature, "thresholds": None if least is None else list(least)}
        report = {"to": "timm", "sha256": digest, "check": check.as_dict(), **fitted, **origin}
        add_report(folder / REPORT, _WEIGHTS, report)
        if card is not None:
            write_text(folder / CARD, card)
    return Export(out, check)


def _timm_model(task: ImageClassifier, network: PooledClassifier) -> tuple[nn.Module, dict[str, Any]]:
    """Timm's model with its own classifier in place of our head, and the arguments that create it."""
    architecture = find_architecture(str(task.hparams["backbone"]))
    arguments = fitting_arguments(architecture, task.hparams["image_size"], 0.0)
    model: Any = timm.create_model(
        architecture.timm_name, num_classes=task.num_classes, pretrained_cfg_overlay=architecture.overlay, **arguments
    )
    name = model.pretrained_cfg.get("classifier")
    try:
        classifier = model.get_submodule(name)
        head: dict[str, Tensor] = {
            f"{name}.{part}": value.reshape(getattr(classifier, part).shape)  # some classifiers are 1 x 1 convolutions
            for part, value in network.head.state_dict().items()
        }
        model.load_state_dict({**network.backbone.state_dict(), **head})
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"The backbone {architecture.name} cannot be exported to timm: its classifier there is no linear layer on "
            f"the pooled features ({str(error).splitlines()[0]}). Use --to onnx or --to torch."
        ) from None
    return model.eval(), arguments


def _data_config(network: PooledClassifier, spec: DataSpec) -> dict[str, Any]:
    """The preprocessing, under timm's names."""
    mean, std = (values.flatten().tolist() for values in (network.normalize.mean, network.normalize.std))
    return {
        "input_size": [3, *height_and_width(spec.image_size)], "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct, "mean": mean, "std": std,
    }  # fmt: skip


def _compare(network: PooledClassifier, spec: DataSpec, folder: Path) -> Check:
    """Compare the logits of the written model with those of the network."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = evaluation_transform(spec)
    samples = [transform(seeded_sample(index, height_and_width(spec.image_size))) for index in range(_IMAGES)]
    images = torch.stack([sample.image for sample in samples])
    with torch.no_grad():
        expected, found = network(images), loaded(network.normalize(images))
    check = Check("seeded images", TOLERANCES["fp32"], images=_IMAGES)
    scale = float(expected.abs().max().clamp(min=1))
    check.add({"logits": float((expected - found).abs().max()) / scale}, 0, 0)
    check.problem = check.beyond()
    return check
