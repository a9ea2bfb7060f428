"""The caller's generators, those of devices too, come back as they were where they are not asked to be seeded."""

import pytest
import torch

from autotimm import AutoTrainer, TunerConfig
from autotimm.train.lightning_compat import seeded_devices
from training import classifier, toy_data, trainer


def test_the_device_of_this_process():
    assert seeded_devices(trainer()) == [torch.device("cpu")]


def test_none_where_processes_are_forked_later():
    several = AutoTrainer(1, accelerator="cpu", devices=2, strategy="ddp_fork", run_dir=False)
    assert seeded_devices(several) == []


@pytest.mark.parametrize("finder", [None, TunerConfig(lr=True, steps=30)], ids=["fit", "finder"])
def test_on_the_cpu(toy_folder, finder):
    one, model = trainer(seed=None, tuner=finder), classifier()
    before = torch.get_rng_state()
    one.fit(model, datamodule=toy_data(toy_folder))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("finder", [None, TunerConfig(lr=True, steps=30)], ids=["fit", "finder"])
def test_on_a_gpu(toy_folder, finder):
    one, model = trainer(seed=None, tuner=finder, accelerator="gpu", devices=[0]), classifier()
    before = torch.cuda.get_rng_state(0)
    one.fit(model, datamodule=toy_data(toy_folder))
    assert torch.equal(torch.cuda.get_rng_state(0), before)
