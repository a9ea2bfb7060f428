"""What a run says while it runs: on standard error, and little."""

import builtins
import re
import sys
import types

import pytest
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.progress import LiveBar, NotebookOutput, PlainLines, make_progress, say
from training import StopAfter, classifier, digest, toy_data, trained, trainer


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
        run = tmp_path / "run"
        assert re.fullmatch(r"finished: 2 epochs, \d+ s", lines[7])
        best = re.fullmatch(r"best epoch: ([12])  (val/loss .*)", lines[8])
        assert best[2] in lines[4 + int(best[1])]
        claims = "R0 checked, R1 R2 R3 expected, not R4 R5 R6 R7"
        assert lines[9:] == [
            f"reproducibility: {claims} (autotimm levels {run})",
            f"run folder: {run}",
            f"next: autotimm predict {run} IMAGES",
        ]
        assert "val/accuracy 0." in lines[5]

    def test_a_resumed_run_says_where_it_goes_on_and_a_test_set_is_the_next_step(self, toy_folder, tmp_path, capfd):
        run, options = tmp_path / "run", {"test_split": 0.2}
        trainer(2, run_dir=run, callbacks=[StopAfter(0)]).fit(classifier(), datamodule=toy_data(toy_folder, **options))
        capfd.readouterr()
        again = trainer(2, run_dir=run, enable_progress_bar=True)
        again.fit(classifier(), datamodule=toy_data(toy_folder, **options), ckpt_path="last")
        lines = capfd.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("resumed at")] == ["resumed at epoch 2, batch 1, step 2"]
        assert any(re.fullmatch(r"finished: 2 epochs, \d+ s since it was resumed", line) for line in lines)
        assert lines[-1] == f"next: autotimm test {run}"

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
        say("folder [bold]x[/bold] [/] :cat:")
        assert capfd.readouterr().err == "folder [bold]x[/bold] [/] :cat:\n"

    def test_names_cannot_steer_a_terminal(self, capfd):
        say("classes: \x1b[2Jcat\nverdict: identical")
        assert capfd.readouterr().err == "classes: \\x1b[2Jcat\\nverdict: identical\n"


class TestLiveBar:
    def test_it_trains_alike_and_leaves_a_line_per_epoch(self, toy_folder, capfd):
        bar = LiveBar(EpochMetrics())
        model = classifier()
        trainer(2, enable_progress_bar=True, callbacks=[bar]).fit(model, datamodule=toy_data(toy_folder))
        assert digest(model) == digest(trained(toy_folder, 2))
        lines = capfd.readouterr().err.splitlines()
        assert lines[0] == "data: 18 train, 6 val images, 3 classes, 32 px"
        assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]

    @pytest.mark.parametrize("theirs", [TQDMProgressBar, RichProgressBar])
    def test_somebody_elses_bar_replaces_ours(self, theirs):
        given = theirs()
        one = trainer(enable_progress_bar=True, callbacks=[given])
        assert one.progress_bar_callback is given


class TestNotebookOutput:
    """With a shell of the kernel's class, and a display that notes what it is given."""

    @pytest.fixture
    def outputs(self, monkeypatch):
        shown = []

        class Handle:
            def update(self, data, *, raw):
                shown[-1].append(data["text/plain"])

        def display(data, *, raw, display_id):
            shown.append([data["text/plain"]])
            return Handle()

        module = types.ModuleType("IPython.display")
        module.display = display
        monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", module)
        shell = type("ZMQInteractiveShell", (), {})()
        monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
        return shown

    def test_a_fit_is_one_output_that_is_updated(self, toy_folder, tmp_path, outputs, capfd):
        fitted = trainer(2, enable_progress_bar=True, run_dir=tmp_path / "run")
        assert type(fitted.progress_bar_callback) is NotebookOutput
        model = classifier()
        fitted.fit(model, datamodule=toy_data(toy_folder))
        (updates,) = outputs
        assert len(updates) > 2
        lines = updates[-1].splitlines()
        assert lines[0] == "data: 18 train, 6 val images, 3 classes, 32 px"
        assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
        assert lines[-1] == f"next: autotimm predict {tmp_path / 'run'} IMAGES"
        assert capfd.readouterr() == ("", "")
        assert digest(model) == digest(trained(toy_folder, 2))

    def test_another_fit_begins_another_output(self, toy_folder, outputs):
        fitted = trainer(1, enable_progress_bar=True)
        for _ in range(2):
            fitted.fit(classifier(), datamodule=toy_data(toy_folder))
            fitted.fit_loop.epoch_progress.reset()
        assert len(outputs) == 2


KERNEL = """
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
data = ImageDataModule({data!r}, image_size=32, batch_size=8, num_workers=0)
model = ImageClassifier("test_resnet", 3, pretrained=False, image_size=32)
AutoTrainer(3, accelerator="cpu", threads=1, run_dir={run!r}).fit(model, datamodule=data)
"""


@pytest.mark.slow
def test_a_real_kernel_gets_one_output(toy_folder, tmp_path):
    pytest.importorskip("ipykernel", reason="no kernel for notebooks is installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
    nbformat = pytest.importorskip("nbformat")
    code = KERNEL.format(data=str(toy_folder), run=str(tmp_path / "run"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output for output in notebook.cells[0].outputs if output.output_type != "stream"]
    assert len(shown) == 1
    assert "epoch 3/3" in shown[0].data["text/plain"]
