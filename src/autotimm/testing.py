"""The contract that every task keeps, as a suite of checks: for ours and for those that you write.

In the manner of scikit-learn's ``check_estimator``: a new task passes these before its author writes a test::

    from autotimm.testing import CHECKS, TaskCase

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, tmp_path):
        check(TaskCase.of(MyTask, folder=tmp_path, backbone="test_resnet", num_classes=3))

or all of them in one call: ``check_task(MyTask, backbone="test_resnet", num_classes=3)``.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from autotimm.data import DataModule, ImageDataModule
from autotimm.data.toy import write_toy_folder
from autotimm.metrics import MetricConfig
from autotimm.repro.digest import state_digest
from autotimm.repro.streams import preserve_generators
from autotimm.tasks import Task
from autotimm.train import AutoTrainer

__all__ = ["CHECKS", "TaskCase", "check_task"]


@dataclass(frozen=True)
class Trained:
    """A task after training, with what its contract is judged by."""

    task: Task
    data: DataModule
    trainer: AutoTrainer
    losses: tuple[float, ...]

    @property
    def digest(self) -> str:
        """The digest of weights and buffers."""
        return state_digest(self.task.network.state_dict())


class _Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss_epoch"]))


@dataclass
class TaskCase:
    """A task, its data, and a short training of it.

    Attributes:
        task: Builds the task from options.
        data: Builds the data module from options.
        folder: Where trainings may write.
    """

    task: Callable[..., Task]
    data: Callable[..., DataModule]
    folder: Path
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: type[Task], *, folder: str | Path, data: Callable[..., DataModule] | None = None, **arguments: Any
    ) -> TaskCase:
        """A case from a task class and its constructor's arguments.

        Args:
            task: The class.
            folder: Where toy images and trainings may be written.
            data: Builds a data module from options; by default toy images of three classes.
            arguments: What the constructor needs.
        """
        folder = Path(folder)

        def toy(**options: Any) -> DataModule:
            root = folder / "toy"
            if not root.exists():
                write_toy_folder(root, n=24, num_classes=3, image_size=32, seed=7)
            defaults = {"image_size": 32, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0, "val_split": 0.25}
            return ImageDataModule(root, **{**defaults, **options})

        return cls(lambda **options: task(**{**arguments, **options}), data or toy, folder)

    def train(
        self,
        *,
        task: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        epochs: int = 2,
        pollute: bool = False,
        **trainer: Any,
    ) -> Trained:
        """Train for a few epochs on one thread; options by who they are for."""
        if pollute:
            _pollute()
        module, model = self.data(**(data or {})), self.task(**(task or {}))
        if pollute:
            _pollute()
        losses = _Losses()
        callbacks = [losses, *trainer.pop("callbacks", [])]
        options = {"threads": 1, "accelerator": "cpu", "run_dir": False, "enable_progress_bar": False, **trainer}
        chosen = AutoTrainer(epochs, callbacks=callbacks, **{**self.trainer_options, **options})
        with preserve_generators():
            chosen.fit(model, datamodule=module)
        return Trained(model, module, chosen, tuple(losses.losses))

    @cached_property
    def reference(self) -> Trained:
        """The training that others are compared with."""
        return self.train()


def _pollute() -> None:
    """Move every global generator somewhere else."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.rand(7)


class _Drawing(Callback):
    """A callback that draws from every global generator wherever it is called."""

    def _draw(self) -> None:
        torch.rand(3), np.random.rand(3), random.random()

    def on_train_epoch_start(self, *args: Any) -> None:
        self._draw()

    def on_train_batch_start(self, *args: Any) -> None:
        self._draw()

    def on_train_batch_end(self, *args: Any) -> None:
        self._draw()

    def on_validation_batch_start(self, *args: Any) -> None:
        self._draw()


def _expect(case: TaskCase, what: str, **options: Any) -> None:
    found = case.train(**options).digest
    assert found == case.reference.digest, f"{what} must not change the trained weights, but does"


