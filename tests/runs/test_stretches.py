"""`verify --stretches`: consistent on other hardware, different where somebody has cheated."""

import importlib.util
import json
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import Callback

import warm
from autotimm import Run
from autotimm.cli.main import main
from autotimm.errors import DifferentError, ModelError, UsageError
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.runs.file_contents import Finding
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.restore import rebuild
from autotimm.runs.stretches.choice import Stretch, draw, passing_chance, recorded_stretches, within_budget
from autotimm.runs.stretches.court import Court, StretchProof
from autotimm.runs.stretches.every_step import checkpoint_findings, every_step, settings_of
from autotimm.runs.stretches.measure import Measurement
from autotimm.runs.stretches.process import _require_instructions, other_instructions
from autotimm.runs.stretches.stretch_verdict import _not_comparable
from autotimm.tasks.checkpoint import read_checkpoint
from forger import Edit, write
from training import SMALL, small_fit, trainer

DRAWS = {1: 0, 2: 1}
"""By epoch, a challenge that draws its stretch alone."""
OTHER = "autotimm.runs.stretches.court.other_instructions"


class _FasterOnce(Callback):
    """Learns faster in one step, behind the back of the ledger."""

    def __init__(self, step: int, factor: float = 1.01) -> None:
        self.step, self.factor = step, factor

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= self.factor


