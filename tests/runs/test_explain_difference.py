"""Confirming the cause of a difference: each planted one is named by setting it back."""

import json
import sys

import pytest
import torch
from pytorch_lightning.callbacks import Callback

import autotimm
from autotimm.cli.main import main
from autotimm.runs.explain_difference.operators import Operator, first_operator
from autotimm.runs.run import Run, diff
from training import classifier, small_fit, toy_data, trainer

NONE = "no recorded factor restores the bits"


def fit(photos, out, name="one", **options):
    return small_fit(photos, out, **{"name": name, "epochs": 2, **options})


@pytest.fixture(scope="module")
def slower(photos, tmp_path_factory):
    return fit(photos, tmp_path_factory.mktemp("runs"), lr=1e-4)


class Touching(Callback):
    """Changes weights at a step, as no record tells."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(iter(pl_module.network.parameters())).add_(1e-3)


class TestRunsApart:
    @pytest.mark.slow
    def test_threads(self, photos, tmp_path):
        # Large enough for a sum to be shared among threads.
        options = {"backbone": "resnet18", "image_size": 64, "epochs": 1}
        a = fit(photos, tmp_path, "one", **options)
        b = fit(photos, tmp_path, "two", **{**options, "threads": 2})
        comparison = diff(a.path, b.path, explain=True)
        assert comparison.confirmed.startswith(
            "Confirmed: the number of threads (1 instead of 2) restores the bits of "
        )
        assert "The first operator that differs: aten." in comparison.confirmed
        assert "with equal inputs; epoch 1, batch 1." in comparison.confirmed
        assert str(comparison).splitlines()[-2:] == [comparison.confirmed, "different"]

    def test_a_learning_rate(self, run, slower):
        comparison = diff(run.path, slower.path, explain=True)
        assert comparison.confirmed.startswith("Confirmed: the learning rate (")
        assert "(optimizer), called with other numbers" in comparison.confirmed

    def test_augmentation_beside_a_silent_option(self, run, photos, tmp_path):
        other = fit(photos, tmp_path, "two", augmentation="light", keep="last")
        comparison = diff(run.path, other.path, explain=True)
        said = "Confirmed: the option `augmentation` (default instead of light) restores the bits of "
        assert comparison.confirmed.startswith(said)
        assert comparison.confirmed.endswith("replayed from the start.")

    def test_two_factors_together(self, run, photos, tmp_path):
        other = fit(photos, tmp_path, "two", augmentation="light", label_smoothing=0.2)
        comparison = diff(run.path, other.path, explain=True)
        assert comparison.confirmed.startswith("Confirmed: no single factor restores the bits, but all together do: ")

    def test_a_switch(self, run, photos, tmp_path):
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            other = fit(photos, tmp_path, "two")
        comparison = diff(run.path, other.path, explain=True)
        assert (
            "Confirmed: the switch torch.backends.mkldnn.enabled (on instead of off) restores" in comparison.confirmed
        )
        assert torch.backends.mkldnn.enabled

    def test_from_a_checkpoint(self, photos, tmp_path):
        # Both rates rise alike in the first epoch.
        options = {"warmup_epochs": 1.0, "epochs": 3}
        a = fit(photos, tmp_path, "one", schedule="cosine", **options)
        b = fit(photos, tmp_path, "two", schedule="linear", **options)
        comparison = diff(a.path, b.path, explain=True)
        assert comparison.confirmed.startswith("Confirmed: the option `schedule` (cosine instead of linear) restores")
        assert "replayed from epoch-0001-step-00000003.ckpt" in comparison.confirmed
        assert "(optimizer), called with other numbers; epoch 2, batch" in comparison.confirmed

    def test_a_checkpoint_from_which_nothing_differs(self, photos, tmp_path):
        # Both train alike until the patience of one ends, and its last checkpoint knows nothing of that.
        a = fit(photos, tmp_path, "one", epochs=3, schedule="constant", lr=1e-6, warmup_epochs=0)
        b = fit(photos, tmp_path, "two", epochs=3, schedule="constant", lr=1e-6, warmup_epochs=0, patience=1)
        comparison = diff(a.path, b.path, explain=True)
        assert comparison.confirmed.startswith("Confirmed: the option `patience` (none instead of 1) restores")
        assert "replayed from the start" in comparison.confirmed

    def test_runs_of_objects(self, photos, tmp_path):
        for name, options in (("a", {}), ("b", {"weight_decay": 0.3})):
            auto_trainer = trainer(2, run_dir=tmp_path / name)
            auto_trainer.fit(classifier(lr=1e-2, **options), datamodule=toy_data(photos))
        comparison = diff(tmp_path / "a", tmp_path / "b", explain=True)
        assert comparison.confirmed.startswith("Confirmed: the option `weight_decay` (none instead of 0.3) restores")
        assert "(optimizer)" in comparison.confirmed

    def test_an_argument_of_the_data_module(self, photos, tmp_path):
        for name, options in (("a", {}), ("b", {"augmentation": "none"})):
            trainer(1, run_dir=tmp_path / name).fit(classifier(), datamodule=toy_data(photos, **options))
        comparison = diff(tmp_path / "a", tmp_path / "b", explain=True)
        assert comparison.confirmed.startswith(
            "Confirmed: the option `augmentation` (default instead of none) restores"
        )

    def test_a_callback_that_touches_weights(self, photos, tmp_path):
        trainer(2, run_dir=tmp_path / "a").fit(classifier(), datamodule=toy_data(photos))
        touched = trainer(2, run_dir=tmp_path / "b", callbacks=[Touching(4)])
        touched.fit(classifier(), datamodule=toy_data(photos))
        comparison = diff(tmp_path / "a", tmp_path / "b", explain=True)
        assert f"{tmp_path / 'b'} cannot be replayed here: " in comparison.confirmed
        assert "`callbacks` of the run's trainer, given as an object" in comparison.confirmed
        assert NONE in comparison.confirmed
        assert f"the callback {__name__}.Touching" in comparison.confirmed

    def test_neither_run_can_be_replayed(self, photos, tmp_path):
        for name, step in (("a", 1), ("b", 2)):
            touched = trainer(1, run_dir=tmp_path / name, callbacks=[Touching(step)])
            touched.fit(classifier(), datamodule=toy_data(photos))
        comparison = diff(tmp_path / "a", tmp_path / "b", explain=True)
        assert comparison.confirmed.startswith("Not confirmed: neither run can be replayed. ")

    def test_equal_runs_need_no_cause(self, run):
        assert diff(run.path, run.path, explain=True).confirmed == ""

    def test_a_version_without_the_private_module(self, run, slower, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils._debug_mode", None)
        comparison = diff(run.path, slower.path, explain=True)
        assert comparison.confirmed.startswith("Confirmed: the learning rate (")
        assert "lacks the private module torch.utils._debug_mode" in comparison.confirmed

    def test_the_command(self, run, slower, capsys):
        assert main(["diff", str(run.path), str(slower.path), "--explain", "--json"]) == 5
        out, err = capsys.readouterr()
        assert json.loads(out)["confirmed"].startswith("Confirmed: the learning rate (")
        assert "explain: 1/1 the learning rate (" in err


class TestAgainstTheRecord:
    def test_a_switch(self, run, capsys):
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            code = main(["verify", str(run.path), "--explain"])
        lines = capsys.readouterr().out.splitlines()
        assert code == 5
        assert "Confirmed: the switch torch.backends.mkldnn.enabled (on instead of off) restores" in lines[-2]
        assert lines[-1].startswith("verdict: different")

    def test_no_factor_can_be_set_back(self, slower, tmp_path):
        # A record in which one loss is another, as if the processor had been.
        lines = [json.loads(line) for line in (slower.path / "ledger.jsonl").read_text().splitlines()]
        next(line for line in lines if line.get("step") == 2)["loss"] = "0x1.0p+0"
        ledger = autotimm.repro.Ledger(tmp_path / "forged.jsonl")
        for line in lines:
            ledger.add(line.pop("kind"), **{name: value for name, value in line.items() if name != "prev"})
        ledger.flush()
        (tmp_path / "forged.jsonl").replace(slower.path / "ledger.jsonl")
        verdict = Run(slower.path).verify(explain=True)
        assert verdict.verdict == "different"
        assert verdict.confirmed.startswith(f"Not confirmed: {NONE}; there is none that could be set back")

    def test_an_identical_run(self, run):
        assert run.verify(explain=True).confirmed == ""


def operator(name="aten.mm", arguments="t", inputs="1", outputs="1"):
    return Operator(name, "forward", "", arguments, inputs, outputs)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([operator(), operator("aten.add")], [operator(), operator("aten.mul")], "call other operators"),
        ([operator(), operator()], [operator()], "One of the two runs calls more operators: 2 and 1"),
        ([operator()], [operator()], "No operator of that step differs"),
        ([operator()], [operator(inputs="2", outputs="2")], "Its inputs differ before the step begins"),
    ],
)
def test_the_first_operator(a, b, said):
    assert said in first_operator(a, b)
