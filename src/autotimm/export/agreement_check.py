"""The comparison of an exported file with its run: the same images through both, each in its own runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autotimm.data.inference_loaders import as_evaluated, evaluation_transform
from autotimm.data.loader import collate_samples
from autotimm.data.table import Table
from autotimm.export.export_result import Check
from autotimm.export.graph import Graph, Runtime
from autotimm.metrics import MetricConfig, Scores, build_metrics
from autotimm.repro.streams import key
from autotimm.tasks import Task
from autotimm.tasks.parts import of_one_size
from autotimm.types import DataSpec, Sample, Stage, Step

__all__ = ["SAMPLE", "check_file", "seeded_sample"]

SAMPLE = 32
"""How many images are compared unless all are, and how many are drawn from a seed."""


def check_file(
    task: Task, spec: DataSpec, graph: Graph, runtime: Runtime, *, table: Table | None, most: int | None,
    tolerance: float, by_metric: bool,
) -> Check:  # fmt: skip
    """Compare a file with the run that it was exported from.

    Args:
        task: The trained task, which computes as in validation.
        spec: What it knows of its data.
        graph: What was exported, which says how results are compared.
        runtime: The file in its own runtime.
        table: Labelled images; ``None`` for images drawn from a seed.
        most: How many images to compare; ``None`` for all.
        tolerance: The largest allowed difference.
        by_metric: Whether the tolerance is that of metrics, as for numbers of 16 bits, and not of scores.
    """
    names = range(most or SAMPLE) if table is None else _sampled(len(table), most)
    check = Check("validation images" if table is not None else "seeded images", tolerance)
    by_run, by_file = _Measured(task.metric_configs), _Measured(task.metric_configs)
    transform, size = evaluation_transform(spec), 1 if graph.tiling else task.eval_batch_size
    table = None if table is None else as_evaluated(table, spec)
    for first in range(0, len(names), size):
        samples = [
            seeded_sample(i, graph.size) if table is None else table.load(i) for i in names[first : first + size]
        ]
        batch = collate_samples([transform(sample) for sample in samples])
        with torch.no_grad():
            expected = graph.of_run(task, batch)
            step = None if batch.targets is None else task.step(batch, Stage.VAL)
        images = [sample.image.as_subclass(Tensor) for sample in samples]
        found = graph.of_file(_run_by_size(runtime, images), [(image.shape[1], image.shape[2]) for image in images])
        check.images += len(samples)
        check.add(*graph.compare(expected, found, tolerance))
        if step is not None:
            by_run.add(step)
            by_file.add(Step({}, graph.joined(found), step.targets))
    if table is not None:
        run_values, file_values = by_run.values(), by_file.values()
        check.metrics = {name: {"run": run_values[name], "file": file_values[name]} for name in run_values}
    check.problem = _metrics_beyond(check) if by_metric else check.beyond()
    return check


def _sampled(number: int, most: int | None) -> Sequence[int]:
    """Positions of the compared images, spread over all."""
    if most is None or number <= most:
        return range(number)
    return [index * number // most for index in range(most)]


def _run_by_size(runtime: Runtime, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The results of each image; those of one size go through the file in one batch."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(index)
    results: list[dict[str, Tensor]] = [{} for _ in images]
    for indices in by_size.values():
        batch = torch.stack([images[index] for index in indices]).contiguous()
        output = runtime(batch.numpy())
        for row, index in enumerate(indices):
            results[index] = {name: torch.from_numpy(value[row]) for name, value in output.items()}
    return results


def seeded_sample(index: int, size: tuple[int, int]) -> Sample:
    """An image drawn from a seed: coarse patches with noise, of another size and side ratio each.

    Args:
        index: The number of the image.
        size: Height and width of the network's input, which the sides are near.
    """
    rng = torch.Generator().manual_seed(key(0, "export", index) % 2**32)
    sides = [max(8, int(side * (0.6 + 1.4 * float(torch.rand((), generator=rng))))) for side in size]
    coarse = torch.randint(0, 256, (1, 3, 5, 5), generator=rng, dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, sides, mode="bilinear")[0]
    noise = 16 * torch.randn(smooth.shape, generator=rng)
    return Sample((smooth + noise).clamp(0, 255).to(torch.uint8), None, f"seeded/{index}")


class _Measured:
    """The metrics of the run's validation."""

    def __init__(self, configs: Sequence[MetricConfig]) -> None:
        self._metrics = build_metrics(configs, Stage.VAL)

    def add(self, step: Step) -> None:
        """Add a batch."""
        for metric in self._metrics.values():
            for predictions, targets in of_one_size(step, torch.device("cpu")):
                metric.update(predictions, targets)  # type: ignore[operator]  # a torchmetrics.Metric

    def values(self) -> dict[str, float]:
        """The values; of metrics with several, the one in front."""
        return dict(self._values())

    def _values(self) -> Iterator[tuple[str, float]]:
        for name, metric in self._metrics.items():
            value = metric.compute()  # type: ignore[operator]
            value = value["mean"] if isinstance(metric, Scores) else value
            if value.numel() == 1:  # a metric of the caller's own may return one for each class
                yield name, float(value)


def _metrics_beyond(check: Check) -> str:
    """The first metric that is beyond the tolerance, as the end of a sentence; empty if none is."""
    for name, value in check.metrics.items():
        if not abs(value["run"] - value["file"]) <= check.tolerance:
            return f"{name} is {value['file']:.4f} instead of {value['run']:.4f}"
    return ""
