"""Runs that meet a file which cannot be read, and are resumed without its sample."""

import json
import re
import shlex
import shutil
import signal
import time

import pytest
from PIL import Image

import warm
from autotimm import AutoTrainer, ImageDataModule, Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError, UnreadableSampleError, UsageError
from autotimm.records.ledger import malformed, read_ledger
from autotimm.records.run_folder import SEARCH
from autotimm.repro.sampler import KeyedBatchSampler
from training import classifier, small_fit

FILES = ("ledger.jsonl", "metrics.csv", "splits.csv", "files.csv", "results.json", "model.safetensors")
HALTED = {"epochs": 2, "batch_size": 4, "check": "headers", "evidence": True, "checkpoint_every": 1}


def cut(path):
    """Cut a JPEG and let another begin there, as a download does that was written over: its header is intact."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[: len(data) // 3] + b"\xff\xd9")


def cut_png(path):
    """Change a byte within the pixels of a PNG."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 255
    path.write_bytes(data)


def as_photographs(root):
    for path in sorted(root.rglob("*.png")):
        Image.open(path).convert("RGB").resize((64, 64)).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return root


def tables(root):
    return ImageDataModule(root, image_size=32, val_split=0.25, num_workers=0, check="headers").tables


def halted(root, out, **options):
    """A run that has ended at a broken file."""
    with pytest.raises(UnreadableSampleError) as caught:
        small_fit(root, out, name="halted", **{**HALTED, **options})
    return Run(out / "halted"), caught.value


def dropped(run, split="train"):
    return [line for line in read_ledger(run.path / "ledger.jsonl").lines
            if line["kind"] == "dropped" and line["split"] == split]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = as_photographs(write_toy_folder(tmp_path_factory.mktemp("drop") / "photos", n=24, num_classes=3, seed=7))
    train = tables(root)["train"]
    order = KeyedBatchSampler(len(train), 4, 42).order(0)
    cut(root / train.ids[order[6]])  # of the second batch
    return root


@pytest.fixture(scope="module")
def broken(photos):
    """The id of the broken file, and that of the sample after it in the first epoch."""
    train = tables(photos)["train"]
    order = KeyedBatchSampler(len(train), 4, 42).order(0)
    return train.ids[order[6]], train.ids[order[7]]


@pytest.fixture(scope="module")
def begun(photos, tmp_path_factory):
    return halted(photos, tmp_path_factory.mktemp("begun"))


@pytest.fixture
def run(begun, tmp_path):
    return Run(shutil.copytree(begun[0].path, tmp_path / "runs" / "halted"))


@pytest.fixture(scope="module")
def resumed(begun, broken, tmp_path_factory):
    folder = shutil.copytree(begun[0].path, tmp_path_factory.mktemp("resumed") / "run")
    return Run(folder).resume(drop=broken[0])


# The order


def walked(order, gone):
    """The definition, one position at a time."""
    taken = []
    for position in range(len(order)):
        at = position
        while order[at] in gone:
            at = (at + 1) % len(order)
        taken.append(order[at])
    return taken


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0] * 5])
def test_next_sample_of_the_epoch_takes_the_place_of_a_dropped_one(weights):
    whole = KeyedBatchSampler(20, 4, 3, weights=weights)
    for epoch in range(3):
        order = whole.order(epoch)
        for gone in ({order[4]}, {order[19]}, {order[18], order[19], order[0]}, {*order[5:12]}):
            sampler = KeyedBatchSampler(20, 4, 3, weights=weights, dropped=[*gone])
            assert sampler.order(epoch) == walked(order, gone)
            sampler.set_epoch(epoch)
            drawn = [draw for batch in sampler for draw in batch]
            assert [draw.position for draw in drawn] == [*range(20)]
            assert [draw.index for draw in drawn] == walked(order, gone)
            told = [pair for number in range(len(sampler)) for pair in sampler.replaced(epoch, number)]
            assert told == [(a, b) for a, b in zip(order, walked(order, gone), strict=True) if a in gone]


