"""A run: train one with :func:`fit`, then measure, predict, verify, compare, resume or reproduce it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotimm.config import FitConfig
from autotimm.config.record import RECORD, VERSION
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.errors import (
    AutotimmError,
    DataError,
    ModelError,
    UsageError,
    nearest,
    require,
    require_choice,
    require_flags,
    sentence,
)
from autotimm.evidence import Evidence, evidence_path, read_evidence
from autotimm.export.export_result import Export
from autotimm.records.atomic import refuse_sealed
from autotimm.records.checked_levels import level_claims
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.imports import RecordedNames, names_in
from autotimm.records.run_folder import FOLDS, RunFolder, require_files, require_run_folder, write_results
from autotimm.records.run_seal import Seal, write_seal
from autotimm.records.trust import OfRun
from autotimm.report.written_page import Report
from autotimm.runs.check_proof import check_proof
from autotimm.runs.cross_validation import folds_begun, launch_folds, resume_folds
from autotimm.runs.diff import Comparison, compare
from autotimm.runs.embeddings import Embeddings, collecting_features
from autotimm.runs.explain_difference import confirm_difference
from autotimm.runs.extend import extend
from autotimm.runs.fit import launch, leave_report, reproduce, resume_run, train_objects
from autotimm.runs.hub_push import Push
from autotimm.runs.labelled_images import Measured, groups_of_test, keep_test, measure_files, measure_module
from autotimm.runs.output_paths import require_new_file
from autotimm.runs.predict import predict
from autotimm.runs.predict_with_evidence import Wanted, predict_with_evidence
from autotimm.runs.restore import read_config, read_manifest, rebuild_data, trainer_settings
from autotimm.runs.verdict import Verdict
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.progress import say
from autotimm.train.trainer import measuring_trainer
from autotimm.types import ObjectPrediction, PixelPrediction, Prediction

if TYPE_CHECKING:
    from autotimm.runs.explain import Explanation

__all__ = [
    "Run",
    "compare_reports",
    "diff",
    "fit",
    "fit_config",
    "fit_objects",
    "train_on",
]


def fit(path: str | Path | None = None, *, commit: bool = False, **options: Any) -> Run:
    """Train on a folder of images and return the run.

    Args:
        path: A folder of class folders, or of ``train/``, ``val/`` and ``test/``.
        commit: Whether to write and print, before the first step, a digest of data, code, options and seeds, to be
            published; see :mod:`autotimm.records.commitment`.
        options: Any field of :class:`autotimm.FitConfig`, such as ``backbone="resnet50"`` or ``epochs=20``.

    Raises:
        UsageError: If an option is wrong.
        DataError: If the data cannot be used.
        ModelError: If the backbone or its weights cannot be had.
        RunError: If the training fails.
    """
    require_flags("autotimm.fit", commit=commit)
    return fit_config(FitConfig.from_options(path, options), commit=commit)


def fit_config(config: FitConfig, *, commit: bool = False) -> Run:
    """Train from a configuration, in a new run folder; with ``folds`` each of them, and then a model on all images."""
    if config.folds is None or config.fold is not None:
        return Run(launch(config, commit=commit))
    if commit:
        cure = "How long the last training is follows from the folds. Commit to each `fold` by itself."
        raise UsageError(sentence("commit", "fit", "left out with `folds`", commit, cure))
    return Run(launch_folds(config))


def diff(a: str | Path, b: str | Path, *, explain: bool = False, trust: bool = False) -> Comparison:
    """Compare two runs: configuration, environment, data, first differing step, metrics.

    Args:
        a: The folder of a run.
        b: That of another.
        explain: Confirm the cause: replay the first differing step with each factor set back, see ``confirmed`` of the
            comparison. It takes a replay from the nearest checkpoint for each of at most 8 factors.
        trust: With ``explain``: whether classes and functions that the first run names may be imported, see
            :class:`Run`.

    Raises:
        ModelError: If one of them has no record of a run.
    """
    for folder in (a, b):
        require_run_folder(folder)
    run, folders = Run(a, trust=trust), (Path(a), Path(b))
    comparison = compare(*folders)
    if not explain or comparison.difference is None:
        return comparison
    with run.names:
        return replace(comparison, confirmed=confirm_difference(*folders, comparison.difference))


def fit_objects(task: Task, data: DataModule, trainer: AutoTrainer, *, commit: bool = False) -> Run:
    """Train objects that are already built, as a configuration with ``class_path`` does."""
    return Run(train_objects(task, data, trainer, commit=commit))


def compare_reports(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    trust: bool = False,
) -> Report:
    """Make a page that compares runs with the first of them.

    Args:
        folders: The run folders.
        out: Where it is written; by default beside the first run, named after the first two.
        data: Where the images of the first run are now, if they were moved.
        trust: Whether the makers of the runs are trusted, see :class:`Run`.

    Raises:
        ModelError: If one is no run, or they are of different tasks.
        UsageError: If there is a file already where ``out`` says.
        RunError: If the page cannot be written.
    """
    for folder in folders:
        require_run_folder(folder)
    runs = [Run(folder, trust=trust) for folder in folders]
    first = runs[0].path.absolute()
    if out is not None:
        require_new_file(str(out), "out", "report")
    names = f"compare-{first.name}-{runs[1].path.absolute().name}.html"
    path = first.with_name(names) if out is None else Path(out)
    from autotimm.report import compare_runs  # late: a training need not wait for what makes pages and exports

    return compare_runs([run.path for run in runs], path, runs[0]._tables(data))


def train_on(
    run: Run, path: str | Path | None, *, epochs: object, ckpt: str | Path | None, changes: Mapping[str, Any],
    source: str,
) -> Run:  # fmt: skip
    """Train on from a run, see :meth:`Run.extend`; ``source`` is who asked for the changes."""

    def choose(same_data: bool) -> Path:
        return run.checkpoint(ckpt or ("last" if same_data else "best"))

    with RecordedNames(OfRun(run.path, run.trust, given=names_in(changes))):
        return Run(extend(run.path, path, epochs=epochs, choose=choose, changes=changes, source=source))


class Run:
    """A finished run, or one of its checkpoints.

    Args:
        path: A run folder, or a ``.ckpt`` file.
        trust: Whether classes and functions that the run names may be imported, which runs their code. Those of
            autotimm and its libraries need no trust, nor does a run that you made on this machine.

    Raises:
        ModelError: If the path is neither.

    Attributes:
        path: The run folder, or the folder of a checkpoint that stands alone.
        trust: Whether the run's maker is trusted.
    """

    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        path = Path(path)
        path = path.absolute() if os.path.isfile(path) else path  # the folder above must have a name
        self._file = path if os.path.isfile(path) else None
        require_run_folder(path, checkpoint=True)
        inside = self._file is not None and self._file.parent.name == "checkpoints"
        self.path = path if self._file is None else path.parent.parent if inside else path.parent
        if self._file is None or inside:
            require_files(self.path)
        self.trust = trust
        self._folder = RunFolder(self.path, self.path.parent)
        self._per_class: dict[str, dict[str, float]] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self._file or self.path)!r})"

    @property
    def names(self) -> RecordedNames | nullcontext[None]:
        """The context in which the run's records are read: their names are not the user's own.

        For a checkpoint that stands alone it has no effect: the checkpoint itself says what it names.
        """
        if (self.path / "manifest.json").is_file() or (self.path / "config.yaml").is_file():
            return RecordedNames(OfRun(self.path, self.trust))
        return nullcontext()

    @property
    def config(self) -> dict[str, Any]:
        """Every option that the run was made with, or class paths and arguments if it was made from objects.

        The key ``record`` says that the options are a record: ``autotimm.fit(**run.config)`` then knows that they hold
        what recipes and finders chose, beside what somebody asked for.
        """
        config = self._config()
        return {RECORD: VERSION, **config.as_dict()} if isinstance(config, FitConfig) else config

    def _config(self) -> FitConfig | dict[str, Any]:
        return read_config(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the best epoch, and those of the last test."""
        results = self._folder.results()
        return results.get("best", {}) | results.get("test", {})

    @property
    def folds(self) -> dict[str, dict[str, float]]:
        """The metrics of each fold, ``fold-1`` and so on, with its best ``epoch`` and its number of ``images``.

        ``mean`` and ``std`` are those over the folds. Empty for a run without folds.
        """
        return self._folder.results().get(FOLDS, {})

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Values per class that ``validate`` or ``test`` found last, such as ``{"cat": {"AP": 0.5}}``; NaN if unknown.

        Before either was called, those of the last test that was kept. Empty for classification.
        """
        return self._folder.results().get("per_class", {}) if self._per_class is None else self._per_class

    def checkpoint(self, ckpt: str | Path = "best") -> Path:
        """The file of the ``"best"`` or ``"last"`` checkpoint, or any other path."""
        if self._file is not None:
            return self._file
        if str(ckpt) in ("best", "last"):
            folder = self._folder.checkpoints
            ckpt = CheckpointStore(folder).last or "" if str(ckpt) == "last" else folder / "best.ckpt"
            if not os.path.isfile(ckpt):
                raise ModelError(f"The run {self.path} has no checkpoint. {self._why_without_checkpoint()}")
        if not os.path.isfile(ckpt):
            cure = nearest(str(ckpt), ("best", "last")) or "Give one of these."
            raise ModelError(sentence("ckpt", f"the run {self.path}", "best, last or a file", str(ckpt), cure))
        return Path(ckpt)

    def _why_without_checkpoint(self) -> str:
        manifest = self._folder.manifest
        if manifest.exists() and read_manifest(self.path).results.get("status") == "finished":
            return "It is finished, and was made with enable_checkpointing=False."
        return "It was stopped before its first epoch ended."

    def model(self, ckpt: str | Path = "best") -> Task:
        """The trained task, in evaluation mode."""
        with self.names:
            task: Task = Task.load_from_checkpoint(self.checkpoint(ckpt), trust=self.trust)
        return task

    def data(self, place: str | Path | None = None) -> DataModule:
        """The data that the run was made with.

        Args:
            place: Where it is now, if it was moved.

        Raises:
            DataError: If it was made from loaders of the caller's own.
        """
        with self.names:
            return rebuild_data(self.path, place)

    def validate(
        self, data: str | Path | DataModule | None = None, *, ckpt: str | Path = "best", tta: str | None = None
    ) -> dict[str, float]:
        """Measure on the run's validation data, or on other labelled images.

        Args:
            data: A folder with ``val/``, a folder of class folders, a CSV file, or a data module.
            ckpt: Which checkpoint to use.
            tta: Measure the predictions of several views of each image, as for :meth:`test`.

        Raises:
            DataError: If there is no such data, or it has classes that the model does not know.
            UsageError: If the task cannot look at images more than once.
        """
        return self._measure("validate", data, ckpt, tta=tta).metrics

    def test(
        self, data: str | Path | DataModule | None = None, *, ckpt: str | Path = "best", out: str | Path | None = None,
        tta: str | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Measure on the run's test data, or on other labelled images.

        What the best checkpoint reaches on the run's own test data is kept with the run's results; that of several
        views as ``views``, apart from the plain ``test``.

        Args:
            data: A folder with ``test/``, a folder of class folders, a CSV file, or a data module.
            ckpt: Which checkpoint to use.
            out: A new JSON file for the results, in place of the run: a sealed one stays as it is.
            tta: Measure the predictions of several views of each image, as :meth:`predict` makes them: ``"flip"`` or
                ``"multiscale"``. There are no losses then, which are those of logits, and no evidence.

        Returns:
            The metrics, such as ``test/accuracy``, and the losses.

        Raises:
            DataError: If there is no test data. Validation data is never used in its place.
            UsageError: If the run is sealed and there is no ``out``, or that file exists; or if the task cannot look at
                images more than once.
        """
        keeps = out is None and data is None and self._file is None and str(ckpt) == "best"
        if keeps:
            refuse_sealed(self.path, "Give a file for the results with `--out`.")
        if out is not None:
            require_new_file(str(out), "out", "test")
        keeps_evidence = keeps and self._keeps_evidence
        own = self.data() if keeps else None
        measured = self._measure("test", own or data, ckpt, evidence=keeps_evidence, tta=tta)
        if out is not None:
            write_results(Path(out), groups_of_test(measured, tta))
        if keeps:
            keep_test(self._folder, measured, tta)
        if keeps_evidence:
            leave_report(self.path, own)
        return measured.metrics

    def report(self, data: str | Path | None = None, *, out: str | Path | None = None) -> Report:
        """Make the page of the run, ``report.html``, from what is in its folder; a notebook shows what is returned.

        Args:
            data: Where the images are now, if they were moved. Where they cannot be read, the page has no pictures.
            out: A new file for the page, in place of the run: a sealed one stays as it is.

        Raises:
            ModelError: If a file of the run is damaged.
            UsageError: If the run is sealed and there is no ``out``, or that file exists.
            RunError: If the page cannot be written.
        """
        if out is None:
            refuse_sealed(self.path, "Give a file for the page with `--out`.")
        else:
            require_new_file(str(out), "out", "report")
        from autotimm.report import write_report

        return write_report(self.path, self._tables(data), out)

    def _tables(self, data: str | Path | None) -> dict[str, Table] | None:
        """The samples that the run was made with; ``None`` where they cannot be read."""
        try:
            return self.data(data).tables
        except AutotimmError as error:
            say(f"the report has no pictures: {error}")
            return None

    def evidence(self, split: str | None = None) -> Evidence:
        """What the best weights predict for the samples of a split, the truth, and the features in between.

        Of a run with folds, ``"folds"`` has every training sample, predicted by the fold that was validated on it.

        Args:
            split: ``"val"``, ``"test"`` of a run that was tested, or ``"folds"``. ``None`` is ``"folds"`` where there
                are any, else ``"val"``.

        Raises:
            UsageError: If it is another split.
            ModelError: If the run has no such evidence, or it is damaged.
        """
        if split is None:
            split = "folds" if evidence_path(self.path, "folds").exists() else "val"
        require_choice("split", "Run.evidence", split, ("val", "test", "folds"))
        path = evidence_path(self.path, split)
        if not path.exists():
            cures = {"test": "Test it with `autotimm test`.", "folds": "Train it with `folds`."}
            if split == "val" and self.folds:
                cures["val"] = "It has trained on all images: take the evidence of its folds."
            cure = cures.get(split, "Train it with the option `evidence`.")
            raise ModelError(f"The run {self.path} has no evidence of its {split} images. {cure}")
        return read_evidence(path)

    def _measure(
        self, verb: str, data: str | Path | DataModule | None, ckpt: str | Path, *, evidence: bool = False,
        tta: str | None = None,
    ) -> Measured:  # fmt: skip
        with self.names:
            task, trainer = self.model(ckpt), self._trainer()
            if isinstance(data, (str, Path)):
                options = self.config if (self.path / "config.yaml").exists() else None
                trained = self._folder.samples.content_of("train")
                measured = measure_files(task, trainer, verb, data, trained=trained, made=options, tta=tta)
            else:
                measured = measure_module(task, trainer, verb, data or self.data(), evidence=evidence, tta=tta)
        if not measured.metrics:
            raise DataError(f"The run {self.path} has no validation data. It was trained on all images. Give a folder.")
        self._per_class = measured.per_class
        return measured

    @property
    def _keeps_evidence(self) -> bool:
        """Whether the run was made with the option `evidence`."""
        if self._file is not None or not (self.path / "config.yaml").exists():
            return False
        return trainer_settings(self._config()).get("evidence") is True

    def predict(
        self, paths: str | Path | Iterable[str | Path], *, ckpt: str | Path = "best", fast: bool = False,
        threshold: float | None = None, raw: bool = False, coverage: float | None = None,
        embeddings: str | Path | None = None, neighbours: int | None = None, novelty: bool = False,
        tta: str | None = None,
    ) -> list[Prediction | ObjectPrediction | PixelPrediction]:  # fmt: skip
        """Predict images: a file, a folder or a list of either.

        Args:
            paths: What to predict.
            ckpt: Which checkpoint to use.
            fast: Skip the padding of batches. A sample's last bits may then depend on the images beside it.
            threshold: Score in (0, 1) from which on labels or objects are reported, instead of the task's own.
            raw: Leave out the temperature and the thresholds that were fitted on the validation images.
            coverage: Give each image, of one class, a set of classes that contains the true one with this probability,
                as ``members``; see :mod:`autotimm.evidence.conformal`.
            embeddings: A new file, ``.safetensors`` or ``.csv``, for the pooled features of the images, see
                :func:`autotimm.runs.embeddings.write_embeddings`.
            neighbours: Name for each image this many of the run's training images, those with the most similar
                features, as ``neighbours``.
            novelty: Say for each image which share of the validation images is nearer to the training images, as
                ``novelty``; see :func:`autotimm.runs.neighbours.novelties`.
            tta: Look at each image more than once: ``"flip"`` also mirrored, ``"multiscale"`` also at about 3/4 and 5/4
                of its size. Probabilities of classes and pixels are averaged, objects are merged.

        Returns:
            One prediction per image, of the kind of the task: classes, objects, or a class for each pixel.

        Raises:
            DataError: If there is no readable image, or neighbours are asked for and the training images are not those
                that the run was trained on.
            UsageError: If the task has no features of whole images, or the file exists.
        """
        wanted = Wanted(coverage, embeddings, neighbours, novelty)
        wanted.check(tta)
        with self.names:
            return predict_with_evidence(
                self, self.model(ckpt), self._trainer, paths, wanted, ckpt=ckpt,
                is_best=self._file is None and str(ckpt) == "best", fast=fast, threshold=threshold, raw=raw, tta=tta,
            )  # fmt: skip

    def embed(self, paths: str | Path | Iterable[str | Path], *, ckpt: str | Path = "best") -> Embeddings:
        """The pooled features of images: a file, a folder or a list of either.

        They are computed in evaluation batches of one fixed shape, so that an image has the same bits alone or among
        others. Features of different checkpoints cannot be compared.

        Args:
            paths: What to embed.
            ckpt: Which checkpoint to use.

        Returns:
            The ids of the images, and ``float32`` (N, D).

        Raises:
            DataError: If there is no readable image.
            UsageError: If the task has no features of whole images: its network is compiled or of another form, or it
                sees tiles.

        Example:
            ``ids, features = run.embed("photos")``
        """
        with self.names:
            task, trainer = self.model(ckpt), self._trainer()
            with collecting_features(task, trainer) as collected:
                predict(task, paths, trainer=trainer)
        return collected()

    def explain(
        self, paths: str | Path | Iterable[str | Path], out: str | Path | None = None, *, method: str = "auto",
        target: str | None = None, ckpt: str | Path = "best", checks: bool = True,
    ) -> list[Explanation]:  # fmt: skip
        """Show where in each image a score comes from, and measure how far the map can be believed.

        The score is that of the likeliest or given class; of the found object with the highest score; or of the region
        of a class. Images are prepared as for :meth:`predict`, and each is explained by itself. Whatever is random
        comes from named streams: the same call gives the same bytes.

        Args:
            paths: What to explain.
            out: A new or empty folder, for a picture and a map per image and ``explanations.csv``.
            method: ``gradcam``, ``integrated-gradients`` or ``attention-rollout``; ``auto`` is the first of them that
                suits the network.
            target: The class to explain instead of the predicted one.
            ckpt: Which checkpoint to use.
            checks: Whether to measure deletion, insertion and the correlation with maps of shuffled weights, which
                takes about 70 predictions and two more maps per image.

        Returns:
            One explanation per image in which there is something to explain.

        Raises:
            DataError: If there is no readable image, or nothing to explain in any.
            UsageError: If the optional packages are not installed, the method does not suit the network, there is no
                such class, or the folder has something in it.

        Example:
            ``run.explain("photos", "explained")[0].map``
        """
        from autotimm.runs.explain import explain  # late: it imports what predictions do not need

        with self.names:
            task, trainer = self.model(ckpt), self._trainer(inference_mode=False)
            return explain(
                task, paths, trainer, out, method=method, target=target, checks=checks,
                trained=self.path.absolute().name,
            )  # fmt: skip

    def open_for_prediction(self, ckpt: str | Path = "best") -> tuple[Task, AutoTrainer]:
        """The task of a checkpoint, and a quiet trainer with the seed, switches, threads and device of the run.

        Args:
            ckpt: Which checkpoint to use.
        """
        return self.model(ckpt), self._trainer(enable_progress_bar=False)

    def export(
        self, out: str | Path | None = None, *, to: str = "onnx", precision: str = "fp32", ckpt: str | Path = "best",
        data: str | Path | None = None, check: str = "sample", tolerance: float | None = None,
        with_runner: bool = False, paste_masks: bool = False,
    ) -> Export:  # fmt: skip
        """Write the model as a file for another program, compared with the run before it is kept.

        Nothing is written into the run's folder. ``export.json`` beside the file says what was compared.

        Args:
            out: The new file, or for timm the new folder; by default it is called as the run, in the working directory.
            to: ``onnx``, ``torch`` (a program of ``torch.export``), ``openvino`` (an ``.xml`` file with a ``.bin``
                beside it) or ``timm`` (a folder for ``timm.create_model``).
            precision: ``fp32``, ``fp16`` for a network that computes with 16 bits, or ``int8`` for a backbone that
                computes with 8, calibrated on training images; in ONNX and OpenVINO.
            ckpt: Which checkpoint to use.
            data: Labelled images to compare on, as for :meth:`validate`; by default the run's validation images.
            check: ``sample`` compares on 32 images, ``full`` on all, ``seeded`` on images drawn from a seed where the
                data is not on this machine.
            tolerance: The largest allowed difference: of scores and boxes for ``fp32``, by default 1e-4; of metrics for
                ``fp16``, by default 0.01, and of ``int8``, by default 0.02.
            with_runner: Whether to write ``predict.py`` beside an ONNX file, which predicts with it without torch.
            paste_masks: Whether the file returns masks of objects in pixels of the image instead of in their boxes.

        Returns:
            The path of what was written, with the comparison.

        Raises:
            UsageError: If an argument is wrong, something is there already, or optional packages are not installed.
            DataError: If the data is not on this machine.
            ModelError: If the task cannot be exported, or the file disagrees with the run.
        """
        from autotimm.runs.export import export_run

        with self.names:
            return export_run(
                self.path, self.checkpoint(ckpt), lambda: self.model(ckpt), self.data, out, to=to, precision=precision,
                data=data, check=check, tolerance=tolerance, runner=with_runner, paste_masks=paste_masks,
            )  # fmt: skip

    def push(
        self, repository: str, *, upload: bool = False, private: bool = False, license: str | None = None,
        ckpt: str | Path = "best",
    ) -> Push:  # fmt: skip
        """Make a repository of the hub from a classifier: the folder for timm, with a model card made of the record.

        Nothing is sent, and the hub is not asked, without ``upload``.

        Args:
            repository: The repository, as ``owner/name``; it is made if it is not there.
            upload: Whether to send it. The token is that of ``hf auth login``, or ``HF_TOKEN``.
            private: Whether only its owner may see the repository.
            license: The id of the model's license, as the hub writes it; unknown by default.
            ckpt: Which checkpoint to use.

        Returns:
            The files with their sizes, the card, and where it is if it was sent.

        Raises:
            UsageError: If an argument is wrong, or the repository is public and should not be.
            ModelError: If timm has no such model, the hub cannot be reached, there is no token, or it refuses.
        """
        from autotimm.runs.export import push_run

        with self.names:
            return push_run(
                self.path, self.checkpoint(ckpt), lambda: self.model(ckpt), repository, upload=upload, private=private,
                license_id=license,
            )  # fmt: skip

    def verify(
        self,
        *,
        data: str | Path | None = None,
        steps: int | None = None,
        epochs: tuple[int, int] | None = None,
        workers: int | None = None,
        devices: int | None = None,
        threads: int | None = None,
        explain: bool = False,
        stretches: int | None = None,
        budget: float | None = None,
        challenge: int | None = None,
        jobs: int = 1,
        launcher: str = "local",
        key: str | Path | None = None,
        commitment: str | None = None,
    ) -> Verdict:
        """Replay the run in a temporary folder and compare every step and every file.

        Nothing is written into the run's folder. See :func:`autotimm.runs.verify.verify` for the arguments. A sealed
        run is compared with its seal first; ``key`` is a PEM file with the public key of whom the seal must be.
        ``commitment`` is the digest that was published before the run.

        With ``explain`` the cause of a difference is confirmed: the step is replayed with each factor set back, see
        ``confirmed`` of the verdict.

        With ``stretches`` that number of stretches of ``steps`` optimizer steps is drawn with ``challenge``, and
        compared with what rounding alone does on this machine, see :func:`autotimm.runs.stretches.verify_stretches`.
        With ``budget``, a share of the run's steps, as many are drawn as it allows for.

        Raises:
            UsageError: If an argument is wrong, or does not go together with others.
            ModelError: If the folder has no record of a run.
        """
        with self.names:
            return check_proof(
                self.path, key=key, commitment=commitment, stretches=stretches, budget=budget, challenge=challenge,
                jobs=jobs, launcher=launcher, data=data, steps=steps, epochs=epochs, workers=workers, devices=devices,
                threads=threads, explain=explain,
            )  # fmt: skip

    def seal(self, key: str | Path | None = None) -> Seal:
        """Bind every file of the run: from then on nothing writes into it, and :meth:`verify` finds any change.

        Args:
            key: A PEM file with a private key of an elliptic curve, which signs (an OpenSSF model signature,
                ``model.sig``); ``None`` for digests alone.

        Raises:
            UsageError: If the run is sealed, the key cannot be used, or the extra ``proof`` is not installed.
            ModelError: If the run is a checkpoint alone, or has files that a seal cannot bind.
        """
        if read_manifest(self.path).results.get("status") != "finished":
            say(f"{self.path} has not finished, and cannot be resumed once it is sealed")
        return write_seal(self.path, key)

    def level(self) -> dict[str, str]:
        """What the run may claim, for R0 to R7: ``checked``, ``expected`` or ``no, because ...``.

        ``checked`` is what this user has verified on this machine; see :mod:`autotimm.records.checked_levels`.
        """
        read_manifest(self.path)  # its error says what to give instead
        return level_claims(self.path)

    def resume(
        self, *, data: str | Path | None = None, workers: int | None = None, devices: int | None = None,
        threads: int | None = None, drop: str | Sequence[str] = (),
    ) -> Run:  # fmt: skip
        """Resume an interrupted run, bit for bit as if it had not been interrupted.

        Of a run with folds, those that are finished are not trained again.

        Args:
            data: Where the data is now, if it was moved.
            workers: Number of loading processes in place of the recorded one; it never changes a result.
            devices: Number of devices or processes in place of the recorded one, for a run with ``shards``.
            threads: Number of threads in place of the recorded one, for a run that is ``portable``.
            drop: Ids of samples to leave out since their files cannot be read, see
                :meth:`autotimm.data.module.DataModule.drop`.

        Raises:
            UsageError: If ``devices`` are given for a run without ``shards``, ``threads`` for one that is not portable,
                or a sample cannot be dropped.
            ModelError: If the run was made from objects that no file holds.
            DataError: If its data is not what it was.
            UsageError: If the run is sealed.
        """
        refuse_sealed(self.path, "Train on from it with `autotimm extend`, as a new run.")
        if self._folder.manifest.exists() and read_manifest(self.path).results.get("status") == "finished":
            require(not drop, "drop", "resume", "left out of a finished run", drop, "Test it on a folder without them.")
            say(f"{self.path} is finished: there is nothing to resume")
            return self
        with self.names:
            if not folds_begun(self.path):
                given: dict[str, Any] = {"devices": devices, "threads": threads}
                return Run(resume_run(self._folder, data=data, workers=workers, drop=drop, **given), trust=self.trust)
            do = "They are trained on one."
            require(devices is None, "devices", "resume", "left out with folds", devices, do)
            do = "They are trained with the recorded number."
            require(threads is None, "threads", "resume", "left out with folds", threads, do)
            return Run(resume_folds(self._folder, data=data, workers=workers, drop=drop), trust=self.trust)

    def reproduce(self, out: str | Path | None = None, *, data: str | Path | None = None) -> Run:
        """Train the run again, in a run folder of its own.

        Of a run with folds that is the training on all images; each fold is a run that can be made again by itself.

        Args:
            out: The new run's folder; by default the next free number beside this one.
            data: Where the data is now, if it was moved.
        """
        with self.names:
            return Run(reproduce(self.path, out, data=data), trust=self.trust)

    def extend(
        self, path: str | Path | None = None, *, epochs: int | str, ckpt: str | Path | None = None, **changes: Any
    ) -> Run:
        """Train on from this finished run, as a new run with a learning-rate schedule of its own.

        The new run begins with the weights of a checkpoint of this one, which its manifest names, and has its options.
        Order and augmentation are drawn from new seeds, and the split stays as it is.

        Args:
            path: Other data to fine-tune on, a folder or a table; ``None`` for the run's own. Where its classes differ,
                the weights that depend on them begin anew.
            epochs: Epochs to train: ``10`` and ``"+10"`` mean the same.
            ckpt: ``"last"`` or ``"best"``; ``None`` is the last on the same data, where training goes on, and the best
                on other data.
            changes: Any options of :func:`autotimm.fit` with other values than this run's, but for those that decide
                the network.

        Raises:
            UsageError: If an option is wrong, or would change the network.
            ModelError: If the run is not finished, or its weights do not fit.
            DataError: If the data cannot be used.

        Example:
            ``run.extend(epochs="+10", lr=1e-4)``, or ``run.extend("other-photos", epochs=20)``
        """
        return train_on(self, path, epochs=epochs, ckpt=ckpt, changes=changes, source="argument")

    def _trainer(self, **settings: Any) -> AutoTrainer:
        """A trainer with the seed, switches and threads of the run."""
        has_options = (self.path / "config.yaml").exists()
        return measuring_trainer(trainer_settings(self._config()) if has_options else {}, **settings)
