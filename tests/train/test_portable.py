"""Portable runs: the same bits for every number of threads and every instruction set."""

import json
import math
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import autotimm
import warm
from autotimm import AutoTrainer, Run, list_backbones
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.evidence import EvidenceCollector
from autotimm.records.digest import file_digest, state_digest
from autotimm.repro.portable_operators import portable_operators
from autotimm.runs.verify import verify
from autotimm.train.portable import build_portably
from autotimm.types import Batch, DataSpec, Step
from training import classifier, multi_label_data, small_fit, toy_data, trained, trainer

OTHER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
TRAIN = """
import json, sys
import autotimm
root, out, options = json.loads(sys.argv[1])
autotimm.fit(*[root][: root is not None], **options, out=out)
"""
FIT = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "batch_size": 8, "num_workers": 0,
       "progress": False, "val_split": 0.25, "portable": True}  # fmt: skip


def files(run):
    """The digests of all files that no clock and no hardware belongs in."""
    left_out = {"config.yaml", "manifest.json", ".lock", "report.html"}
    paths = (path for path in run.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(run).as_posix(): file_digest(path) for path in paths}


def in_process(*words, **variables):
    # torch and MKL read these variables at their first operator, not when they are imported.
    return warm.run(words, env=variables)


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    return small_fit(toy_folder, tmp_path_factory.mktemp("runs"), portable=True)


def test_another_processor_verifies_the_run(run):
    assert run.level()["R5"] == "expected"
    done = in_process("-m", "autotimm", "verify", run.path, "--threads", 2, **OTHER)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1].startswith("verdict: identical")
    assert run.level()["R5"] == "checked with 2 threads and AVX2"


def test_the_record_does_not_depend_on_threads(run):
    manifest = json.loads((run.path / "manifest.json").read_text())
    config = manifest["inputs"]["config"]["trainer"]
    assert config["portable"] is True
    assert "threads" not in config
    assert manifest["environment"]["threads"] == 1
    assert not (run.path / "calibration.json").exists()
    assert "calibration" not in (run.path / "ledger.jsonl").read_text()


def test_evaluation_depends_on_no_thread(run, toy_folder):
    model, data = run.model(), toy_data(toy_folder)
    first, second = (trainer(threads=count, portable=True).validate(model, datamodule=data) for count in (1, 2))
    assert first == second
    assert len(run.predict(sorted(toy_folder.rglob("*.png"))[:3])) == 3


def test_a_run_without_is_not_portable(toy_folder, tmp_path):
    plain = small_fit(toy_folder, tmp_path)
    assert plain.level()["R5"].startswith("no, ")
    assert "portable" not in json.loads((plain.path / "manifest.json").read_text())["inputs"]["config"]["trainer"]
    with pytest.raises(UsageError, match="`threads` of the run must be left out"):
        verify(plain.path, threads=2)


def test_weights_are_drawn_from_integers(toy_folder):
    drawn = [trained(toy_folder, max_steps=0, portable=True).network.state_dict() for _ in range(2)]
    assert state_digest(drawn[0]) == state_digest(drawn[1])
    usual = classifier().network.state_dict()
    changed = [name for name, tensor in usual.items() if not torch.equal(tensor, drawn[0][name])]
    assert changed
    for name in (name for name in changed if usual[name].numel() > 200):
        torch.testing.assert_close(drawn[0][name].std(), usual[name].std(), rtol=0.1, atol=0)


def test_buffers_outside_of_checkpoints_are_computed_again():
    model = classifier("levit_128s", image_size=64)
    name, buffer = next((name, each) for name, each in model.network.named_buffers() if name.endswith("bias_idxs"))
    assert name not in model.network.state_dict()
    before = buffer.clone()
    build_portably(model, draw=False)
    assert torch.equal(buffer, before)
    model.network.register_buffer("own", torch.ones(1), persistent=False)
    build_portably(model, draw=True)  # which knows nothing of it
    assert model.network.own.item() == 1


def test_weights_that_a_program_has_set_stay(toy_folder):
    model = classifier()
    with torch.no_grad():
        next(model.network.parameters()).fill_(0.125)
    before = state_digest(model.network.state_dict())
    trainer(max_steps=0, portable=True).fit(model, datamodule=toy_data(toy_folder))
    assert state_digest(model.network.state_dict()) == before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"precision": "bf16-mixed"}, "precision"), ({"devices": 2}, "devices"), ({"shards": 2}, "shards"),
        ({"deterministic": False}, "deterministic"), ({"recipe": "auto"}, "recipe"), ({"strategy": "ddp"}, "strategy"),
        ({"accelerator": "gpu"}, "accelerator"),
    ],
)  # fmt: skip
def test_what_a_portable_run_cannot_have(options, name):
    with pytest.raises(UsageError, match=f"`{name}` of AutoTrainer must be .* with portable=True"):
        AutoTrainer(portable=True, **options)