def test_processes_and_shards_share_the_order_without_dropped_samples():
    whole = KeyedBatchSampler(18, 4, 3, dropped=[2, 5]).order(0)
    for options in ({"batch_size": 2, "world_size": 2}, {"batch_size": 4, "world_size": 2, "shards": 2}):
        parts = [[*KeyedBatchSampler(18, seed=3, dropped=[2, 5], rank=rank, **options)] for rank in range(2)]
        drawn = [draw.index for batches in zip(*parts, strict=True) for batch in batches for draw in batch]
        assert drawn == whole[: len(drawn)]
        assert len(drawn) >= 16


def test_all_samples_cannot_be_dropped():
    with pytest.raises(UsageError, match="`dropped` of KeyedBatchSampler must be less than all samples"):
        KeyedBatchSampler(3, 1, 0, dropped=[0, 1, 2])
    never = KeyedBatchSampler(3, 1, 0, weights=[1.0, 1.0, 0.0], dropped=[0, 1])
    with pytest.raises(UsageError, match="must not all be dropped"):
        list(never)


# A run


def test_broken_file_ends_the_run_with_its_name_and_the_command_to_go_on(begun, broken):
    run, error = begun
    assert error.exit_code == 3
    assert error.id == broken[0]
    assert f"{broken[0]} cannot be read as an image: broken data stream" in str(error)
    assert f"It is the train sample {broken[0]}." in str(error)
    assert f"autotimm resume {run.path} --drop {broken[0]}, or Run('{run.path}').resume(drop=['{broken[0]}'])" in str(
        error
    )
    assert json.loads((run.path / "manifest.json").read_text())["results"]["status"] == "failed"


def test_printed_command_finishes_the_run(run, begun, broken, capfd):
    words = shlex.split(re.search(r"autotimm (resume .*?), or", str(begun[1]))[1])
    assert words[1] == str(begun[0].path)
    words[1] = str(run.path)
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"run: {run.path}"
    assert f"1 of 18 train images cannot be read and is dropped: {broken[0]}. In each epoch the next" in err
    assert main(["verify", str(run.path)]) == 0


def test_ledger_and_manifest_name_the_dropped_sample_in_each_epoch(resumed, broken):
    lines = read_ledger(resumed.path / "ledger.jsonl").lines
    assert malformed(lines, 1) is None
    assert [line["epoch"] for line in dropped(resumed)] == [0, 1]
    first = dropped(resumed)[0]
    assert (first["batch"], first["step"], first["ids"], first["by"]) == (1, 2, [broken[0]], [broken[1]])
    after = lines[lines.index(first) + 1]
    assert (after["kind"], after["epoch"], after["batch"]) == ("step", 0, 1)
    assert sum(line["kind"] == "step" for line in lines) == 10  # as many as without the drop
    manifest = json.loads((resumed.path / "manifest.json").read_text())
    assert manifest["decisions"]["dropped"] == [broken[0]]
    assert any("is dropped" in notice for notice in manifest["volatile"]["notices"])
    assert "cannot be read and is dropped" in (resumed.path / "report.html").read_text()
    assert broken[0] in (resumed.path / "splits.csv").read_text()  # its side has not changed


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_replays_a_dropped_sample(resumed, workers):
    verdict = resumed.verify(workers=workers)
    assert verdict.identical, verdict.reason
    assert verdict.steps == 10


def test_verify_from_a_checkpoint_replays_a_dropped_sample(resumed):
    verdict = resumed.verify(epochs=(2, 2))
    assert verdict.identical, verdict.reason


def test_run_that_drops_from_its_first_step_has_the_same_bytes(resumed, tmp_path):
    again = resumed.reproduce(tmp_path / "again")
    for name in FILES:
        assert (again.path / name).read_bytes() == (resumed.path / name).read_bytes(), name


def test_record_that_hides_the_drop_is_different(resumed, broken, tmp_path):
    forged = shutil.copytree(resumed.path, tmp_path / "forged")
    manifest = json.loads((forged / "manifest.json").read_text())
    del manifest["decisions"]["dropped"]
    (forged / "manifest.json").write_text(json.dumps(manifest))
    verdict = Run(forged).verify()
    assert (verdict.verdict, verdict.exit_code) == ("different", 5)
    assert f"manifest.json: decisions.dropped: the ledger says that {broken[0]} was dropped" in verdict.reason


def test_run_that_ended_at_a_broken_file_is_verified_up_to_it(run):
    verdict = run.verify()
    assert (verdict.verdict, verdict.steps) == ("incomplete", 1)
    assert verdict.reason == "What could be compared equals the replay."


