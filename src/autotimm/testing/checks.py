"""The checks of the contract of a task."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from autotimm.data import DataModule
from autotimm.metrics import MetricConfig
from autotimm.records.digest import state_digest
from autotimm.runs.predict import predict
from autotimm.runs.run import Run
from autotimm.tasks import Task
from autotimm.testing.case import QUIET, TaskCase
from autotimm.train import AutoTrainer
from autotimm.train.callbacks.rng_noise import DrawsEverywhere, pollute_generators
from autotimm.types import Batch, Stage, Step

__all__ = ["CHECKS"]


def _expect(case: TaskCase, what: str, **options: Any) -> None:
    digest = case.train(**options).digest
    assert digest == case.reference.digest, f"{what} must not change the trained weights, but does"


def check_same_seed_same_weights(case: TaskCase) -> None:
    """Initial weights depend on the seed only, not on the state of the global generators."""
    first = state_digest(case.task(seed=1).network.state_dict())
    pollute_generators()
    assert first == state_digest(case.task(seed=1).network.state_dict()), "equal seeds must give equal weights"
    assert first != state_digest(case.task(seed=2).network.state_dict()), "another seed must give other weights"


def check_repeatable(case: TaskCase) -> None:
    """A second training in the same process gives the same bits, and another seed gives other bits."""
    _expect(case, "Training again")
    other = case.train(seed=43).digest
    assert other != case.reference.digest, "another trainer seed must give other weights: order or steps are not seeded"


def check_workers(case: TaskCase) -> None:
    """The number of data loading workers, and whether they persist, change nothing."""
    for workers in (2, 3):
        _expect(case, f"Loading with {workers} workers", data={"num_workers": workers})
    _expect(case, "Using non-persistent workers", data={"num_workers": 2, "persistent_workers": False})


def check_polluted_generators(case: TaskCase) -> None:
    """Other code that draws from the global generators, before or during training, changes nothing."""
    _expect(case, "A polluted global generator", pollute=True)
    _expect(case, "A callback that draws random numbers", callbacks=[DrawsEverywhere()])


def check_extra_metric(case: TaskCase) -> None:
    """One more metric changes nothing."""
    configs = case.task().metric_configs
    again = MetricConfig.of({**configs[0].to_dict(), "name": "again"})
    _expect(case, "An extra metric", task={"metrics": [*configs, again]})


def check_logger(case: TaskCase) -> None:
    """A logger, a progress bar and a run folder change nothing."""
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        _expect(case, "A logger", logger=CSVLogger(folder), log_every_n_steps=1)
        _expect(case, "A run folder and a progress bar", run_dir=Path(folder) / "run", enable_progress_bar=True)


def check_validation_frequency(case: TaskCase) -> None:
    """Validating more often, less often or never changes nothing."""
    _expect(case, "Validation every second epoch", check_val_every_n_epoch=2)
    _expect(case, "Validation twice per epoch", val_check_interval=0.5)
    _expect(case, "No validation", limit_val_batches=0, num_sanity_val_steps=0)


def check_learns(case: TaskCase) -> None:
    """The training loss on 16 images decreases by at least 10 % in 8 epochs."""
    losses = case.train(epochs=8, data={"batch_size": 8}, overfit_batches=2).losses
    assert losses[-1] < 0.9 * losses[0], (
        f"the training loss must decrease by 10 % in 8 epochs; it went from {losses[0]:.4g} to {losses[-1]:.4g}. If it "
        "decreases slowly, give a larger `lr`"
    )


def check_checkpoint(case: TaskCase) -> None:
    """A checkpoint loads without unpickling, and gives the same weights and the same outputs."""
    trained = case.reference
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        path = Path(folder) / "task.ckpt"
        trained.trainer.save_checkpoint(path)
        loaded: Task = Task.load_from_checkpoint(path, trust=True)  # it was written a moment ago
    assert type(loaded) is type(trained.task)
    assert state_digest(loaded.network.state_dict()) == trained.digest, "a loaded checkpoint must have the same weights"
    images = next(iter(trained.data.val_dataloader())).images
    outputs = [state_digest(_tensors(task.eval().infer(images))) for task in (trained.task, loaded)]
    assert outputs[0] == outputs[1], "a loaded checkpoint must compute the same outputs"


def _tensors(output: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of a nested output, by their path in it."""
    if isinstance(output, Tensor):
        return {name: output}
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    return {path: tensor for key, item in items for path, tensor in _tensors(item, f"{name}.{key}").items()}