def test_what_a_portable_task_cannot_have(toy_folder):
    with pytest.raises(UsageError, match="`compile_model` of ImageClassifier must be left out in a portable run"):
        trained(toy_folder, task={"compile_model": True}, portable=True)
    model = classifier()
    model.kinds = ("tokens",)
    with pytest.raises(UsageError, match="`portable` of AutoTrainer must be False for anything but classification"):
        trainer(portable=True).fit(model, datamodule=toy_data(toy_folder))


def test_an_option_that_is_not_known_to_hold_is_refused(toy_folder):
    with pytest.raises(UsageError, match=r"Got aten.multi_margin_loss.default instead"):
        trained(toy_folder, task={"loss": "torch.nn.MultiMarginLoss"}, portable=True)


def test_evidence_is_made_of_portable_operators(toy_folder):
    model = classifier(num_classes=100)
    model.spec = DataSpec(tuple(map(str, range(100))))
    logits = torch.randn(50, 100, generator=torch.Generator().manual_seed(0)).mul_(5)
    model.portable = True
    collector = EvidenceCollector(model, "val")
    collector.add(Batch(logits, torch.arange(50), tuple(map(str, range(50)))), Step({}, logits, torch.arange(50)))
    with portable_operators():
        scores, losses = logits.softmax(1), F.cross_entropy(logits, torch.arange(50), reduction="none")
    arrays = collector.evidence().arrays
    assert torch.equal(torch.from_numpy(arrays["scores"]), scores)
    assert torch.equal(torch.from_numpy(arrays["losses"]), losses)
    assert not torch.equal(logits.softmax(1), scores)  # or this would show nothing


def test_a_new_head_is_drawn_from_integers(run, tmp_path):
    photos = write_toy_folder(tmp_path / "two", n=16, num_classes=2)
    extended = run.extend(photos, epochs=1, out=str(tmp_path), name="extended")
    begun = load_file(extended.path / "initial.safetensors")
    drawn = trained(photos, max_steps=0, task={"num_classes": 2}, portable=True).network.state_dict()
    heads = [name for name in drawn if name.startswith("head")]
    assert heads
    assert all(torch.equal(begun[name], drawn[name]) for name in heads)
    assert extended.level()["R5"] == "expected"


def test_constants_of_layers_are_computed_again(toy_folder):
    model = classifier(drop_path_rate=0.1, head_dropout=0.2)
    rates = [module for module in model.network.modules() if getattr(module, "drop_prob", 0)]
    expected = [module.drop_prob for module in rates]
    rates[0].drop_prob = math.nextafter(expected[0], 1)  # as another processor computes it
    rates[1].drop_prob = 0.75  # as a program sets it
    trainer(max_steps=0, portable=True).fit(model, datamodule=toy_data(toy_folder))
    assert [module.drop_prob for module in rates] == [expected[0], 0.75, *expected[2:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9, "head_dropout": 0.2, "drop_path_rate": 0.1, "optimizer": "sgd", "augmentation": "strong"},
        {"backbone": "test_vit", "image_size": 64, "label_smoothing": 0.1, "clip": 0.5, "accumulate": 2},
        {"backbone": "mobilenetv3_small_050", "optimizer": "adam", "augmentation": "randaugment"},
        {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "class_weights": "balanced", "schedule": "plateau"},
        {"label_column": ["second", "third"], "loss": "asymmetric", "optimizer": "lamb"},
    ],
)
def test_other_processors_and_threads_leave_the_same_bytes(options, toy_folder, tmp_path):
    found, root = [], str(toy_folder)
    if "label_column" in options:
        multi_label_data(toy_folder, tmp_path)
        options, root = {**options, "train_csv": str(tmp_path / "labels.csv"), "image_dir": root}, None
    for threads, variables in ((1, {}), (2, OTHER), (4, {"MKL_CBWR": "COMPATIBLE"})):
        given = {**FIT, "epochs": 2, **options, "threads": threads, "name": f"of-{threads}"}
        done = in_process("-c", TRAIN, json.dumps([root, str(tmp_path), given]), **variables)
        assert done.returncode == 0, done.stderr
        found.append(files(tmp_path / f"of-{threads}"))
    assert found[0] == found[1] == found[2]
    assert Run(tmp_path / "of-2").verify(threads=1).identical


