"""Run folders that commit 54d10b0 made: whatever is moved or renamed, they must load, predict and test.

Streams and pipeline have other versions since, so `verify` and `resume` name the release that replays them.
Import paths are data: they stand in `config.yaml`, in manifests and in checkpoints. See `fixtures/README.md`.
Only public names are used here, since the modules behind them are what changes.
"""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.transforms import v2

import autotimm
from autotimm.serialization import import_object
from recorded_data import draw

RUNS = Path(__file__).parent / "fixtures" / "runs" / "v1"
FOLDERS = sorted(path.parent.relative_to(RUNS).as_posix() for path in RUNS.glob("*/*/manifest.json"))
# A run that was killed in its first epoch has no best checkpoint yet.
MEASURED = [name for name in FOLDERS if (RUNS / name / "checkpoints" / "best.ckpt").is_symlink()]
STOPPED = [name for name in FOLDERS if name.endswith("/stopped")]
# Its training transforms are an object, which no file holds.
REPLAYED = [name for name in MEASURED if not name.startswith("transforms/")]

# The import paths of autotimm in `config.yaml`, manifests and checkpoints of the folders.
RECORDED_PATHS = {
    "autotimm.data.detection.DetectionDataModule",
    "autotimm.data.image.ImageDataModule",
    "autotimm.data.instance.InstanceSegmentationDataModule",
    "autotimm.data.segmentation.SegmentationDataModule",
    "autotimm.losses.FocalLoss",
    "autotimm.losses.dense.PixelFocalLoss",
    "autotimm.metrics.MeanAP",
    "autotimm.metrics.RegionScores",
    "autotimm.tasks.classification.ImageClassifier",
    "autotimm.tasks.detection.ObjectDetector",
    "autotimm.tasks.instance.InstanceSegmentor",
    "autotimm.tasks.segmentation.SemanticSegmentor",
}
# Others that records of 54d10b0 can hold: arguments that were given as a class, a function or an import path.
POSSIBLE_PATHS = {
    "autotimm.AutoTrainer",
    "autotimm.DetectionDataModule",
    "autotimm.ImageClassifier",
    "autotimm.ImageDataModule",
    "autotimm.InstanceSegmentationDataModule",
    "autotimm.InstanceSegmentor",
    "autotimm.ObjectDetector",
    "autotimm.SegmentationDataModule",
    "autotimm.SemanticSegmentor",
    "autotimm.losses.dense.PixelCrossEntropy",
    "autotimm.metrics.scores.MeanAP",
    "autotimm.metrics.scores.RegionScores",
    "autotimm.train.trainer.AutoTrainer",
    "autotimm.train.tuner.TunerConfig",
}

PUBLIC = {
    "autotimm": """
        AutoTrainer AutotimmError Batch DataError DataModule DataSpec DetectionDataModule DifferentError FitConfig
        ImageClassifier ImageDataModule InstanceSegmentationDataModule InstanceSegmentor MetricConfig ModelError
        ObjectDetector ObjectPrediction PixelPrediction Prediction Run RunError Sample SegmentationDataModule
        SemanticSegmentor Stage Step Study Task TunerConfig UsageError WeightsError diff fit list_backbones
        seed_everything study config data errors losses metrics models optim repro tasks testing types __version__""",
    "autotimm.config": """
        COMMAND_LINE NESTED_KEYS FitConfig Option defaults meant options read_yaml write_scalar""",
    "autotimm.data": """
        AUGMENTATIONS DataModule ImageDataModule ImageTable KeyedDataset KeyedLoader Subset Table toy_images
        write_toy_folder""",
    "autotimm.doctor": "Finding Operator judge preflight",
    "autotimm.errors": """
        AutotimmError DataError DifferentError ModelError RunError UsageError WeightsError""",
    "autotimm.losses": "LOSSES MULTI_LABEL_LOSSES FocalLoss FunctionLoss balanced_weights build_loss",
    "autotimm.metrics": """
        MeanAP MetricConfig Monitor RegionScores Scores build_metrics choose_monitor default_metrics default_monitor
        mean_ap named_metric region_scores table_of""",
    "autotimm.models": """
        DETECTORS SEGMENTERS Architecture DataConfig Normalize PooledClassifier Weights build_backbone build_classifier
        build_detector build_segmenter data_config find_architecture list_backbones remember_architecture
        resolve_weights""",
    "autotimm.optim": """
        SCHEDULES OptimizerOptions ProgressLR Recipe build_optimizer build_schedulers choose_recipe factor family
        find_optimizer""",
    "autotimm.repro": """
        Difference Draw KeyedBatchSampler Ledger Manifest ManifestDifference RootSeed config_digest differences
        file_digest files_digest first_difference generator key likely_cause numbers read_ledger reseed scope
        seed_everything state_digest tensor_digest""",
    "autotimm.selfcheck": "Report Result selfcheck",
    "autotimm.studies": "Study study study_configs",
    "autotimm.tasks": "ImageClassifier InstanceSegmentor ObjectDetector SemanticSegmentor Task",
    "autotimm.testing": "CHECKS TaskCase check_task",
    "autotimm.train": "AutoTrainer TunerConfig",
    "autotimm.types": """
        Batch DataSpec ObjectPrediction PixelPrediction Placement Prediction Sample Stage Step""",
}