class _OtherImageOnce(_FasterOnce):
    """Sees one image twice and another not at all."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            batch.images[0].copy_(batch.images[1])


class _OtherDecay(_FasterOnce):
    """Has another weight decay all the time, also in its checkpoints."""

    def on_train_start(self, trainer, pl_module):
        for group in trainer.optimizers[0].param_groups:
            group["weight_decay"] *= 2


def trained_with(cheat, run, place):
    rebuilt = rebuild(run.path, RunFolder(place / "cheat", place))
    rebuilt.trainer.callbacks.append(cheat)
    rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data)
    rebuilt.trainer.run_folder.write_config(rebuilt.config.to_yaml())
    return Run(place / "cheat")


def edited(run, place, change):
    def rewrite(folder: Path) -> None:
        path = folder / "ledger.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change([line for line in lines if line["kind"] == "step"])
        write(path, "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines))

    return Run(Edit("ledger", "ledger.jsonl: edited", rewrite, True).apply(run.path, place / "edited"))


@pytest.fixture(autouse=True)
def _no_other_process(monkeypatch):
    """Most tests replay in this process alone: another one takes seconds to start."""
    monkeypatch.setattr(OTHER, lambda recorded, device: ({}, ""))


@pytest.fixture(scope="module")
def honest(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OTHER, lambda recorded, device: ({}, ""))
        return run.verify(stretches=9, steps=2, challenge=1)


def test_honest_run_is_consistent_never_identical(honest, run):
    assert (honest.verdict, honest.exit_code, honest.identical) == ("consistent", 7, False)
    assert str(honest).splitlines()[-1].startswith("verdict: consistent")
    assert "all bits that were compared are equal" in str(honest)
    with pytest.raises(DifferentError, match="It is consistent"):
        honest.require_identical()
    answer = json.loads(json.dumps(honest.as_dict()))
    assert (answer["challenge"], answer["drawn"], answer["of_stretches"]) == (1, 2, 2)
    assert answer["chances"] == {"0.01": 0.0, "0.1": 0.0, "0.5": 0.0}  # all were drawn
    assert {name for each in answer["stretches"] for name in each["roundings"]} >= {"2 threads", "oneDNN off"}


def test_stretches_of_a_portable_run_have_equal_bits_or_are_different(toy_folder, tmp_path):
    portable = small_fit(toy_folder, tmp_path, portable=True, epochs=2)
    honest = portable.verify(stretches=9, steps=2, challenge=1)
    assert (honest.verdict, honest.exit_code) == ("consistent", 7)
    assert all(each.equal_bits and not each.roundings for each in honest.proof.stretches)  # none was needed
    cheat = trained_with(_FasterOnce(5, 1 + 1e-6), portable, tmp_path)
    found = cheat.verify(stretches=9, steps=3, challenge=1)
    assert (found.verdict, found.difference.stage) == ("different", "update")
    assert "a portable run has the same bits on every processor" in found.reason


def test_moving_averages_belong_to_a_stretch(toy_folder, tmp_path):
    found = small_fit(toy_folder, tmp_path, ema_decay=0.9).verify(stretches=1, challenge=1)
    assert found.verdict == "consistent", found
    assert found.proof.stretches[0].equal_bits


def test_same_challenge_same_stretches(run):
    choices = recorded_stretches(read_recorded(run.path), 2)
    assert [(each.start, each.first, each.steps) for each in choices] == [
        ("", 0, 2), ("epoch-0001-step-00000003.ckpt", 3, 2)
    ]  # fmt: skip
    many = [Stretch("", first, 5, 5, "") for first in range(0, 500, 5)]
    assert draw(many, 8, 3) == draw(many, 8, 3) != draw(many, 8, 4)
    assert [draw(choices, 1, DRAWS[epoch]) for epoch in (1, 2)] == [choices[:1], choices[1:]]
    times = sum(many[7] in draw(many, 8, challenge) for challenge in range(2000))
    assert abs(times / 2000 - (1 - passing_chance(many, 8, 0.01))) < 0.02


def test_the_longest_stretches_hide_most(run):
    stretches = [Stretch("", 0, 5, 5, ""), Stretch("", 5, 1, 1, ""), Stretch("", 6, 1, 1, "")]
    assert passing_chance(stretches, 1, 0.7) == pytest.approx(2 / 3)
    assert passing_chance(stretches, 3, 0.01) == 0


@pytest.mark.parametrize(
    ("cheat", "epoch", "stage", "words"),
    [
        # As in a budget, see below.
        pytest.param(_FasterOnce(3), 2, "forward", "other roundings are", marks=pytest.mark.slow),
        (_FasterOnce(2), 1, "update", "step 3 (epoch 1, batch 3)"),  # nothing but the weights shows the last step
        (_OtherImageOnce(4), 2, "forward", "step 5 (epoch 2, batch 2)"),
    ],
)
def test_cheating_in_a_step(run, tmp_path, cheat, epoch, stage, words):
    verdict = trained_with(cheat, run, tmp_path).verify(stretches=1, steps=3, challenge=DRAWS[epoch])
    assert (verdict.verdict, verdict.exit_code, verdict.difference.stage) == ("different", 5, stage)
    assert words in verdict.reason


def test_settings_in_checkpoints_are_those_of_the_options(run, tmp_path):
    verdict = trained_with(_OtherDecay(0), run, tmp_path).verify(stretches=1, steps=2, challenge=DRAWS[1])
    assert verdict.verdict == "different"
    assert any("`weight_decay` of group" in text for text in verdict.findings)


@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("lr", (1e-3).hex(), "rate"),
        ("ids", "0123456789abcdef", "order"),
        pytest.param("batch", 7, "length", marks=pytest.mark.slow),
    ],
)
def test_every_step_has_its_samples_and_its_rate(run, tmp_path, field, value, stage):
    """Also in a step that no stretch reaches."""
    forged = edited(run, tmp_path, lambda steps: steps[2].update({field: value}))
    verdict = forged.verify(stretches=1, steps=1, challenge=DRAWS[1])
    assert (verdict.verdict, verdict.difference.stage, verdict.difference.step) == ("different", stage, 3)


def test_invented_losses_and_inputs(run, tmp_path):
    def invent(steps):
        steps[4]["loss"] = (float.fromhex(steps[4]["loss"]) * 0.9999).hex()

    verdict = edited(run, tmp_path, invent).verify(stretches=1, steps=3, challenge=DRAWS[2])
    assert verdict.difference.stage == "forward"
    (tmp_path / "more").mkdir()
    forged = edited(run, tmp_path / "more", lambda steps: steps[0].update(inputs="0123456789abcdef"))
    assert forged.verify(stretches=1, steps=1, challenge=DRAWS[1]).difference.stage == "inputs"


def test_other_pixels_are_named_and_judged_by_their_own_noise(run, monkeypatch):
    """Where images cannot be made as recorded, that is no cheating; what it hides is said."""
    apart = ["the version of pillow: 1 was recorded, 2 is used"]
    monkeypatch.setattr("autotimm.runs.stretches.stretch_verdict.pixel_factors_apart", lambda manifest, now: apart)
    verdict = run.verify(stretches=1, steps=1, challenge=0)
    assert verdict.verdict == "consistent"


def test_another_instruction_set(photos, tmp_path, monkeypatch, capsys):
    """The images of a run with another one are made by a process with that one."""
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value).lower())]
    words = ["-m", "autotimm", "fit", photos, *options, "--out", tmp_path, "--name", "plain"]
    done = warm.run(words, env={"ATEN_CPU_CAPABILITY": "default"})  # which torch reads at its first operator
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(OTHER, other_instructions)
    monkeypatch.setattr("autotimm.runs.stretches.process.subprocess", warm.Subprocess)
    words = ["verify", str(tmp_path / "plain"), "--stretches", "1", "--steps", "2", "--challenge", "5", "--json"]
    code = main(words)
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (code, answer["verdict"]) == (7, "consistent"), out + err
    assert "ATEN_CPU_CAPABILITY=default" in err
    assert answer["stretches"][0]["inputs"]


@pytest.fixture(scope="module")
def exact(run, tmp_path_factory):
    """The second stretch, and what a single replay has measured in it; its settings, from the objects of the replay."""
    record, settings = read_recorded(run.path), []
    stretch = recorded_stretches(record, 3)[1]
    look = Measurement._look

    def note(self, measured, stretch, every, trainer, module):
        settings.append(settings_of(trainer, module))
        look(self, measured, stretch, every, trainer, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measurement, "_look", note)
        measured = Measurement(record, tmp_path_factory.mktemp("scratch")).measure(stretch, (), every=True)
    return record, stretch, measured, settings[0]


class TestVerdictOnWhatWasMeasured:
    """One replay, and what else it might have found."""

    PROOF = StretchProof(1, 1, 2, 3, 6, None, 3, {0.1: 0.5})

    def verdict(self, exact, apart=(), record=None, **changes):
        known, stretch, measured, _ = exact
        record = record or known
        court = Court(Measurement(record, record.folder, same_pixels=not apart), [*apart], "cpu", 1)
        return court.verdict([(stretch, replace(measured, **changes))], self.PROOF)

    def test_equal_bits_are_consistent(self, exact):
        verdict = self.verdict(exact)
        assert (verdict.verdict, verdict.exit_code, verdict.steps, verdict.of_steps) == ("consistent", 7, 3, 6)
        assert verdict.proof.stretches[0].equal_bits
        assert verdict.not_checked == ("the steps of no drawn stretch, but for their samples and learning rates",
                                       "validation and test")  # fmt: skip

    def test_a_step_that_the_options_do_not_give_is_different(self, exact):
        verdict = self.verdict(exact, wrong=["rate", 0, 1, 2, "lr", (0.5).hex(), (0.25).hex()])
        assert (verdict.verdict, verdict.exit_code, verdict.difference.stage) == ("different", 5, "rate")
        assert verdict.reason.startswith("The learning rate differs: first at step 2 (epoch 1, batch 2), stage rate")
        assert verdict.reason.endswith("0.5 was recorded, 0.25 found). That follows from the options alone.")

    def test_other_values_of_a_checkpoint_are_different(self, exact):
        text = "checkpoints/best.ckpt: its optimizer has 3 groups of parameters instead of 2"
        verdict = self.verdict(exact, findings=[text])
        assert (verdict.verdict, verdict.exit_code, verdict.findings) == ("different", 5, (text,))
        assert verdict.reason == f"The steps are consistent, and other values contradict each other: {text}."

    def test_a_damaged_record_is_incomplete(self, exact):
        damaged = replace(exact[0], findings=(Finding("splits.csv", "it is missing", damage=True),))
        verdict = self.verdict(exact, record=damaged)
        assert (verdict.verdict, verdict.exit_code) == ("incomplete", 6)
        assert verdict.findings == verdict.notes == ("splits.csv: it is missing",)
        assert str(verdict).endswith(
            "What could be replayed is consistent.\nverdict: incomplete (3 of 6 steps compared)"
        )

    def test_other_initial_weights_are_different(self, exact):
        record, stretch, measured, _ = exact
        first = replace(stretch, start="")
        court = Court(Measurement(record, record.folder), [], "cpu", 1)
        found = court.judge(first, replace(measured, initial="0" * 16))
        assert found.difference.stage == "start"
        assert found.reason.startswith("The initial weights differ: ")
        assert found.reason.endswith(f"{record.ledger.lines[0]['weights']} was recorded, {'0' * 16} found).")
        honest = court.judge(first, replace(measured, initial=record.ledger.lines[0]["weights"]))
        assert honest.difference is None
        apart = Court(court.asked, ["the version of pillow"], "cpu", 1)
        assert apart.judge(first, replace(measured, initial="0" * 16)).difference is None  # drawn elsewhere

    def test_weights_that_are_too_far_away_are_named(self, exact):
        name = next(iter(exact[2].recorded))
        verdict = self.verdict(exact, recorded={**exact[2].recorded, name: 1.0})
        assert (verdict.verdict, verdict.difference.stage, verdict.difference.field) == ("different", "update", name)
        assert verdict.reason.startswith("The weights differ: after step 6 (epoch 2, batch 3), stage update")

    def test_losses_that_other_pixels_may_explain_are_not_comparable(self, exact):
        apart = ["the version of pillow: 1 was recorded, 2 is used"]
        lines = {"": [{**line, "inputs": "0" * 16, "loss": (9.5).hex()} for line in exact[2].lines[""]]}
        verdict = self.verdict(exact, apart, lines=lines, recorded={})
        assert (verdict.verdict, verdict.exit_code, verdict.difference.stage) == ("not comparable", 4, "forward")
        assert f"But the images have other pixels here ({apart[0]}), and may explain it." in verdict.reason
        near = {"": [{**line, "inputs": "0" * 16} for line in exact[2].lines[""]]}
        verdict = self.verdict(exact, apart, lines=near)
        assert verdict.verdict == "consistent"
        assert verdict.not_checked[-1] == f"the pixels of the images, which are made otherwise here ({apart[0]})"

    @pytest.mark.parametrize(
        ("change", "stage"),
        [({"ids": "0" * 16}, "order"), ({"inputs": "0" * 16}, "inputs"), ({"lr": (0.5).hex()}, "rate"),
         ({"step": 9}, "length"), ({"batch": 7}, "length")],
    )  # fmt: skip
    def test_a_field_that_differs_is_one_of_its_stage(self, exact, change, stage):
        lines = {"": [{**exact[2].lines[""][0], **change}, *exact[2].lines[""][1:]]}
        assert self.verdict(exact, lines=lines).difference.stage == stage


class TestEveryStep:
    """What follows from the options for each line of the ledger, and for each checkpoint."""

    def found(self, exact, change, first=0, **settings):
        record, _, _, known = exact
        lines = change(deepcopy(record.ledger.lines))
        return every_step(lines, replace(known, **settings), trainer(), first)

    def test_every_step_of_an_honest_run_is_where_it_belongs(self, exact):
        assert self.found(exact, lambda lines: lines) is None
        assert self.found(exact, lambda lines: lines, first=1).stage == "length"

    def test_a_step_that_was_left_out_is_missed(self, exact):
        missing = self.found(exact, lambda lines: [line for line in lines if line.get("batch") != 1])
        assert (missing.stage, missing.field, missing.recorded, missing.found) == ("length", "batch", 2, 1)
        gap = {"kind": "gap", "step": 2}
        honest = self.found(exact, lambda lines: [gap, *(line for line in lines if line.get("batch") != 1)])
        assert honest is None  # the record says itself that it has one

    def test_batches_that_are_accumulated_make_one_step(self, exact):
        def halved(lines):
            for line in lines:
                line.update(step={0: 0, 1: 1, 2: 2}[line["batch"]] + 2 * line["epoch"]) if line["kind"] == "step" else 0
            return lines

        assert self.found(exact, halved, accumulated=2, schedule=None) is None
        assert self.found(exact, halved, accumulated=3, schedule=None).field == "step"

    def test_a_rate_is_that_of_its_step(self, exact):
        def faster(lines):
            steps = [line for line in lines if line["kind"] == "step"]
            steps[3]["lr"] = (float.fromhex(steps[3]["lr"]) * (1 + 1e-9)).hex()
            return lines

        assert self.found(exact, faster)[:4] == ("rate", 1, 0, 4)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda it: it.update(global_step=4), "it has 4 steps"),
            (lambda it: it["optimizer_states"][0].update(param_groups=[]), "its optimizer has 0 groups of parameters"),
            (lambda it: it["lr_schedulers"][0].update(base_lrs=[0.5]), "its schedule has the rates [0.5] instead of"),
            (lambda it: it["lr_schedulers"][0].update(last_epoch=1), "its schedule is at step 1"),
            (lambda it: it["optimizer_states"][0]["param_groups"][1].update(weight_decay=0.5),
             "`weight_decay` of group 1 of its optimizer is 0.5, and the options give 0.0"),
            (lambda it: it["optimizer_states"][0]["param_groups"][0].update(lr=0.5),
             "the learning rate of group 0 of its optimizer is 0.5 instead of"),
            (lambda it: next(each for name, each in it["state_dict"].items() if name.endswith(".weight")).mul_(2),
             "the ledger has another digest of its weights for this epoch"),
            (lambda it: it["optimizer_states"][0]["state"][0]["exp_avg"].mul_(2),
             "the ledger has another digest of its optimizer for this epoch"),
        ],
    )  # fmt: skip
    def test_a_checkpoint_is_one_that_its_run_can_have_written(self, exact, change, said):
        record, stretch, _, settings = exact
        checkpoint = deepcopy(read_checkpoint(record.folder / "checkpoints" / stretch.start))
        lines = record.ledger.lines
        assert [*checkpoint_findings(stretch.start, checkpoint, 3, settings, lines)] == []
        change(checkpoint)
        findings = [*checkpoint_findings(stretch.start, checkpoint, 3, settings, lines)]
        assert findings[0].startswith(f"checkpoints/{stretch.start}: {said}")
        assert all("another digest of its optimizer" in text for text in findings[1:])  # its digest covers its settings


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"results": {"changed_files": {"count": 1, "ids": ["a.png"]}}}, 3, "1 file changed while the run trained"),
        ({"environment": {"replay_versions": {"ledger": 0, "pipeline": 0, "streams": 0}}}, 4, "version"),
    ],
)
def test_records_that_no_machine_can_replay(run, tmp_path, changes, code, said):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    manifest = Manifest.load(copy.path / "manifest.json")
    replace(manifest, **{name: {**getattr(manifest, name), **new} for name, new in changes.items()}).save(
        copy.path / "manifest.json"
    )
    verdict = copy.verify(stretches=1, steps=1, challenge=0)
    assert (verdict.verdict, verdict.exit_code) == ("not comparable", code)
    assert said in verdict.reason
    whole = copy.verify()
    assert (whole.verdict, whole.exit_code) == ("not comparable", code)  # whoever asks for all of it hears the same


def test_without_the_data_or_with_other_settings_nothing_is_replayed(run, tmp_path, capsys):
    def edited_option(name, value):
        copy = shutil.copytree(run.path, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(re.sub(rf"(?m)^{name}: \S+", f"{name}: {value}", text))
        return Run(copy).verify(stretches=1, steps=1, challenge=0)

    verdict = edited_option("path", tmp_path / "gone")
    assert (verdict.verdict, verdict.exit_code) == ("not comparable", 3)
    assert "gone" in verdict.reason
    verdict = edited_option("lr", "0.25")
    assert (verdict.verdict, verdict.exit_code) == ("different", 5)
    assert "The settings of the run contradict each other: " in verdict.reason
    assert "config.yaml: lr" in verdict.reason or "model.lr" in verdict.reason
    assert "replaying" not in capsys.readouterr().err


def test_budget_is_spent_on_whole_stretches(run):
    """On a machine like that of the run no rounding is measured: the bits tell."""
    verdict = run.verify(budget=0.5, challenge=1)
    assert (verdict.verdict, verdict.exit_code, verdict.steps, verdict.of_steps) == ("consistent", 7, 3, 6)
    assert [(each.steps, each.roundings) for each in verdict.proof.stretches] == [(3, ())]
    assert "budget: 50.00% of 6 steps, 3 spent on stretches of up to 3 steps" in str(verdict)
    assert "all bits equal" in str(verdict)
    assert verdict.as_dict()["chances"]["0.01"] == 0.5


@pytest.mark.parametrize(
    ("budget", "steps", "drawn"),
    [(0.01, None, [1]), (0.4, None, [2]), (0.5, 1, [1, 1]), (0.5, 5, [3]), (0.99, None, [3]), (1.0, None, [3, 3])],
)
def test_what_is_drawn_stays_within_the_budget(run, budget, steps, drawn):
    for challenge in range(5):
        choice = within_budget(read_recorded(run.path), challenge, budget, steps)
        assert [each.steps for each in choice.drawn] == drawn


def test_cheating_is_found_within_a_budget(run, tmp_path):
    verdict = trained_with(_FasterOnce(3), run, tmp_path).verify(budget=1.0, challenge=0)
    assert (verdict.verdict, verdict.difference.stage) == ("different", "forward")
    assert [len(each.roundings) > 0 for each in verdict.proof.stretches] == [False, True]


@pytest.mark.parametrize("options", [{"schedule": "plateau"}, {"shards": 2}, {"extended": True}], ids=str)
def test_runs_of_other_kinds(photos, tmp_path, options):
    """A rate that depends on the validation, batches in shards, weights of another run to begin with."""
    extended = options.pop("extended", False)
    made = small_fit(photos, tmp_path, name="made", epochs=1 if extended else 2, **options)
    made = made.extend(epochs=2) if extended else made
    whole = made.verify(budget=1.0, challenge=1)
    assert (whole.verdict, whole.steps) == ("consistent", whole.of_steps)
    assert all(each.equal_bits for each in whole.proof.stretches)
    part = made.verify(stretches=1, steps=1, challenge=1)
    known = "samples and learning rates" if options.get("shards") else "samples"
    assert part.verdict == "consistent"
    assert part.not_checked[0] == f"the steps of no drawn stretch, but for their {known}"
    assert "images in another order" not in part.proof.stretches[0].roundings or not options.get("shards")


def test_several_processes_without_shards_are_refused(run):
    recorded = read_recorded(run.path)
    recorded.manifest.environment["processes"] = 2
    assert "has no shards" in _not_comparable(recorded, recorded_stretches(recorded, 2))


def test_noise_that_hides_much_is_named(run, honest):
    """A network may amplify rounding so fast that it hides what somebody has changed."""
    court = Court(Measurement(read_recorded(run.path), run.path), [], "cpu", 1)
    noisy = [replace(each, loss_noise=0.17) for each in honest.proof.stretches[:1]]
    texts = court._not_checked(noisy, rates=True)
    assert any("rounding alone moves their losses by up to 17%" in text for text in texts)
    assert not any("rounding" in text for text in honest.not_checked)


def test_options_that_do_not_go_together(run):
    with pytest.raises(UsageError, match="jobs"):
        run.verify(stretches=1, jobs=0)
    with pytest.raises(UsageError, match="budget"):
        run.verify(budget=1.5)
    for words, part in (
        (["--challenge", "3"], "needs --stretches"),
        (["--stretches", "2", "--epochs", "1:1"], "epochs"),
        (["--stretches", "2", "--budget", "10%"], "do not go together"),
        (["--budget", "120%"], "a share above 0 and at most 1"),
    ):
        done = warm.run(["-m", "autotimm", "verify", run.path, *words])
        assert (done.returncode, part in done.stderr) == (2, True), done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_needs_its_extra(run):
    with pytest.raises(UsageError, match=r"pip install 'autotimm\[ray\]'"):
        run.verify(stretches=1, launcher="ray")


def test_a_machine_of_another_kind_is_refused(run):
    """Its pixels and its noise would be others than those that the verdict is about."""
    with pytest.raises(ModelError, match="instruction set of the one that verifies"):
        _require_instructions("another")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_with_ray(run, honest):
    verdict = run.verify(stretches=2, steps=2, challenge=1, jobs=2, launcher="ray")
    assert verdict.verdict == "consistent"
    assert [each.loss for each in verdict.proof.stretches] == [each.loss for each in honest.proof.stretches]


@pytest.mark.slow
def test_parallel_processes_keep_to_a_budget(run):
    verdict = run.verify(budget=1.0, challenge=1, jobs=2)
    assert (verdict.verdict, verdict.steps) == ("consistent", 6)
    assert all(each.equal_bits and not each.roundings for each in verdict.proof.stretches)


@pytest.mark.slow
def test_parallel_processes_measure_the_same(run, honest):
    verdict = run.verify(stretches=2, steps=2, challenge=1, jobs=2)
    assert verdict.verdict == "consistent"
    assert [each.loss for each in verdict.proof.stretches] == [each.loss for each in honest.proof.stretches]