DENSE = {**{name: value for name, value in FIT.items() if name != "val_split"}, "image_size": 64, "batch_size": 2,
         "epochs": 1, "width": 64}  # fmt: skip


def regions(folder, **options):
    """Data to segment, and the options of a training on it."""
    data = write_toy_segmentation(folder / "regions", splits={"train": 4, "val": 2}, image_size=64, seed=7)
    return str(data), {**DENSE, **options}


def objects(folder, **options):
    """Data to find objects in, and the options of a training on it."""
    data = write_toy_objects(folder / "objects", splits={"train": 4, "val": 2}, image_size=(60, 72), seed=7)
    return str(data), {**DENSE, "task": "detection", **options}


@pytest.mark.parametrize("drawn", [regions, objects], ids=["segmentation", "detection"])
def test_dense_tasks_depend_on_no_thread(drawn, tmp_path):
    root, options = drawn(tmp_path)
    runs = [autotimm.fit(root, **options, threads=threads, out=tmp_path).path for threads in (1, 2)]
    assert files(runs[0]) == files(runs[1])
    assert Run(runs[0]).level()["R5"] == "expected"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"arch": "unet", "loss": "dice", "ema_decay": 0.9}, {"backbone": "test_vit", "loss": "focal"}]
)
def test_segmentation_on_another_processor(options, tmp_path):
    root, options = regions(tmp_path, **options)
    for threads, variables in ((1, {}), (2, OTHER)):
        given = [root, str(tmp_path), {**options, "threads": threads, "name": f"of-{threads}"}]
        done = in_process("-c", TRAIN, json.dumps(given), **variables)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "of-1") == files(tmp_path / "of-2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"arch": "fcos", "ema_decay": 0.9, "clip": 0.5, "augmentation": "strong", "num_workers": 2},
        {"arch": "fcos", "backbone": "test_vit"},
        {"arch": "retinanet", "accumulate": 2},
        {"arch": "faster_rcnn", "augmentation": "strong"},
        {"task": "instance"},
    ],
)
def test_detection_on_another_processor(options, tmp_path):
    root, options = objects(tmp_path, **options)
    for threads, variables in ((1, {}), (2, OTHER)):
        given = [root, str(tmp_path), {**options, "threads": threads, "name": f"of-{threads}"}]
        done = in_process("-c", TRAIN, json.dumps(given), **variables)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "of-1") == files(tmp_path / "of-2")
    assert Run(tmp_path / "of-2").verify(threads=1).identical


@pytest.mark.slow
@pytest.mark.parametrize("reached", ["ledger.jsonl", "checkpoints/step-*.ckpt"])
def test_a_killed_run_goes_on_on_another_processor(reached, toy_folder, tmp_path):
    """Before its first checkpoint, and in mid-epoch."""
    options = {**FIT, "epochs": 3, "batch_size": 4, "checkpoint_every": 3, "drop_path_rate": 0.2, "ema_decay": 0.9}
    killed_and_resumed(str(toy_folder), options, reached, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"arch": "fcos", "ema_decay": 0.9}, {"task": "instance"}])
def test_a_killed_detector_goes_on_on_another_processor(options, tmp_path):
    root, options = objects(tmp_path, epochs=3, checkpoint_every=1, **options)
    killed_and_resumed(root, options, "checkpoints/step-*.ckpt", tmp_path)


def killed_and_resumed(root, options, reached, tmp_path):
    """Train at once, and killed once a file is there, then resumed elsewhere; the files must be the same."""
    whole = autotimm.fit(root, **options, threads=1, out=tmp_path, name="whole").path
    given = [root, str(tmp_path), {**options, "threads": 1, "name": "killed"}]
    killed = tmp_path / "killed"
    started = warm.Program(["-c", TRAIN, json.dumps(given)])
    while started.poll() is None and not [*killed.glob(reached)]:
        time.sleep(0.002)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    assert "results.json" not in files(killed)
    done = in_process("-m", "autotimm", "resume", killed, "--threads", 2, **OTHER)
    assert done.returncode == 0, done.stderr
    assert files(killed) == files(whole)


def test_backbones_lists_the_families_that_were_measured():
    names = list_backbones(portable=True)
    assert {"resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"} <= {*names}
    assert "xcit_nano_12_p16_224" not in names  # its embeddings of positions are sines
    assert list_backbones("resnet18*", pretrained=True, portable=True)[0].startswith("resnet18.")
