"""The trainer: Lightning's, with named streams, fixed switches and threads, and a run folder."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, get_args, get_type_hints

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from typing_extensions import Unpack

from autotimm.constants import RECIPES
from autotimm.data.data_facts import Snapshot
from autotimm.data.loader import KeyedLoader
from autotimm.data.module import DataModule
from autotimm.errors import (
    UsageError,
    is_whole,
    number,
    refuse_unknown,
    require,
    require_choice,
    require_flags,
    sentence,
)  # fmt: skip
from autotimm.metrics import choose_monitor
from autotimm.records.checkpoint_store import check_keep
from autotimm.records.code_digest import code_digest, describe_code
from autotimm.records.ledger import Line
from autotimm.records.run_folder import RunFolder
from autotimm.repro.seed import (
    default_threads,
    fixed_threads,
    preserve_switches,
    root_seed,
    seed_everything,
    set_deterministic,
)
from autotimm.repro.streams import preserve_generators
from autotimm.tasks import Task
from autotimm.tasks.start import CHECKPOINT, Start
from autotimm.train.callbacks.candidates import Candidates
from autotimm.train.callbacks.epoch_metrics import EpochMetrics, MetricsTable, SharedLosses, Watched
from autotimm.train.callbacks.recorder import Recorder
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint, read_interval
from autotimm.train.lightning_compat import (
    KeyedSteps,
    NoProfiler,
    clear_failures,
    clear_misuse,
    defaults_from_environment,
    on_streams_of,
    quiet,
    seeded_devices,
)
from autotimm.train.machine_limits import machine_problem, require_machine_for
from autotimm.train.portable import PortablePrecision, build_portably, computing_portably
from autotimm.train.portable import check_trainer as check_portable
from autotimm.train.progress import make_progress, say
from autotimm.train.resume import Beginning, beginning_of, checkpoint_file, frozen_by_hand, take_found
from autotimm.train.run_lifecycle import declare, ending, keep_start, naming_the_resume, open_run
from autotimm.train.sharded import ShardedStrategy, check_trainer, least_in_shard
from autotimm.train.stop_request import SharedSignals, StopRequest
from autotimm.train.tuner import TunerConfig, tune

__all__ = ["AutoTrainer", "TrainerOptions", "measuring_trainer"]

_Kind = TypeVar("_Kind", bound=Callback)


class TrainerOptions(TypedDict, total=False):
    """The arguments of Lightning's trainer that :class:`AutoTrainer` passes on; a test compares them with Lightning."""

    accelerator: str | Accelerator
    strategy: str | Strategy
    devices: list[int] | str | int
    num_nodes: int
    precision: int | str | None
    logger: Logger | Iterable[Logger] | bool | None
    callbacks: list[Callback] | Callback | None
    fast_dev_run: int | bool
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: str | timedelta | dict[str, int] | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    limit_test_batches: int | float | None
    limit_predict_batches: int | float | None
    overfit_batches: int | float
    val_check_interval: int | float | str | timedelta | dict[str, int] | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | None
    log_every_n_steps: int | None
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    accumulate_grad_batches: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: str | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    profiler: Profiler | str | None
    detect_anomaly: bool
    barebones: bool
    plugins: Any
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: int
    default_root_dir: str | Path | None
    enable_autolog_hparams: bool
    model_registry: str | None