class _StopAfterEpoch(Callback):
    """Stops a training after its first epoch, as a user does who resumes it later."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def check_resume(case: TaskCase) -> None:
    """A training that is stopped after an epoch and resumed ends with the weights of an uninterrupted one."""
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        run, moved = Path(folder) / "run", Path(folder) / "elsewhere"
        case.train(run_dir=run, callbacks=[_StopAfterEpoch()])
        shutil.copytree(run, moved)
        _expect(case, "Resuming from the last checkpoint", run_dir=run, ckpt_path="last")
        loading = {"num_workers": 2}
        _expect(case, "Moving a run and resuming it with workers", run_dir=moved, ckpt_path="last", data=loading)


class _InterruptedError(Exception):
    """Ends a training in the middle of an epoch."""


class _InterruptAt(Callback):
    """Interrupts a training after some optimizer steps, as a lost connection or a full disk does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise _InterruptedError


def check_resume_within_epoch(case: TaskCase) -> None:
    """A training that is interrupted within an epoch and resumed ends with the weights of an uninterrupted one."""
    steps = len(case.reference.data.train_dataloader())
    interrupted_at = steps + max(1, steps // 2)
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        run = Path(folder) / "run"
        try:
            case.train(run_dir=run, checkpoint_every=1, callbacks=[_InterruptAt(interrupted_at)])
        except _InterruptedError:
            pass
        else:
            raise AssertionError(f"the training has no step {interrupted_at} to interrupt it at")
        what = f"Interrupting at step {interrupted_at} of {2 * steps} and resuming"
        _expect(case, what, run_dir=run, ckpt_path="last", checkpoint_every=1)


def check_verify(case: TaskCase) -> None:
    """A run can be replayed from its record alone, bit for bit."""
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        run = Path(folder) / "run"
        case.train(run_dir=run, watched=False)
        Run(run).verify().require_identical()


def check_predict_equals_validate(case: TaskCase) -> None:
    """The prediction of an image equals that in validation: alone, in a folder, and in any batch.

    Data without files is predicted from the data loader of validation.
    """
    task, data = case.reference.task, case.reference.data
    expected = _validation_predictions(task, data)
    table = data.tables["val"]
    files = dict(zip(table.ids, table.files(), strict=True)) if table.files() else {}
    trainer = AutoTrainer(**{**case.trainer_options, **QUIET})

    def compare(ids: list[str], how: str) -> None:
        predictions = predict(task, [files[id] for id in ids], trainer=trainer)
        for id, prediction in zip(ids, predictions, strict=True):
            same = prediction._replace(id=id) == expected[id]
            assert same, f"the prediction of {id} {how} differs from that in validation"

    if files:
        compare([*files], "in order")
        compare([*files][::-1], "in another batch")
        for id in [*files][:3]:
            compare([id], "alone")
    else:
        predictions = [prediction for batch in trainer.predict(task, data.val_dataloader()) for prediction in batch]
        by_id = {prediction.id: prediction for prediction in predictions}
        assert by_id == expected, "predictions differ from those in validation"


def _validation_predictions(task: Task, data: DataModule) -> dict[str, Any]:
    """Predictions decoded from the outputs of validation, by sample id."""
    predictions: dict[str, Any] = {}
    outputs: list[Any] = []
    step, infer = task.step, task.infer

    def recording_step(batch: Batch, stage: Stage) -> Step:
        outputs.clear()
        result = step(batch, stage)
        predictions.update((prediction.id, prediction) for prediction in task.decode(outputs[-1], batch))
        return result

    def recording_infer(images: Tensor) -> Any:
        outputs.append(infer(images))
        return outputs[-1]

    task.__dict__.update(step=recording_step, infer=recording_infer)  # instance attributes hide the methods
    try:
        AutoTrainer(**QUIET).validate(task, datamodule=data)
    finally:
        del task.__dict__["step"], task.__dict__["infer"]
    assert set(predictions) == set(data.tables["val"].ids), "validation must see each sample once"
    return predictions


CHECKS: tuple[Callable[[TaskCase], None], ...] = (
    check_same_seed_same_weights,
    check_repeatable,
    check_workers,
    check_polluted_generators,
    check_extra_metric,
    check_logger,
    check_validation_frequency,
    check_learns,
    check_checkpoint,
    check_resume,
    check_resume_within_epoch,
    check_verify,
    check_predict_equals_validate,
)
"""All checks, in the order in which they run."""
