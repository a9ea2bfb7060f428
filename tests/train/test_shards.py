"""Virtual shards of a batch: the same bits on one, two and four processes."""

import copy
import json
import re
import signal
import time
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed
from torch import nn
from torch.nn import functional

from autotimm import ImageClassifier, Run
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.repro.shards import shard_range
from launched import autotimm, start
from training import classifier, toy_data, trainer

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without them")

FITS = """
import json, os, sys
from pytorch_lightning.utilities import rank_zero_only
os.cpu_count = lambda: 4
rank_zero_only.rank = int(os.environ.get("RANK", "0"))
import autotimm
for name, data, options in json.loads(sys.argv[2]):
    autotimm.fit(data, **options, devices=int(sys.argv[1]), out=f"runs-{sys.argv[1]}", name=name)
"""
FIT = ["--backbone", "test_resnet", "--image-size", 32, "--threads", 1, "--pretrained", "false", "--num-workers", 0,
       "--epochs", 3, "--accelerator", "cpu", "--batch-size", 8, "--eval-batch-size", 3, "--head-dropout", 0.2,
       "--drop-path-rate", 0.1]  # fmt: skip


def fit(data, cwd, name, processes, *words, shards=4):
    options = [*FIT, "--shards", shards, "--devices", processes, "--name", name, *words]
    autotimm(processes, "fit", data, *options, cwd=cwd)
    return cwd / "runs" / name


def files(run):
    """The digests of all files that no clock and no number of processes belongs in."""
    left_out = {"config.yaml", "manifest.json", ".lock", "report.html"}
    paths = (path for path in run.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(run).as_posix(): file_digest(path) for path in paths}