@cache
def _may_be_none() -> set[str]:
    """The arguments of Lightning's trainer for which it takes ``None``; of others it fails in the middle of a run."""
    hints = get_type_hints(TrainerOptions)
    return {name for name, hint in hints.items() if hint is Any or type(None) in get_args(hint)}


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse wrong arguments of an :class:`AutoTrainer`, but for those that Lightning checks itself.

    Raises:
        UsageError: If one is wrong.
    """

    def check(name: str, fine: bool, must: str, do: str) -> None:
        require(fine, name, "AutoTrainer", must, given[name], do)

    threads, recipe, shards = given["threads"], given["recipe"], given["shards"]
    calibrate, deterministic = given["calibrate"], given["deterministic"]
    read_interval(given["checkpoint_every"])
    check("threads", threads is None or is_whole(threads, 1), "an integer of at least 1 or None", "Give None.")
    if problem := machine_problem(threads, given.get("devices"), given.get("accelerator")):
        raise UsageError(f"{problem} Give less.")
    epochs, tuner = given["max_epochs"], given["tuner"]
    check("max_epochs", epochs is None or is_whole(epochs, -1), "an integer, -1 or None", "Give for example 10.")
    fine = tuner is None or isinstance(tuner, TunerConfig)
    check("tuner", fine, "a TunerConfig or None", "Give for example TunerConfig(lr=True).")
    require_choice("recipe", "AutoTrainer", recipe, RECIPES)
    saves = given.get("enable_checkpointing") is not False
    must = "plain without checkpoints, of which it keeps the best"
    check("recipe", recipe == "plain" or saves, must, "Leave `enable_checkpointing` out.")
    require_flags("AutoTrainer", **{name: given[name] for name in ("use_autotimm_seeding", "evidence", "portable")})
    must, do = "True, False or 'warn'", "Give True for equal bits every time."
    check("deterministic", deterministic in (True, False, "warn"), must, do)
    fine = calibrate in ("f1", None) or 0 < number(calibrate) < 1
    check("calibrate", fine, "f1, a precision in (0, 1) or None", "Give for example f1.")
    check("shards", shards is None or is_whole(shards, 1), "an integer of at least 1 or None", "Give for example 4.")
    if shards is not None:
        check_trainer(shards, given)
    if given["portable"]:
        check_portable(given)


_ONLY_WHERE_GIVEN = {"evidence": False, "calibrate": None, "recipe": "plain", "shards": None, "portable": False}
"""Arguments that are recorded where they have another value: the records of versions without them stay the same."""


def _recorded_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a trainer that its run records, in this order."""
    return {
        name: value
        for name, value in given.items()
        if name not in ("run_dir", "tuner") and not (name in _ONLY_WHERE_GIVEN and value == _ONLY_WHERE_GIVEN[name])
    }


class _Constructed(NamedTuple):
    """What a trainer was constructed with: its arguments, and the states of Lightning's own callbacks."""

    arguments: dict[str, Any]
    states: list[tuple[Callback, dict[str, Any]]]


def _is_lightnings(callback: Callback) -> bool:
    return type(callback).__module__.startswith("pytorch_lightning.")


