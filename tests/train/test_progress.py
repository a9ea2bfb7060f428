"""What a run says while it runs: on standard error, and little."""

import io

import pytest
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console

from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.progress import LiveBar, PlainLines, make_progress, say
from training import classifier, digest, toy_data, trained, trainer


def shown(toy_folder, capfd, **options):
    trainer(2, enable_progress_bar=True, **options).fit(classifier(), datamodule=toy_data(toy_folder))
    captured = capfd.readouterr()
    assert captured.out == ""
    return captured.err


class TestPlainLines:
    def test_a_header_and_a_line_per_epoch(self, toy_folder, tmp_path, capfd):
        lines = shown(toy_folder, capfd, run_dir=tmp_path / "run").splitlines()
        assert lines[0] == "data: 18 train, 6 val images, 3 classes, 32 px"
        assert lines[1].startswith("model: test_resnet, 0.")
        assert lines[2] == "weights: random (pretrained is off)"
        assert lines[3].startswith("lr ")
        assert lines[4] == f"run folder: {tmp_path / 'run'}"
        assert [line.split("  ")[0] for line in lines[5:7]] == ["epoch 1/2", "epoch 2/2"]
        assert lines[7:10] == [
            f"reproducibility (autotimm verify {tmp_path / 'run'} checks it)",
            "  R0        checked",
            "  R1 R2 R3  expected",
        ]
        assert [line[:23] for line in lines[10:]] == [f"  R{number}        no, because" for number in (4, 5, 6, 7)]
        assert "val/accuracy 0." in lines[5]

    def test_validation_test_and_prediction_say_nothing(self, toy_folder, capfd):
        model, data = classifier(), toy_data(toy_folder, test_split=0.2)
        one = trainer(enable_progress_bar=True)
        one.validate(model, datamodule=data)
        one.test(model, datamodule=data)
        one.predict(model, data.val_dataloader())
        assert capfd.readouterr() == ("", "")

    def test_it_is_what_a_pipe_gets(self):
        assert type(make_progress(EpochMetrics())) is PlainLines

    def test_it_can_be_switched_off(self, toy_folder, capfd):
        trained(toy_folder)
        assert capfd.readouterr() == ("", "")

    def test_brackets_in_names_are_no_markup(self, capfd):
        say("folder [bold]x[/bold] [/]")
        assert capfd.readouterr().err == "folder [bold]x[/bold] [/]\n"


class TestLiveBar:
    def test_it_trains_alike_and_leaves_a_line_per_epoch(self, toy_folder):
        bar = LiveBar(EpochMetrics())
        bar.console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
        model = classifier()
        trainer(2, enable_progress_bar=True, callbacks=[bar]).fit(model, datamodule=toy_data(toy_folder))
        assert digest(model) == digest(trained(toy_folder, 2))
        assert "data: 18 train, 6 val images" in bar.console.file.getvalue()

    @pytest.mark.parametrize("theirs", [TQDMProgressBar, RichProgressBar])
    def test_somebody_elses_bar_replaces_ours(self, theirs):
        given = theirs()
        one = trainer(enable_progress_bar=True, callbacks=[given])
        assert one.progress_bar_callback is given