def killed(processes, *words, run, cwd, after):
    """Run a program, and kill all of its processes in mid-epoch, once there is the checkpoint of a step."""
    started, last = start(processes, *words, cwd=cwd), run / "checkpoints" / "last.ckpt"
    while not (last.exists() and any(int(path.stem[-8:]) >= after for path in last.parent.glob("*step-*.ckpt"))):
        assert all(process.poll() is None for process in started), [each.communicate() for each in started]
        time.sleep(0.005)
    for process in started:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in started] == [-signal.SIGKILL] * processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 21 images to train on, of which the last batch has 5, and 10 to validate on."""
    root = tmp_path_factory.mktemp("shards")
    write_toy_folder(root / "toy", splits={"train": 21, "val": 10}, num_classes=3)
    return root


@pytest.fixture(scope="module")
def one(place):
    return fit("toy", place, "one", 1)


def test_two_processes_leave_the_bytes_that_one_leaves(place, one):
    two = fit("toy", place, "two", 2)
    assert files(two) == files(one)
    assert len(files(one)) > 8
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (one, two)]
    assert manifests[0]["run_id"] == manifests[1]["run_id"]
    assert [each["volatile"]["processes"] for each in manifests] == [1, 2]
    assert Run(one).level()["R4"] == "expected"


@pytest.mark.slow
def test_four_processes_leave_the_bytes_that_one_leaves(place, one):
    assert files(fit("toy", place, "four", 4)) == files(one)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(place, tmp_path):
    every = ["--checkpoint-every", 1]
    whole = fit("toy", place, "whole", 1, *every)
    run = place / "runs" / "killed"
    words = ["fit", "toy", *FIT, "--shards", 4, "--devices", 4, "--name", "killed", *every]
    killed(4, *words, run=run, cwd=place, after=1)
    killed(1, "resume", run, "--devices", 1, run=run, cwd=place, after=3)
    autotimm(2, "resume", run, "--devices", 2, cwd=place)
    assert files(run) == files(whole)
    assert len(json.loads((run / "manifest.json").read_text())["volatile"]["resumes"]) == 2
    assert len([line for line in read_ledger(run / "ledger.jsonl").lines if line["kind"] == "step"]) == 6


def test_another_number_of_processes_verifies_a_run(place, one):
    out, _ = autotimm(2, "verify", one, "--devices", 2, cwd=place)
    assert out.splitlines()[-1] == "verdict: identical (6 steps compared)"
    assert Run(one).level()["R4"] == "checked with 2 processes"


SMALL = {"backbone": "test_resnet", "image_size": 32, "threads": 1, "pretrained": False, "num_workers": 0, "epochs": 2,
         "accelerator": "cpu", "batch_size": 8, "eval_batch_size": 3, "shards": 4, "progress": False}  # fmt: skip
OPTIONS = {
    "average": {"ema_decay": 0.9, "clip": 0.1, "mixup_alpha": 0.4, "cutmix_alpha": 0.4},
    "plateau": {
        "schedule": "plateau",
        "precision": "bf16-mixed",
        "class_weights": "balanced",
        "balanced_sampling": True,
    },
    "rest": {"backbone": "test_vit", "shards": 8, "accumulate": 2, "metrics": ["Accuracy", "AUROC", "CohenKappa"]},
    "alone": {"backbone": "test_vit", "batch_size": 4},  # the last batch has one image, and one process has none
    "threes": {"shards": 6, "batch_size": 12, "backbone": "test_vit"},
}


def fits(cases, cwd, processes):
    """Train several cases in so many processes, one after the other; return the files of each."""
    autotimm(processes, str(processes), json.dumps(cases), cwd=cwd, program=FITS)
    return {name: files(cwd / f"runs-{processes}" / name) for name, _, _ in cases}


@pytest.mark.slow
def test_every_option_leaves_the_same_bytes(place):
    cases = [(name, "toy", SMALL | options) for name, options in OPTIONS.items()]
    # A backbone that was trained on the same images, and a head that is fitted first.
    weights = str(fit("toy", place, "pretrained", 1) / "model.safetensors")
    cases.append(("fitted", "toy", SMALL | {"pretrained": weights, "recipe": "auto"}))
    assert fits(cases, place, 2) == fits(cases, place, 1)


@pytest.mark.slow
def test_three_processes_of_six_shards(place):
    """The tree has halves, and none of them is a third."""
    cases = [("thirds", "toy", SMALL | OPTIONS["threes"])]
    assert fits(cases, place, 3) == fits(cases, place, 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "instance", "segmentation"])
def test_every_task_leaves_the_same_bytes(task, place):
    write = write_toy_segmentation if task == "segmentation" else write_toy_objects
    write(place / task, splits={"train": 10, "val": 5}, image_size=64)
    options = {"task": task, "image_size": 64, "width": 64, "batch_size": 4, "eval_batch_size": 2, "shards": 2}
    cases = [(task, task, SMALL | options)]
    assert fits(cases, place, 2) == fits(cases, place, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, "`shards` of AutoTrainer must be an integer of at least 1 or None"),
        ({"strategy": "ddp"}, "`strategy` of AutoTrainer must be left out with shards=4, since shards have a strategy"),
        ({"sync_batchnorm": True}, "`sync_batchnorm` of AutoTrainer must be left out with shards=4"),
        ({"precision": "16-mixed"}, "`precision` of AutoTrainer must be left out with shards=4"),
        ({"overfit_batches": 2}, "`overfit_batches` of AutoTrainer must be left out"),
        ({"limit_val_batches": 0.5}, "`limit_val_batches` of AutoTrainer must be left out"),
        ({"shards": 3, "devices": 2}, "`shards` of AutoTrainer must be a multiple of the number of processes, 2"),
    ],
)
def test_what_shards_cannot_be_used_with_is_refused(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        trainer(**{"shards": 4, **options})


class Contrastive(ImageClassifier):
    loss_over_batch = True


def small(shards, task, folder, **data):
    trainer(shards=shards).fit(task, datamodule=toy_data(folder, **data))


def test_a_task_that_cannot_be_cut_is_refused(toy_folder):
    with pytest.raises(UsageError, match=r"`shards` .* at most 4: a batch has 8 images, and each shard needs 2, which"):
        small(5, classifier(), toy_folder)
    with pytest.raises(UsageError, match="at most 8: a batch has 8 images, and each shard needs 1"):
        small(9, classifier(freeze_backbone=True), toy_folder)
    with pytest.raises(UsageError, match="left out with Contrastive, whose loss compares the images"):
        small(2, Contrastive("test_resnet", 3, pretrained=False, image_size=32), toy_folder)
    shared = classifier()
    shared.network = nn.SyncBatchNorm.convert_sync_batchnorm(shared.network)
    with pytest.raises(UsageError, match="left out with SyncBatchNorm"):
        small(2, shared, toy_folder)
    each_step = {"name": "a", "params": {"task": "multiclass", "num_classes": 3}, "log_on_step": True}
    with pytest.raises(UsageError, match="`log_on_step` of the metric 'a' must be False with `shards`"):
        small(2, classifier(metrics=[each_step]), toy_folder)


class Plain(pl.LightningModule):
    def training_step(self, batch):
        return None


def test_a_module_of_your_own_is_refused(toy_folder):
    with pytest.raises(UsageError, match="`shards` of AutoTrainer must be None for a task or data of your own"):
        trainer(shards=2).fit(Plain(), datamodule=toy_data(toy_folder))


class Remembers(nn.Module):
    """Keeps what no sum over shards can keep."""

    def __init__(self, network):
        super().__init__()
        self.network, self.backbone = network, network.backbone
        self.register_buffer("seen", torch.zeros(20, dtype=torch.int64))

    def forward(self, images):
        self.seen += 1
        return self.network(images)


def test_a_buffer_that_cannot_be_summed_is_refused(toy_folder):
    task = classifier()
    task.network = Remembers(task.network)
    with pytest.raises(UsageError, match="what shards do to others cannot be summed"):
        small(2, task, toy_folder)


def test_other_processes_are_refused_for_a_run_without_shards(toy_folder, tmp_path):
    trainer(run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder))
    with pytest.raises(UsageError, match="`devices` of the run must be left out for a run without `shards`"):
        Run(tmp_path / "run").verify(devices=2)


def mean_gradient(network, batch, shards):
    """The gradient of the mean loss over images, by torch alone."""
    losses = []
    for shard in range(shards):
        own = shard_range(len(batch.images), shard, shards)
        part = batch.part(own.start, own.stop)
        losses.append(functional.cross_entropy(network(part.images), part.targets) * len(own) / len(batch.images))
    return torch.autograd.grad(sum(losses), list(network.parameters()))


class Gradients(pl.Callback):
    """Notes the first batch, and the gradients that its step is made with."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch, self.before = batch, copy.deepcopy(pl_module.network)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = [each.grad.clone() for each in pl_module.network.parameters()]
        trainer.should_stop = True