class AutoTrainer(pl.Trainer):
    """Lightning's trainer, reproducible by default and with a run folder.

    It takes every argument of ``pytorch_lightning.Trainer``. Environment variables ``PL_TRAINER_<NAME>`` and
    ``PL_AUTOTRAINER_<NAME>`` stand in for arguments that are not given.

    Args:
        max_epochs: Epochs to train.
        seed: Root seed of order, augmentation, steps and evaluation, in [0, 2**32). ``None`` draws one from Python's
            ``random``, records it, and leaves the global generators as it found them.
        deterministic: Whether to require deterministic kernels while this trainer runs; ``"warn"`` only warns of
            others.
        use_autotimm_seeding: Seed the global generators with :func:`autotimm.seed_everything` instead of Lightning's
            function of that name. Neither affects autotimm's own tasks, which draw from named streams.
        threads: CPU threads to compute with; ``None`` is the number of physical cores, at most 8. At most 4 per core.
        run_dir: The run folder of a ``fit``; ``None`` is the next free ``runs/<data>-NNN`` below ``default_root_dir``.
            ``False`` writes none.
        monitor: The logged value that selects the best checkpoint, such as ``"val/loss"``; ``None`` is the task's own.
        tuner: Find a learning rate or a batch size first, see :class:`autotimm.TunerConfig`.
        checkpoint_every: Write checkpoints within epochs too: after a number of optimizer steps (``500``), or a time
            (``"10min"``). A run that is killed loses what came after the last one.
        keep: Which checkpoints to keep: ``"last"``, ``"epochs"``, a number of ends of epochs, or ``"auto"`` for every
            end of an epoch up to 2 GB, thinned evenly beyond. The best and the newest two are always kept.
        recipe: ``plain`` trains from the weights that the task has. ``auto`` first fits the head to features of the
            pretrained backbone, and keeps what validates best at the end: that, an epoch or an average of epochs.
            ``probe`` stops after the head. See :mod:`autotimm.train.callbacks.candidates`.
        evidence: Whether a ``fit`` keeps what the best weights predict for the validation samples, see
            :mod:`autotimm.evidence`. Its digest stands in the last line of the ledger.
        calibrate: Fit a temperature, and thresholds per class where there are any, to the evidence, for predictions:
            thresholds for ``"f1"``, or for a precision in (0, 1). ``None`` fits nothing, as a run without evidence.
        shards: Cut each training batch into so many shards, a multiple of the number of processes, on which the bits
            then do not depend. The batch size is that of the whole. A shard has its own statistics of batch
            normalization and its own random numbers; its loss is weighted by its share of the images. ``None`` trains
            on a batch at once, and in several processes on one batch for each.
        portable: Compute with operators whose bits are the same for every number of threads and every instruction set,
            several times slower. For the tasks of autotimm on the CPU; what is not known to hold is refused. Evidence
            is not calibrated. See :mod:`autotimm.train.portable`.
        kwargs: Arguments of ``pytorch_lightning.Trainer``. Checkpoint callbacks among the ``callbacks`` are additional
            to the run's own checkpoints. ``logger`` is off unless given, since ``metrics.csv`` is
            always written.

    Raises:
        UsageError: If an argument is wrong.

    Example:
        >>> from autotimm import AutoTrainer
        >>> trainer = AutoTrainer(max_epochs=1, accelerator="cpu")
        >>> trainer.seed, trainer.deterministic
        (42, True)
    """

    @defaults_from_environment
    def __init__(
        self,
        max_epochs: int | None = 10,
        *,
        seed: int | None = 42,
        deterministic: bool | Literal["warn"] = True,
        use_autotimm_seeding: bool = False,
        threads: int | None = None,
        run_dir: str | Path | bool | None = None,
        monitor: str | None = None,
        tuner: TunerConfig | None = None,
        checkpoint_every: str | int | None = None,
        keep: str | int = "auto",
        recipe: Literal["auto", "plain", "probe"] = "plain",
        evidence: bool = False,
        calibrate: str | float | None = "f1",
        shards: int | None = None,
        portable: bool = False,
        **kwargs: Unpack[TrainerOptions],
    ) -> None:
        given: dict[str, Any] = {
            "max_epochs": max_epochs, "seed": seed, "deterministic": deterministic, "threads": threads,
            "use_autotimm_seeding": use_autotimm_seeding, "run_dir": run_dir, "monitor": monitor, "tuner": tuner,
            "checkpoint_every": checkpoint_every, "keep": keep, "evidence": evidence, "calibrate": calibrate,
            "recipe": recipe, "shards": shards, "portable": portable, **kwargs,
        }  # fmt: skip
        _check_arguments(given)
        self.shards, self.least_in_shard, self.portable = shards, 1, portable
        self.root_seed = root_seed(seed, "AutoTrainer")
        self.seed, self.deterministic, self.use_autotimm_seeding = seed, deterministic, use_autotimm_seeding
        self.threads = threads or default_threads()
        self.tuner = tuner
        self.stop = StopRequest()
        self.listener: Callable[[Line], None] | None = None  # a replay gets each line of the ledger as it is written
        self.start: Start | None = None  # what a run that is built again, or extended, starts from
        self.complete_record: Callable[[], None] | None = None  # writes what is known only after the last step
        self.commits = False  # whether to write and print what the run is committed to, before its first step
        self.hashes_anew = False  # whether digests of images that are remembered are not enough
        self.checkpoint_every, self.keep, self.evidence = checkpoint_every, check_keep(keep), evidence
        # What is fitted to evidence comes from SciPy and NumPy, whose last bits are those of a processor.
        self.calibrate = calibrate if evidence and not portable else None
        self.recipe = recipe
        self.resumed_as: Path | None = None  # the run of which this one is a fold, which is what is resumed
        self.recipe_note = ""  # for the header of the run
        self.searched: Mapping[str, Any] | None = None  # what a search before the training has tried and chosen
        self.arguments = _recorded_arguments(given | {"threads": self.threads, "calibrate": self.calibrate})
        if shards is not None:
            kwargs["strategy"] = ShardedStrategy(shards)
        if portable:
            kwargs |= {"accelerator": "cpu", "devices": 1, "precision": None, "plugins": [PortablePrecision()]}
        plain = kwargs.get("barebones") or kwargs.get("fast_dev_run")
        self.run_folder = RunFolder.choose(False if plain else run_dir, kwargs.get("default_root_dir"))
        kwargs["callbacks"] = self._callbacks(kwargs, monitor)
        kwargs.setdefault("logger", False)
        kwargs["profiler"] = kwargs.get("profiler") or NoProfiler()
        if not kwargs.get("barebones"):
            kwargs.setdefault("enable_model_summary", False)
        unknown = [name for name in kwargs if name not in inspect.signature(pl.Trainer).parameters]
        refuse_unknown(unknown, "AutoTrainer", inspect.signature(AutoTrainer).parameters)
        for name in (name for name, value in kwargs.items() if value is None and name not in _may_be_none()):
            raise UsageError(sentence(name, "AutoTrainer", "a value", None, "Leave it out for Lightning's default."))
        # Lightning sets switches when it is constructed; here they are set while the trainer runs, and restored.
        with quiet(), preserve_switches(), clear_misuse():
            # Unwrapped: Lightning would read PL_AUTOTRAINER_* again, and pass on those that are ours alone.
            construct: Any = inspect.unwrap(pl.Trainer.__init__)
            construct(self, max_epochs=max_epochs, deterministic=deterministic, **kwargs)
        self._signal_connector = SharedSignals(self, self.stop)
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]  # set at run time
        states = [(each, deepcopy(each.state_dict())) for each in callbacks if _is_lightnings(each)]
        self._as_constructed = _Constructed(given, states)

    def _begin_anew(self) -> None:
        """Return to the state after the constructor, so that another run takes the next free folder.

        Otherwise Lightning would count on from the epochs that are done, and train nothing. Callbacks of the caller's
        own stay as they are.
        """
        constructed = self._as_constructed
        AutoTrainer.__init__(self, **constructed.arguments)
        self._as_constructed = constructed  # with the states of callbacks before they were used
        for callback, state in constructed.states:
            callback.load_state_dict(deepcopy(state))

    def _callbacks(self, kwargs: TrainerOptions, monitor: str | None) -> list[Callback]:
        given = kwargs.get("callbacks") or []
        callbacks = [given] if isinstance(given, Callback) else list(given)
        # Now, as they were given: while they train, callbacks hold the trainer, and with it clocks and addresses.
        self.callback_digests = {describe_code(type(each))["name"]: code_digest(each) for each in callbacks}
        self.shows_progress = bool(kwargs.get("enable_progress_bar", True))
        if kwargs.get("barebones"):
            return callbacks
        epochs = EpochMetrics()
        recorder = Recorder(epochs)
        callbacks.insert(0, SharedLosses())
        callbacks += [KeyedSteps(self.root_seed), epochs, recorder, MetricsTable(epochs)]
        if self.shows_progress and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(make_progress(epochs))
        saves = kwargs.get("enable_checkpointing") is not False
        if saves and not any(isinstance(callback, RunCheckpoint) for callback in callbacks):
            # After those of the caller's own, whose states it stores.
            callbacks.append(
                RunCheckpoint(epochs, monitor, every=self.checkpoint_every, keep=self.keep, stop=self.stop)
            )
        if self.recipe != "plain":
            _choose_among_candidates(callbacks, Candidates(self.recipe, epochs, recorder))
        return callbacks

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: Any = None,
        weights_only: bool | None = True,
    ) -> None:
        """Train, as ``pytorch_lightning.Trainer.fit`` does, and write a run folder.

        With ``ckpt_path="last"`` the run in the folder is resumed, and must have the arguments that it began with. With
        a checkpoint of another run a new run begins, which keeps that checkpoint. A second ``fit`` of a trainer without
        a ``run_dir`` begins at the first epoch again, in the next free folder.

        Raises:
            UsageError: If a run is resumed with other arguments than it began with.
            ModelError: If there is no such checkpoint, or the run is finished.
            RunError: If the loss of a task is not finite, the device is out of memory or the disk is full.
            DataError: If the data cannot be used, or files of it changed while the run trained. In that case the run is
                finished and its folder complete.
            KeyboardInterrupt: On Ctrl-C.
        """
        data = datamodule or train_dataloaders
        if ckpt_path is None and self._as_constructed.arguments["run_dir"] is None and self.run_folder.begun:
            self._begin_anew()
        resumable = nullcontext() if self.listener else naming_the_resume(self.run_folder, data, self.resumed_as)
        with self._session(model, data, val_dataloaders), self.stop.listening(), resumable:
            beginning = beginning_of(self, ckpt_path)
            again = beginning.resumes or ckpt_path == "last"
            if self.portable and isinstance(model, Task):
                build_portably(model, draw=not beginning.resumes and self.start is None)
            found = self.tuner is not None and again and take_found(self, model, data)
            if self.tuner is not None and not found and beginning.checkpoint is None:
                tune(self, model, data, self.tuner)
            if isinstance(model, Task) and isinstance(data, DataModule):
                model.check_data(data.spec)  # before there is a folder, which would block a second attempt
                self._check_shares(data)
                self._check_dropped(data)
            if self.shards is not None:
                self._cut_batches(model, data)
            if self.recipe != "plain":
                self._only(Candidates).require_head(model, data)
            with ending(self, resume=again) as run, clear_failures():  # the run's end must know the error
                run.snapshot = self._open(model, data, beginning, again)
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, beginning.checkpoint, weights_only)

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The callback that writes the run's checkpoints, also beside others that were given."""
        return next((each for each in self.checkpoint_callbacks if isinstance(each, RunCheckpoint)), None) or next(
            iter(self.checkpoint_callbacks), None
        )

    def _only(self, kind: type[_Kind]) -> _Kind:
        """Our callback of a class."""
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]  # set at run time
        return next(callback for callback in callbacks if isinstance(callback, kind))

    def validate(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = False,
        datamodule: pl.LightningDataModule | None = None,
        weights_only: bool | None = True,
    ) -> Any:
        """Measure on validation data, as ``pytorch_lightning.Trainer.validate`` does, without printing a table."""
        return self._measure(super().validate, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = False,
        datamodule: pl.LightningDataModule | None = None,
        weights_only: bool | None = True,
    ) -> Any:
        """Measure on test data, as ``pytorch_lightning.Trainer.test`` does, without printing a table."""
        return self._measure(super().test, model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def _measure(self, run: Any, model: Any, loaders: Any, ckpt: Any, verbose: bool, data: Any, plain: Any) -> Any:
        with self._session(self.lightning_module if model is None else model, data or loaders):
            return run(model, loaders, checkpoint_file(self, ckpt), verbose, data, plain)

    def predict(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: Any = None,
        weights_only: bool | None = True,
    ) -> Any:
        """Predict, as ``pytorch_lightning.Trainer.predict`` does."""
        with self._session(self.lightning_module if model is None else model, datamodule or dataloaders):
            checkpoint = checkpoint_file(self, ckpt_path)
            return super().predict(model, dataloaders, datamodule, return_predictions, checkpoint, weights_only)

    def _open(self, model: pl.LightningModule, data: Any, beginning: Beginning, again: bool) -> Snapshot | None:
        """Open the run folder, and tell the callbacks where it is and which value to monitor.

        Returns:
            What tells at the end which files have changed; ``None`` where nobody is to be told.
        """
        callback = self.checkpoint_callback
        if isinstance(callback, RunCheckpoint) and isinstance(model, Task):
            asked, callback.watched = callback.asked, Watched(callback.asked)
            callback.monitor, callback.mode = choose_monitor(model.metric_configs, asked) if asked else model.monitor
        if not self.run_folder.enabled:
            return None
        snapshot = None
        self._refuse_shared_folder()
        self._only(Recorder).followed = self.listener is not None
        ours = data if isinstance(data, DataModule) else None
        if self.is_global_zero:
            snapshot = open_run(self.run_folder, model, ours, self, resume=again)
        if self.run_folder.chosen is None:
            return None  # process 0 chooses its number; RunCheckpoint.setup tells the others
        folder = self.run_folder
        if isinstance(callback, RunCheckpoint):
            callback.folder = folder.checkpoints
        self._only(MetricsTable).path = folder.path / "metrics.csv"
        if self.is_global_zero:
            recorder = self._only(Recorder)
            recorder.write_to(folder.ledger, self.listener)
            start = None if beginning.resumes else keep_start(folder, self, model, beginning.checkpoint)
            recorder.begins = start is not None and start.kind == CHECKPOINT and start.is_file(beginning.checkpoint)
            frozen, resumes = frozen_by_hand(model), beginning.resumes
            recorder.declare = partial(declare, folder, self, model, ours, start, frozen, resumes=resumes)
        self.start = None  # of this fit alone
        return snapshot if self.listener is None else None  # who replays a run looks after its data

    def _check_shares(self, data: DataModule) -> None:
        """Refuse fewer images than processes, which take part in every step, before any is started."""
        if self.shards is not None:
            return
        evaluates = self.limit_val_batches
        for split in ("train", *(("val",) if evaluates else ())):
            images = len(data.tables[split]) if split in data.tables else self.world_size
            must = f"at most {images}, the number of {split} images"
            require(images >= self.world_size, "devices", "AutoTrainer", must, self.world_size, "Use fewer.")

    def _check_dropped(self, data: DataModule) -> None:
        """Refuse to leave out validation samples where not all are used: which others are would change."""
        part = self.limit_val_batches not in (None, 1.0)
        must = "ids of training or test samples where `limit_val_batches` is given"
        require(
            not (part and "val" in data.dropped), "drop", "resume", must, data.dropped.get("val"),
            "Train again on data without them.",
        )  # fmt: skip

    def _cut_batches(self, model: pl.LightningModule, data: object) -> None:
        """Refuse what cannot be cut into shards, and say which images are left out."""
        if not isinstance(model, Task) or not isinstance(data, DataModule):
            must = "None for a task or data of your own, whose batches it cannot cut"
            raise UsageError(sentence("shards", "AutoTrainer", must, self.shards, "Leave it out."))
        assert self.shards is not None
        self.least_in_shard = least = least_in_shard(model, self.recipe)
        images, fewest = len(data.tables["train"]), self.shards * least
        batch = min(data.batch_size, images)
        why = ", which normalizes by the statistics of a shard" if least > 1 else ""
        must = f"at most {batch // least}: a batch has {batch} images, and each shard needs {least}{why}"
        require(batch >= fewest, "shards", "AutoTrainer", must, self.shards, "Give less, or a larger batch size.")
        rest = images % data.batch_size
        if images > batch and 0 < rest < fewest and least > 1 and not data.drop_last:
            data.notices.append(
                f"the last {rest} of {images} images are left out of each epoch, others each time: they are too few "
                f"for {self.shards} shards with batch normalization"
            )

    def _refuse_shared_folder(self) -> None:
        """Refuse another callback that would write into the folder of the run's own checkpoints."""
        ours = self.run_folder.chosen and self.run_folder.checkpoints.resolve()
        for callback in self.checkpoint_callbacks:
            folder = callback.dirpath if isinstance(callback, ModelCheckpoint) else None
            if folder and Path(folder).resolve() == ours:
                must = "another folder than that of the run's own checkpoints"
                raise UsageError(sentence("dirpath", "ModelCheckpoint", must, str(folder), "Leave it out."))

    @contextmanager
    def _session(self, model: Any, *data: Any) -> Iterator[None]:
        """Set the seeds, switches, threads and streams of this trainer while it runs."""
        if isinstance(model, Task) and model.deterministic is not bool(self.deterministic):
            warnings.warn(
                f"The task was built with deterministic={model.deterministic} and the trainer with "
                f"deterministic={self.deterministic}; the trainer's is used while it runs. Give both the same.",
                stacklevel=4,
            )
        with ExitStack() as stack:
            for context in (quiet(), clear_failures(), preserve_switches(), fixed_threads(self.threads)):
                stack.enter_context(context)
            if self.seed is None:
                stack.enter_context(preserve_generators(seeded_devices(self)))
            elif self.use_autotimm_seeding:
                seed_everything(self.seed, bool(self.deterministic))
            else:
                pl.seed_everything(self.seed, workers=True, verbose=False)
            set_deterministic(bool(self.deterministic))
            if self.deterministic == "warn":
                torch.use_deterministic_algorithms(True, warn_only=True)
            for part in (model, *data):
                if isinstance(part, (Task, DataModule)):
                    stack.enter_context(on_streams_of(part, self.root_seed))
                # The garbage collector takes ten seconds for each worker, and Lightning ends none after an error.
                if isinstance(part, DataModule):
                    stack.callback(part.end_loading)
                elif isinstance(part, KeyedLoader):
                    stack.callback(part.close)
            if self.portable:
                stack.enter_context(computing_portably(model))
            yield


def _choose_among_candidates(callbacks: list[Callback], candidates: Candidates) -> None:
    """Add the callback before that which writes checkpoints, and let the others know of it."""
    checkpoints = next(callback for callback in callbacks if isinstance(callback, RunCheckpoint))
    callbacks.insert(callbacks.index(checkpoints), candidates)
    checkpoints.pinned = candidates.members
    candidates.recorder.choose_best = candidates.choose


_KEPT = ("seed", "deterministic", "threads", "accelerator", "precision", "portable")


def measuring_trainer(recorded: Mapping[str, Any], **others: Any) -> AutoTrainer:
    """Return a trainer to measure and predict with a run: it writes no files.

    Args:
        recorded: The arguments of the run's own trainer, of which seed, switches, threads and device are used. A device
            that this machine lacks is replaced by another, with a line that says so.
        others: Further arguments of the trainer.
    """
    require_machine_for({"threads": recorded.get("threads")})
    # One device: several would each see all images, as the loaders of evaluation are not split.
    settings: dict[str, Any] = {"run_dir": False, "enable_checkpointing": False, "devices": 1, **others}
    settings |= {name: recorded[name] for name in _KEPT if name in recorded}
    asked = settings.get("accelerator", "auto")
    try:
        return AutoTrainer(**settings)
    except UsageError:
        if asked in ("auto", "cpu"):
            raise
    trainer = AutoTrainer(**settings | {"accelerator": "auto"})
    device = trainer.strategy.root_device.type
    say(f"the run was made with accelerator {asked}, which this machine lacks; using {device}")
    return trainer