def test_replay_that_cannot_read_a_sample_earlier_than_the_run_is_not_comparable(resumed, broken, tmp_path):
    forged = shutil.copytree(resumed.path, tmp_path / "forged")
    manifest = json.loads((forged / "manifest.json").read_text())
    del manifest["decisions"]["dropped"]
    (forged / "manifest.json").write_text(json.dumps(manifest))
    (forged / "ledger.jsonl").write_text("".join(
        line for line in (forged / "ledger.jsonl").read_text().splitlines(True) if '"dropped"' not in line
    ))  # fmt: skip
    verdict = Run(forged).verify()
    assert verdict.exit_code != 0
    assert not verdict.identical
    assert "resume" not in verdict.reason  # of a replay there is nothing to resume


def test_run_that_trains_on_inherits_the_drops(resumed, photos, broken, tmp_path):
    run = resumed.extend(epochs=1, out=tmp_path)
    assert json.loads((run.path / "manifest.json").read_text())["decisions"]["dropped"] == [broken[0]]
    assert [line["ids"] for line in dropped(run)] == [[broken[0]]]
    assert run.verify().identical
    repaired = shutil.copytree(photos, tmp_path / "repaired")
    shutil.copy(repaired / broken[1], repaired / broken[0])
    run = resumed.extend(repaired, epochs=1, out=tmp_path)
    assert "dropped" not in json.loads((run.path / "manifest.json").read_text())["decisions"]


def test_only_samples_that_cannot_be_read_are_dropped(run, resumed, photos, broken):
    other = next(id for id in tables(photos)["train"].ids if id != broken[0])
    for drop in (other, [broken[0], other]):
        with pytest.raises(UsageError, match=f"must be ids of samples whose files cannot be read. Got '{other}'"):
            run.resume(drop=drop)
    with pytest.raises(UsageError, match=r"must be ids of samples of the run\. Got 'cat.jpg'"):
        run.resume(drop="cat.jpg")
    with pytest.raises(UsageError, match="`drop` of resume must be left out of a finished run"):
        resumed.resume(drop=broken[0])


def test_changed_file_cannot_be_dropped_from_a_run(run, photos, broken, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "photos")
    (moved / broken[0]).write_bytes((moved / broken[0]).read_bytes()[:-2] + b"\xff\xd8\xff\xd9")
    with pytest.raises(DataError, match=f"changed: {broken[0]}"):
        run.resume(drop=broken[0], data=moved)


def test_program_resumes_with_its_own_objects(photos, broken, tmp_path):
    def fit(data, **options):
        trainer = AutoTrainer(1, run_dir=tmp_path / "mine", checkpoint_every=1, accelerator="cpu", threads=1)
        trainer.fit(classifier(), datamodule=data, **options)

    def photographs():
        return ImageDataModule(photos, image_size=32, batch_size=4, val_split=0.25, num_workers=0, check="headers")

    with pytest.raises(UnreadableSampleError, match="resume"):
        fit(photographs())
    data = photographs()
    data.drop(broken[0])
    fit(data, ckpt_path="last")
    run = Run(tmp_path / "mine")
    assert [line["ids"] for line in dropped(run)] == [[broken[0]]]
    assert run.verify().identical