def check_same_seed_same_weights(case: TaskCase) -> None:
    """Initial weights are a function of the seed, whatever was drawn before."""
    first = state_digest(case.task(seed=1).network.state_dict())
    _pollute()
    assert first == state_digest(case.task(seed=1).network.state_dict()), "one seed must give one set of weights"
    assert first != state_digest(case.task(seed=2).network.state_dict()), "another seed must give other weights"


def check_repeatable(case: TaskCase) -> None:
    """A second training in the same process gives the same bits; one with another seed does not."""
    _expect(case, "Training again")
    other = case.train(seed=43).digest
    assert other != case.reference.digest, "another trainer seed must give other weights: order or steps are not seeded"


def check_workers(case: TaskCase) -> None:
    """Processes that load images, and whether they stay alive, change nothing."""
    for workers in (2, 3):
        _expect(case, f"Loading with {workers} workers", data={"num_workers": workers})
    _expect(case, "Workers that do not persist", data={"num_workers": 2, "persistent_workers": False})


def check_polluted_generators(case: TaskCase) -> None:
    """Whoever drew from the global generators before, or draws meanwhile, changes nothing."""
    _expect(case, "A polluted global generator", pollute=True)
    _expect(case, "A callback that draws random numbers", callbacks=[_Drawing()])


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
    """The loss falls on a few images."""
    losses = case.train(epochs=8).losses
    assert losses[-1] < 0.9 * losses[0], (
        f"the training loss must fall; it went from {losses[0]:.4g} to {losses[-1]:.4g}"
    )


def check_checkpoint(case: TaskCase) -> None:
    """A checkpoint loads without unpickling, and gives the same weights and the same outputs."""
    trained = case.reference
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        path = Path(folder) / "task.ckpt"
        trained.trainer.save_checkpoint(path)
        loaded: Task = Task.load_from_checkpoint(path)
    assert type(loaded) is type(trained.task)
    assert state_digest(loaded.network.state_dict()) == trained.digest, "a loaded checkpoint must have the same weights"
    images = next(iter(trained.data.val_dataloader())).images
    outputs = [state_digest({"output": task.eval().infer(images)}) for task in (trained.task, loaded)]
    assert outputs[0] == outputs[1], "a loaded checkpoint must compute the same outputs"


def check_predict_equals_validate(case: TaskCase) -> None:
    """Validation and prediction see the same network outputs, whichever images stand together in a batch."""
    trained = case.reference
    outputs: list[Tensor] = []

    class Listening(Callback):
        def on_validation_batch_end(self, trainer: Any, task: Any, results: Any, batch: Any, *args: Any) -> None:
            outputs.append(task.infer(batch.images))

    options: dict[str, Any] = {"run_dir": False, "threads": 1, "accelerator": "cpu", "enable_progress_bar": False}
    AutoTrainer(callbacks=[Listening()], **options).validate(trained.task, datamodule=trained.data)
    expected = [one for output in outputs for one in output]
    trained.task.eval()
    table = trained.data.val_dataloader()
    images = torch.cat([batch.images for batch in table])
    with torch.no_grad():
        alone = [trained.task.infer(image[None])[0] for image in images]
        backwards = trained.task.infer(images.flip(0)).flip(0)
    for position, one in enumerate(expected):
        for other, how in ((alone[position], "alone"), (backwards[position], "in another batch")):
            assert state_digest({"": one}) == state_digest({"": other}), f"sample {position} differs {how}"


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
    check_predict_equals_validate,
)
"""Every check, in the order in which they are run."""


def check_task(task: type[Task], *, data: Callable[..., DataModule] | None = None, **arguments: Any) -> None:
    """Run every check on a task class.

    Args:
        task: The class.
        data: Builds a data module from options; by default toy images of three classes.
        arguments: What the constructor needs, such as ``backbone="test_resnet"``.

    Raises:
        AssertionError: If the task breaks its contract; the message says which part.
    """
    with tempfile.TemporaryDirectory() as folder:
        case = TaskCase.of(task, folder=folder, data=data, **arguments)
        for check in CHECKS:
            check(case)