def test_the_gradient_is_that_of_the_mean_over_images(toy_folder):
    """Shards of 1 and 2 images, and without batch normalization: the whole batch has the same gradient."""
    seen, task = Gradients(), classifier("test_vit", gradient_clip=0)
    trainer(shards=3, max_steps=1, callbacks=[seen]).fit(task, datamodule=toy_data(toy_folder, batch_size=5))
    for shards in (3, 1):
        for found, expected in zip(seen.found, mean_gradient(seen.before, seen.batch, shards), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 2, 6])
@pytest.mark.parametrize("least", [1, 2])
def test_processes_share_every_position_once(shards, least):
    for size in range(1, 40):
        for shuffle in (True, False):
            whole = batches(size, 0, 1, shards, least, shuffle)
            for processes in (number for number in (1, 2, 3, 6) if shards % number == 0):
                found = [batches(size, rank, processes, shards, least, shuffle) for rank in range(processes)]
                assert len({len(each) for each in found}) == 1
                if shuffle:
                    together = [[*chain.from_iterable(parts)] for parts in zip(*found, strict=True)]
                else:
                    together = [part for parts in zip(*found, strict=True) for part in parts if part]
                assert together == whole


def batches(size, rank, processes, shards, least, shuffle):
    options = {"shuffle": shuffle, "rank": rank, "world_size": processes, "shards": shards, "least": least}
    sampler = KeyedBatchSampler(size, 12 if shuffle else 4, 42, **options)
    return [[] if sampler.is_empty(number) else draws for number, draws in enumerate(sampler)]


def test_an_incomplete_batch_is_left_out_where_a_shard_would_have_one_image():
    sizes = {size: len(KeyedBatchSampler(size, 8, 42, shards=4, least=2)) for size in (8, 9, 15, 16, 17)}
    assert sizes == {8: 1, 9: 1, 15: 1, 16: 2, 17: 2}
    assert [len(KeyedBatchSampler(size, 8, 42, shards=4)) for size in (9, 17)] == [2, 3]
