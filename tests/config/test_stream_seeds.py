"""Each stream's seed changes what the stream decides, and nothing else."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

import autotimm
from autotimm.errors import UsageError
from autotimm.repro import Manifest, RootSeed, read_ledger
from training import classifier, small_fit, toy_data, trainer

# Each stream has something to decide.
RANDOM = {"head_dropout": 0.3, "mixup_alpha": 0.2, "warmup_epochs": 0}


class Found:
    """What of a run each stream decides."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest.load(folder / "manifest.json")
        lines = read_ledger(folder / "ledger.jsonl").lines
        steps = [line for line in lines if line["kind"] == "step"]
        self.init = self.manifest.inputs["initial"]
        self.split = (folder / "splits.csv").read_text()
        self.ids, self.inputs, self.loss = ([step[name] for step in steps] for name in ("ids", "inputs", "loss"))

    def changed(self, other: "Found") -> set[str]:
        names = ("init", "split", "ids", "inputs", "loss")
        return {name for name in names if getattr(self, name) != getattr(other, name)}


@pytest.fixture(scope="module")
def fitted(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("streams")

    def fit(**options: object) -> Found:
        return Found(small_fit(toy_folder, root, **{**RANDOM, **options}).path)

    return fit


@pytest.fixture(scope="module")
def plain(fitted):
    return fitted()


@pytest.mark.parametrize(
    ("stream", "changed"),
    [
        ("init", {"init", "loss"}),
        ("split", {"split", "ids", "inputs", "loss"}),
        ("order", {"ids", "inputs", "loss"}),
        ("augment", {"inputs", "loss"}),
        ("step", {"loss"}),
        ("eval", set()),
    ],
)
def test_a_stream_changes_what_it_decides_and_nothing_else(stream, changed, fitted, plain):
    found = fitted(stream_seeds={stream: 7})
    assert plain.changed(found) == changed
    assert found.manifest.inputs["seeds"] == {"data": 42, "task": 42, "trainer": 42, "streams": {stream: 7}}


def test_seeds_of_all_streams_are_another_seed(fitted):
    names = ("split", "init", "order", "augment", "step", "eval")
    assert not fitted(seed=7).changed(fitted(stream_seeds=dict.fromkeys(names, 7)))


def test_without_them_nothing_is_recorded(plain):
    assert plain.manifest.inputs["seeds"] == {"data": 42, "task": 42, "trainer": 42}


def test_they_come_back_from_the_run_folder(toy_folder, tmp_path):
    run = small_fit(toy_folder, tmp_path, **RANDOM, stream_seeds="order=3, init=7")
    assert "stream_seeds: [init=7, order=3]" in (run.path / "config.yaml").read_text()
    again = autotimm.FitConfig.layered([("file", autotimm.config.read_yaml(str(run.path / "config.yaml"))[0])])
    assert again.stream_seeds == ("init=7", "order=3")


def test_objects_take_them_too(toy_folder, tmp_path):
    seed = RootSeed(42, {"init": 7, "split": 8})
    task = classifier(seed=seed)
    one = trainer(run_dir=tmp_path / "run", seed=RootSeed(42, {"order": 9}))
    one.fit(task, datamodule=toy_data(toy_folder, seed=seed))
    found = Manifest.load(tmp_path / "run" / "manifest.json").inputs["seeds"]
    assert found == {"data": 42, "task": 42, "trainer": 42, "streams": {"init": 7, "split": 8, "order": 9}}
    other = classifier(seed=7)
    assert all(torch.equal(a, b) for a, b in zip(classifier(seed=seed).parameters(), other.parameters(), strict=True))
    loaded = autotimm.Run(tmp_path / "run").model()  # plain data only, so that it loads without unpickling code
    assert loaded.root_seed == 42


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda seed: pickle.loads(pickle.dumps(seed))])
def test_a_copy_keeps_the_streams(copied):
    found = copied(RootSeed(42, {"init": 7}))
    assert (found, found.streams, type(found)) == (42, {"init": 7}, RootSeed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inti=7", "Did you mean 'init'"),
        ("init", "Seeds are whole numbers"),
        ("init=7,init=8", "Seeds are whole numbers"),
        ({"init": -1}, "must be pairs such as init=7,order=3"),
        ({"init": True}, "must be pairs"),
        ({"init": 2**32}, "must be pairs"),
        (7, "must be pairs"),
        ({}, "must be pairs"),
    ],
)
def test_mistakes_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        autotimm.FitConfig(path="photos", stream_seeds=value)


def test_an_unknown_stream_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'order'"):
        RootSeed(42, {"ordr": 1})