def public_names():
    return [(module, name) for module, names in PUBLIC.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), public_names())
def test_a_public_name_stays(module, name):
    assert getattr(importlib.import_module(module), name) is not None


# The folders


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Give the folder with the data of a case, drawn at its first use."""
    places = {}

    def place(case):
        if case not in places:
            places[case] = tmp_path_factory.mktemp(case)
            draw(case, places[case])
        return places[case]

    return place


@pytest.fixture
def run_of(drawn, tmp_path, monkeypatch):
    """Give a copy of a folder as a run, in the place that its relative paths speak of."""

    def run(name):
        monkeypatch.chdir(drawn(name.split("/")[0]))
        return autotimm.Run(lay_out(name, tmp_path / "run"))

    return run


def lay_out(name, folder):
    """Copy a folder, and join the parts of what is too large for one file."""
    shutil.copytree(RUNS / name, folder, symlinks=True)
    for first in folder.rglob("*.part1"):
        parts = [first, first.with_suffix(".part2")]
        first.with_suffix("").write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
    return folder


def expected(name):
    return json.loads((RUNS / name).parent.joinpath("expected.json").read_text())


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def other_machine(name):
    """What differs from where the run was made, of what its bits depend on; nothing if it was made here."""
    made = manifest(RUNS / name)["environment"]
    packages = {one: version(one) for one in made["versions"] if one not in ("python", "autotimm", "torch")}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    now = {
        **packages,
        "torch": str(torch.__version__),
        "cpu": models[0] if models else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    then = {**made["versions"], **made["hardware"]}
    return [f"{one}: {then[one]} there, {value} here" for one, value in now.items() if then[one] != value]


def own_transforms():
    """The data module of the run in `transforms`, which was given objects."""
    train = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.2)])
    return autotimm.ImageDataModule(
        "images", image_size=32, train_transforms=train, eval_transforms=v2.functional.equalize, batch_size=4,
        eval_batch_size=4, num_workers=0,
    )  # fmt: skip


def strings(value):
    if isinstance(value, dict):
        return {text for item in value.values() for text in strings(item)}
    if isinstance(value, (list, tuple)):
        return {text for item in value for text in strings(item)}
    return {value} if isinstance(value, str) else set()


def recorded_paths(folder):
    found = strings(yaml.safe_load((folder / "config.yaml").read_text())) | strings(manifest(folder))
    for file in folder.glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        found |= strings({name: value for name, value in checkpoint.items() if name != "state_dict"})
    return {text for text in found if re.fullmatch(r"autotimm(\.\w+)+", text)}


def imported(path):
    """The class of a path as readers of records find it, wherever its module is now."""
    return import_object(path)


def test_the_paths_in_the_folders(tmp_path):
    folders = [lay_out(name, tmp_path / name) for name in FOLDERS]
    assert set().union(*map(recorded_paths, folders)) == RECORDED_PATHS


@pytest.mark.parametrize("path", sorted(RECORDED_PATHS | POSSIBLE_PATHS))
def test_a_path_that_records_hold_can_be_imported(path):
    assert imported(path).__name__ == path.rpartition(".")[2]


def test_the_folders_are_small():
    files = [path for path in RUNS.rglob("*") if path.is_file() and not path.is_symlink()]
    assert max(path.stat().st_size for path in files) < 5_000_000
    assert sum(path.stat().st_size for path in files) < 20_000_000


@pytest.mark.parametrize("name", FOLDERS)
def test_it_opens(name, run_of):
    run = run_of(name)
    wanted = expected(name).get(name.split("/")[1])
    task = run.model("best" if wanted else "last")
    assert not task.training
    assert type(task) is imported(manifest(run.path)["inputs"]["config"]["model_class"])
    assert set(run.level()) == {f"R{number}" for number in range(8)}
    if wanted:
        assert {key: run.config.get(key) for key in wanted["config"]} == wanted["config"]
        assert run.metrics == wanted["metrics"]


@pytest.mark.parametrize("name", MEASURED)
def test_it_predicts(name, run_of):
    run, wanted = run_of(name), expected(name)[name.split("/")[1]]
    found = run.predict("images/test", threshold=wanted["threshold"])
    assert len(found) == len(wanted["predictions"]) > 0
    for prediction, row in zip(found, wanted["predictions"], strict=True):
        assert list(prediction.labels) == row["labels"]
        assert prediction.scores == pytest.approx(
            row["scores"] if "boxes" not in row else tuple(row["scores"]), abs=1e-5
        )
        if "boxes" in row:
            assert [*map(list, prediction.boxes)] == [pytest.approx(box, abs=1e-2) for box in row["boxes"]]
            areas = [int(prediction.mask(index).sum()) for index in range(len(prediction.masks))]
            assert areas == pytest.approx(row["areas"], abs=3)


@pytest.mark.parametrize("name", MEASURED)
def test_it_is_measured(name, run_of):
    run, wanted = run_of(name), expected(name)[name.split("/")[1]]
    data = own_transforms() if name.startswith("transforms/") else None
    for verb, found in (("validate", run.validate(data)), ("test", run.test(data))):
        # Five figures of COCO came later.
        known = {name: value for name, value in found.items() if "recall_" not in name}
        assert known == pytest.approx(wanted[verb], abs=1e-4)


RULES = "the definition of random streams has version 1 there and "


@pytest.mark.parametrize("name", REPLAYED)
def test_verify_names_the_release_that_replays_it(name, run_of):
    verdict = run_of(name).verify()
    assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
    assert RULES in verdict.reason
    assert verdict.reason.endswith('pip install "autotimm==0.1.0".')


def test_data_with_objects_must_be_given_again(run_of):
    run = run_of("transforms/finished")
    with pytest.raises(autotimm.DataError, match="train_transforms"):
        run.test()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_not_resumed(name, run, **options):
    """Going on by other rules would end in a model that nobody can replay: it is refused, and nothing is written."""
    before = contents(run.path)
    try:
        with pytest.raises(autotimm.errors.ModelError, match=re.escape(RULES)):
            run.resume(**options)
    except autotimm.DataError as error:
        # On another machine a drawn pixel may be rounded the other way, and the data is then not the run's.
        if differs := other_machine(name):
            pytest.skip(f"made elsewhere ({'; '.join(differs)}): {error}")
        raise
    assert contents(run.path) == before


@pytest.mark.parametrize("name", STOPPED)
def test_resume_names_the_release_that_replays_it(name, run_of):
    check_not_resumed(name, run_of(name))


@pytest.mark.parametrize("name", ["classification/stopped", "detection/stopped"])
def test_resume_with_data_that_was_moved(name, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = autotimm.Run(lay_out(name, tmp_path / "run"))
    check_not_resumed(name, run, data=drawn(name.split("/")[0]) / "images")


@pytest.mark.slow  # of three commands each imports torch
@pytest.mark.parametrize("name", ["objects/stopped"])
def test_the_command_line_knows_it(name, drawn, tmp_path):
    folder, images = lay_out(name, tmp_path / "run"), drawn("objects") / "images"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "autotimm", *map(str, words)], cwd=tmp_path, env=variables, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip

    done = command("predict", folder, images / "test", "--out", "found.csv")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 7
    for verb in ("resume", "verify"):
        done = command(verb, folder, "--data", images)
        assert (done.returncode, RULES in done.stdout + done.stderr) == (4, True), done.stderr
