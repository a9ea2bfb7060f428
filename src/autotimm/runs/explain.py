"""Explanations of predictions: a map for each image, with figures of how far it can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from autotimm.attribution import (
    METHODS,
    Faithfulness,
    ShuffledWeights,
    attribute,
    chosen_method,
    measured_faithfulness,
    require_captum,
)  # fmt: skip
from autotimm.data.image_channels import read_picture
from autotimm.data.image_reading import reading_of
from autotimm.data.inference_loaders import predict_loader
from autotimm.data.transforms.image_transforms import eval_placement
from autotimm.errors import DataError, RunError, UsageError, nearest, require_choice, require_flags, sentence
from autotimm.records.atomic import atomic_path
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.report.class_colors import is_background
from autotimm.runs.heat_picture import heat_picture
from autotimm.runs.output_paths import require_new_folder
from autotimm.runs.predict import image_files, known_data
from autotimm.runs.prediction_files import file_names, write_table
from autotimm.tasks import Task
from autotimm.tasks.letterbox import places
from autotimm.train import AutoTrainer
from autotimm.train.lightning_compat import attached
from autotimm.train.progress import say
from autotimm.types import Batch, DataSpec, PixelPrediction, Placement

__all__ = ["TABLE", "Explanation", "explain", "explanations_csv"]

TABLE = "explanations.csv"
_FIGURES = ("deletion", "insertion", "random_deletion", "random_insertion", "shuffled_head", "shuffled_weights")
_BOX = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Explanation:
    """Why a model gave one image a score: what its pixels add to it.

    Attributes:
        id: Path or id of the image.
        label: The explained class.
        score: Its score in [0, 1]: a probability, the score of an object, or the mean probability over a region.
        method: ``gradcam``, ``integrated-gradients`` or ``attention-rollout``.
        size: Height and width of the original image in pixels.
        map: What each place adds to the score, ``float32`` (h, w) over the whole original image at about the resolution
            of the network's input; below 0 where it speaks against the class, NaN where the network saw nothing.
        box: x1, y1, x2, y2 of the explained object in pixels of the original image; ``None`` for other tasks.
        faithfulness: How far the map can be believed; NaN throughout if that was not measured.
        completeness: Of integrated gradients, how far the sum over all pixels is from the difference of the scores of
            image and baseline, as a share; otherwise NaN.
        files: The files that were written: the picture, and the map as ``.npy``.
    """

    id: str
    label: str
    score: float
    method: str
    size: tuple[int, int]
    map: NDArray[np.float32] = field(repr=False, compare=False)
    box: tuple[float, float, float, float] | None = None
    faithfulness: Faithfulness = Faithfulness()  # noqa: RUF009 - a tuple, which nothing can change
    completeness: float = nan
    files: tuple[Path, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """All but the map as plain data for JSON."""
        plain: dict[str, Any] = {"name": self.id, "label": self.label, "score": self.score, "method": self.method}
        plain |= {"size": list(self.size), "box": None if self.box is None else list(self.box)}
        plain |= self.faithfulness._asdict() | {"completeness": self.completeness}
        return plain | {"files": [str(path) for path in self.files]}


def explain(
    task: Task,
    paths: str | Path | Iterable[str | Path],
    trainer: AutoTrainer,
    out: str | Path | None = None,
    *,
    method: str = "auto",
    target: str | None = None,
    checks: bool = True,
    trained: str = "",
) -> list[Explanation]:
    """Explain what a task predicts, see :meth:`autotimm.runs.run.Run.explain` for the arguments.

    Args:
        task: A task that knows its data.
        paths: Images and folders.
        trainer: Who runs it, without inference mode.
        out: A new or empty folder.
        method: How.
        target: The class.
        checks: Whether maps are measured.
        trained: The name of the run, for the pictures.

    Raises:
        UsageError: If the method or the class does not suit the task, or captum is not installed.
        DataError: If there is no readable image, or nothing to explain in any.
    """
    require_captum()
    require_choice("method", "explain", method, ("auto", *METHODS))
    require_flags("explain", checks=checks)
    spec = known_data(task)
    _check(task, spec, target)
    if out is not None:
        require_new_folder(str(out), "out", "explain")
    given = paths if isinstance(paths, (str, Path)) else list(paths)
    sources, notices = image_files(given, spec), list[str]()
    loader = predict_loader(given, spec, notices=notices)
    say(*notices)
    found: list[Explanation] = []
    writer = None if out is None else _Writer(Path(out), [*sources], trained)

    def take(explanation: Explanation, photo: Tensor, region: Tensor | None) -> None:
        found.append(explanation if writer is None else writer.written(explanation, photo, region))

    explainer = _Explainer(task, spec, sources, method, target, checks, take)
    with attached(trainer, explainer):
        trainer.predict(task, loader, return_predictions=False)
    if explainer.skipped:
        what = "no object" if spec.kind in ("boxes", "instances") else "nothing"
        of = f" of the class {target}" if target is not None else ""
        say(f"{what}{of} was found in {_counted(explainer.skipped)}: {', '.join(explainer.skipped[:3])}")
    if not found:
        raise DataError("Nothing was found in any image, so there is nothing to explain. Give other images.")
    if out is not None:
        write_table(Path(out, TABLE), explanations_csv(found))
    say(*_verdict(found))
    return found


def _counted(ids: Sequence[str]) -> str:
    return f"{len(ids)} image{'' if len(ids) == 1 else 's'}"


def _check(task: Task, spec: DataSpec, target: str | None) -> None:
    """Refuse what cannot be explained."""
    if target is not None and target not in spec.class_names:
        known = nearest(target, spec.class_names) or f"The classes are {', '.join(spec.class_names[:10])}."
        raise UsageError(sentence("target", "explain", "a class of the model", target, known))
    if task.hparams.get("compile_model"):
        raise UsageError(
            "The network of explain must not be compiled: it shows no layers. Train it without `compile_model`."
        )
    if spec.tiling is not None:
        raise UsageError("The model of explain must see images whole. It sees tiles of them. Train it without `tile`.")


def _verdict(found: Sequence[Explanation]) -> list[str]:
    """What the checks say of all maps, in a line."""
    measured = [each for each in found if not isnan(each.faithfulness.deletion)]
    if not measured:
        return []
    rows = [each.faithfulness for each in measured]
    faster = sum(row.deletion < row.random_deletion and row.insertion > row.random_insertion for row in rows)
    lines = [f"deletion and insertion: better than a random order for {faster} of {len(rows)} images"]
    known = [abs(row.shuffled_weights) for row in rows if not isnan(row.shuffled_weights)]
    if known:
        middle = float(np.median(known))
        weak = "; the maps hardly show what was learned" if middle > 0.5 else ""
        lines.append(f"sanity check: rank correlation with shuffled weights {middle:.2f} (median, in [0, 1]){weak}")
    return lines


class _Explainer(Callback):
    """Explains every image of a prediction, one by one: no image has an effect on the map of another."""

    def __init__(
        self, task: Task, spec: DataSpec, sources: Mapping[str, Path], method: str, target: str | None, checks: bool,
        take: Callable[[Explanation, Tensor, Tensor | None], None],
    ) -> None:  # fmt: skip
        self.task, self.spec, self.sources, self.target, self.take = task, spec, sources, target, take
        self.method, self.skipped = method, list[str]()
        self._shuffled = ShuffledWeights(task.network, task.head, task.root_seed) if checks else None

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Explain the images of a batch."""
        batch = Batch.of(batch)
        with trainer.precision_plugin.forward_context():
            for at, found in enumerate(outputs):
                placements = None if batch.placements is None else batch.placements[at : at + 1]
                self._explain(Batch(batch.images[at : at + 1], ids=(found.id,), placements=placements), found)

    def _explain(self, batch: Batch, found: Any) -> None:
        task, network = self.task, self.task.network
        score = task.explained(batch, found, self._label(found))
        if score is None:
            self.skipped.append(found.id)
            return
        image = batch.images if batch.images.is_floating_point() else batch.images.float() / 255
        self.method = chosen_method(network, self.method, image)
        method = self.method
        values, completeness = attribute(network, score, image, method)
        photo = self._photo(image[0], found.id)
        place = self._place(batch, photo)
        visible = torch.zeros_like(values, dtype=torch.bool)
        visible[_rows_and_columns(values, place)] = True
        faithfulness = Faithfulness()
        if self._shuffled is not None:
            faithfulness = measured_faithfulness(
                network, self._shuffled, score, image, values, visible, task.root_seed, found.id,
                lambda: attribute(network, score, image, method, rough=True).values,
            )  # fmt: skip
        over = _over_photo(values.cpu(), place)
        explanation = Explanation(
            found.id, score.label, score.score, method, (place.height, place.width), over, score.box, faithfulness,
            completeness,
        )  # fmt: skip
        region = None
        if isinstance(found, PixelPrediction):
            region = found.mask() == self.spec.class_names.index(score.label)
        self.take(explanation, photo, region)

    def _label(self, found: Any) -> str | None:
        """The class that is explained; of regions the largest that is no background."""
        if self.target is not None or not isinstance(found, PixelPrediction):
            return self.target
        return next((name for name in found.labels if not is_background(name)), found.labels[0])

    def _photo(self, image: Tensor, id: str) -> Tensor:
        """What a reader sees: the photograph, or after transforms of the user's own what they have made of it."""
        if self.spec.eval_transforms is None:
            photo: Tensor = read_picture(self.sources[id], reading_of(self.spec)).as_subclass(Tensor)
            return photo
        channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
        pixels: Tensor = (channels.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        return pixels

    def _place(self, batch: Batch, photo: Tensor) -> Placement:
        if batch.placements is not None or self.spec.eval_transforms is not None:
            return places(batch)[0]
        height, width = photo.shape[-2:]
        return eval_placement(height, width, self.spec.image_size, self.spec.crop_pct)


def _rows_and_columns(values: Tensor, place: Placement) -> tuple[slice, slice]:
    """The part of the input (H, W) that shows the photograph."""
    rows, columns = values.shape
    return (
        slice(max(0, place.top), min(rows, place.top + place.shown_height)),
        slice(max(0, place.left), min(columns, place.left + place.shown_width)),
    )


def _over_photo(values: Tensor, place: Placement) -> NDArray[np.float32]:
    """A map of the input over the whole photograph, at the resolution of the input; NaN where it was cut off."""
    rows, columns = _rows_and_columns(values, place)
    over = np.full((place.shown_height, place.shown_width), np.nan, np.float32)
    over[rows.start - place.top : rows.stop - place.top, columns.start - place.left : columns.stop - place.left] = (
        values[rows, columns].float().numpy()
    )
    return over


class _Writer:
    """Writes the picture and the map of each explanation, and lets go of the map.

    Args:
        folder: The folder.
        ids: The ids of all images, which decide the names of the files.
        trained: The name of the run.
    """

    def __init__(self, folder: Path, ids: Sequence[str], trained: str) -> None:
        self._folder, self._trained = folder, trained
        self._names = dict(zip(ids, file_names(ids), strict=True))

    def written(self, explanation: Explanation, photo: Tensor, region: Tensor | None) -> Explanation:
        """Write the files of one; its map is then read from the file when it is looked at.

        Raises:
            RunError: If the folder cannot be written to.
        """
        picture = self._folder / self._names[explanation.id]
        numbers = picture.with_name(f"{picture.stem}.npy")
        page = heat_picture(
            photo, explanation.map, explanation.method, _legend(explanation, self._trained), box=explanation.box,
            region=region,
        )  # fmt: skip
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(picture) as temporary:
                page.save(temporary, "png")
            with atomic_path(numbers) as temporary, open(temporary, "wb") as file:
                np.save(file, explanation.map, allow_pickle=False)
        except OSError as error:
            raise RunError(f"{self._folder} cannot be written to: {error.strerror}. Give another place.") from None
        kept = np.load(numbers, mmap_mode="r", allow_pickle=False)
        return replace(explanation, map=kept, files=(picture, numbers))


def _legend(one: Explanation, trained: str) -> list[str]:
    """The text below a picture."""
    lines = [f"{one.label}: score {one.score:.3f}", f"{one.method}, run {trained}" if trained else one.method]
    row = one.faithfulness
    if not isnan(row.deletion):
        lines.append(f"deletion {row.deletion:.3f} (random order {row.random_deletion:.3f}): lower is better")
        lines.append(f"insertion {row.insertion:.3f} (random order {row.random_insertion:.3f}): higher is better")
        said = [f"{value:.2f} ({name})" for name, value in
                (("head", row.shuffled_head), ("all weights", row.shuffled_weights)) if not isnan(value)]  # fmt: skip
        if said:
            lines.append(f"rank correlation with shuffled weights {', '.join(said)}: near 0 is better")
    if one.method == "attention-rollout":
        lines.append(
            f"of no class in particular; at most {np.nanmax(one.map) / np.nanmean(one.map):.3f} times the mean"
        )
    if not isnan(one.completeness):
        lines.append(f"sum of the map differs from that of the scores by {one.completeness:.1%}")
    return lines


def explanations_csv(found: Sequence[Explanation]) -> str:
    """Explanations as a table: a line per image, an empty cell for what was not measured.

    Boxes have columns where there is one. Paths and names are written as in tables of predictions.
    """
    boxes = any(one.box is not None for one in found)
    titles = ["path", "label", "score", *(_BOX if boxes else ()), "method", *_FIGURES, "completeness"]
    rows = [titles]
    for one in found:
        figures = [*one.faithfulness, one.completeness]
        rows.append([safe_cell(one.id), safe_cell(one.label), f"{one.score:.9g}",
                     *(f"{value:.9g}" for value in one.box or ()), one.method,
                     *("" if isnan(value) else f"{value:.6g}" for value in figures)])  # fmt: skip
    return csv_text(rows)