def test_dropped_validation_and_test_samples_are_left_out_of_evaluation(photos, broken, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    options = {"test_split": 0.2}
    sides = ImageDataModule(root, image_size=32, val_split=0.25, num_workers=0, check="headers", **options).tables
    train, val, test = (next(id for id in sides[side].ids if id != broken[0]) for side in ("train", "val", "test"))
    shutil.copy(root / train, root / broken[0])
    cut(root / val)
    cut(root / test)
    run, error = halted(root, tmp_path, **options)
    assert f"It is the val sample {val}." in str(error)
    run = run.resume(drop=[val, test])
    assert {tuple(line["ids"]) for line in dropped(run, "val")} == {(val,)}
    assert val not in run.evidence().ids
    assert len(run.evidence().ids) == len(sides["val"]) - 1
    assert run.verify().identical
    run.test()
    assert sorted(run.evidence("test").ids) == sorted({*sides["test"].ids} - {test})
    assert run.verify().identical


def test_all_samples_of_validation_cannot_be_dropped(photos, broken, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    for id in tables(root)["val"].ids:
        cut(root / id)
    run, _ = halted(root, tmp_path)
    with pytest.raises(DataError, match="All 6 samples of a split cannot be read"):
        run.resume(drop=[*tables(root)["val"].ids])


def test_balanced_sampling_drops_by_the_same_rule(photos, broken, tmp_path):
    run, _ = halted(photos, tmp_path, balanced_sampling=True, epochs=3)
    run = run.resume(drop=broken[0])
    assert dropped(run)
    assert all(line["by"] != [broken[0]] for line in dropped(run))
    assert run.verify().identical


def test_search_that_meets_a_broken_file_goes_on_without_it(photos, broken, tmp_path):
    run, error = halted(photos, tmp_path, search_budget="2x")
    assert f"autotimm resume {run.path} --drop {broken[0]}" in str(error)
    assert (run.path / SEARCH).exists()
    assert not (run.path / "manifest.json").exists()  # it has not begun to train
    run = run.resume(drop=broken[0])
    found = json.loads((run.path / "manifest.json").read_text())["decisions"]
    assert found["dropped"] == [broken[0]]
    assert found["search"]["trials"]
    assert [line["ids"] for line in dropped(run)] == [[broken[0]]] * 2
    assert run.verify().identical


@pytest.mark.slow
def test_head_is_fitted_without_the_dropped_sample(photos, broken, resumed, tmp_path):
    run, _ = halted(photos, tmp_path, pretrained=str(resumed.path / "model.safetensors"), recipe="auto", epochs=1)
    assert not [line for line in read_ledger(run.path / "ledger.jsonl").lines if line["kind"] in ("head", "step")]
    run = run.resume(drop=broken[0])
    assert [line["kind"] for line in read_ledger(run.path / "ledger.jsonl").lines][:2] == ["start", "head"]
    assert run.verify().identical


@pytest.mark.slow
def test_folds_drop_the_sample_once_for_all(photos, broken, tmp_path):
    run, error = halted(photos, tmp_path, folds=2, val_split=None, epochs=1)
    assert f"autotimm resume {run.path} --drop" in str(error)
    run = run.resume(drop=broken[0])
    for place in (run.path, run.path / "fold-1", run.path / "fold-2"):
        assert json.loads((place / "manifest.json").read_text())["decisions"]["dropped"] == [broken[0]]
        assert Run(place).verify().identical


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_other_tasks_drop_a_sample_by_the_same_rule(task, tmp_path):
    write = write_toy_segmentation if task == "segmentation" else write_toy_objects
    root = write(tmp_path / "scenes", splits={"train": 8, "val": 3}, image_size=64)
    for name in ("train/00003.png", "val/00001.png"):
        cut_png(root / name)
    run, error = halted(root, tmp_path, task=task, image_size=64, val_split=None, epochs=1, evidence=False)
    assert "train/00003.png cannot be read" in str(error) or "val/00001.png cannot be read" in str(error)
    run = run.resume(drop=["train/00003.png", "val/00001.png"])
    assert [line["ids"] for line in dropped(run)] == [["train/00003.png"]]
    assert [line["ids"] for line in dropped(run, "val")] == [["val/00001.png"]]
    verdict = run.verify()
    assert verdict.identical, verdict.reason


@pytest.mark.slow
def test_killed_and_resumed_run_has_the_bytes_of_one_that_nobody_stopped(run, resumed, broken):
    process = warm.Program(
        ["-m", "autotimm", "resume", run.path, "--drop", broken[0], "--workers", "2"], run.path.parent
    )
    while process.poll() is None and len(read_ledger(run.path / "ledger.jsonl").lines) < 9:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    Run(run.path).resume()  # the record knows what is dropped
    for name in FILES:
        assert (run.path / name).read_bytes() == (resumed.path / name).read_bytes(), name


@pytest.mark.slow
def test_run_with_shards_drops_in_any_number_of_processes(photos, broken, tmp_path):
    run, _ = halted(photos, tmp_path, shards=2, epochs=1, batch_size=6)
    run = run.resume(drop=broken[0])
    assert [line["ids"] for line in dropped(run)] == [[broken[0]]]
    done = warm.Program(["-m", "autotimm", "verify", run.path, "--devices", "2"], tmp_path)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, out + err
