import math
from dataclasses import replace

import pytest

from autotimm.records.causes import ManifestDifference, differences, likely_cause
from autotimm.records.ledger import Ledger, read_ledger
from autotimm.records.ledger_diff import Comparer, Difference, first_difference, numbers
from autotimm.records.manifest import Manifest


def run(epochs: int = 2, batches: int = 3) -> list[dict]:
    """The lines of a small run, as a listener hears them."""
    lines: list[dict] = []
    ledger = Ledger(None, lines.append)
    ledger.add("start", run="r" * 16, weights="w0", world_size=1)
    step = 0
    for epoch in range(epochs):
        for batch in range(batches):
            step += 1
            ledger.add(
                "step", epoch=epoch, batch=batch, step=step, ids=f"ids{step}", inputs=f"in{step}", loss=1 / step, lr=0.1
            )
            if step == 1:
                ledger.add("weights", step=step, weights=f"w{step}", buffers=f"b{step}")
        ledger.add("val", epoch=epoch, step=step, metrics={"val/loss": 2 / step, "val/f1": step / 10})
        ledger.add("epoch", epoch=epoch, step=step, metrics={"train/loss": 3 / step}, weights=f"w{step}",
                   buffers=f"b{step}", optimizer=f"o{step}", averaged=None)  # fmt: skip
    ledger.add("end", step=step)
    return lines


def at(lines: list[dict], kind: str, step: int | None = None) -> int:
    return next(
        index for index, line in enumerate(lines) if line["kind"] == kind and (step is None or line.get("step") == step)
    )


def changed(kind: str, step: int | None = None, /, **fields) -> list[dict]:
    lines = run()
    lines[at(lines, kind, step)] |= fields
    return lines


# --- the first difference --------------------------------------------------------------------------------------------


def test_equal_ledgers_have_no_difference():
    assert first_difference(run(), run()) is None
    assert first_difference([], []) is None


def test_the_chain_and_the_run_id_are_not_compared(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for line in changed("start", run="another"):
        ledger.add(**line) if "kind" not in line else ledger.add(
            line["kind"], **{k: line[k] for k in line if k != "kind"}
        )
    ledger.flush()
    assert first_difference(run(), read_ledger(tmp_path / "ledger.jsonl").lines) is None


@pytest.mark.parametrize(
    ("kind", "step", "fields", "stage", "field"),
    [
        ("start", None, {"weights": "x"}, "start", "weights"),
        ("start", None, {"world_size": 2}, "start", "world_size"),
        ("step", 4, {"ids": "x"}, "order", "ids"),
        ("step", 4, {"ids": "x", "inputs": "y", "loss": "z"}, "order", "ids"),
        ("step", 4, {"inputs": "x"}, "inputs", "inputs"),
        ("step", 4, {"inputs": "x", "loss": "z"}, "inputs", "inputs"),
        ("step", 4, {"loss": "0x1p-3"}, "forward", "loss"),
        ("step", 4, {"loss": None}, "forward", "loss"),
        ("step", 4, {"loss": "0x1p-3", "lr": "0x1p-3"}, "forward", "loss"),  # the rate acts after this loss
        ("step", 4, {"lr": "0x1p-3"}, "rate", "lr"),
        ("step", 4, {"batch": 7}, "length", "batch"),
        ("weights", 1, {"weights": "x"}, "update", "weights"),
        ("weights", 1, {"buffers": "x"}, "update", "buffers"),
        ("epoch", 3, {"optimizer": "x"}, "update", "optimizer"),
        ("epoch", 3, {"averaged": "x"}, "update", "averaged"),
        ("epoch", 3, {"metrics": {"train/loss": "x"}}, "validation", "train/loss"),
        ("val", 3, {"metrics": {"val/loss": "0x1p+0", "val/f1": "x"}}, "validation", "val/f1"),
        ("end", None, {"step": 5}, "length", "step"),
    ],
)
def test_the_first_field_that_differs_names_the_stage(kind, step, fields, stage, field):
    first = first_difference(run(), changed(kind, step, **fields))
    assert first is not None
    assert (first.stage, first.field) == (stage, field)
    back = first_difference(changed(kind, step, **fields), run())
    assert back is not None
    assert (back.stage, back.recorded, back.found) == (stage, first.found, first.recorded)


def test_a_difference_names_place_and_values():
    first = first_difference(run(), changed("step", 5, loss="0x1p-3"))
    assert first == Difference("forward", 1, 1, 5, "loss", (1 / 5).hex(), "0x1p-3", equal_until=3)
    assert first.place == "step 5 (epoch 2, batch 2)"


@pytest.mark.parametrize("missing", ["ids", "inputs"])
def test_fields_unknown_to_a_callers_own_loader_are_not_compared(missing):
    lines = [line | {missing: None} if line["kind"] == "step" else line for line in run()]
    assert first_difference(run(), lines) is None
    assert first_difference(lines, run()) is None


def test_a_nan_loss_equals_itself():
    assert first_difference(changed("step", 4, loss=math.nan.hex()), changed("step", 4, loss="nan")) is None


def test_a_metric_is_blamed_only_if_the_weights_after_it_are_equal():
    other = changed("val", 3, metrics={"val/loss": "x", "val/f1": "y"})
    assert first_difference(run(), other).stage == "validation"
    other[at(other, "epoch", 3)] |= {"weights": "x"}
    assert first_difference(run(), other).stage == "update"


def test_metrics_that_one_run_lacks_come_after_values_that_differ():
    recorded = run()[at(run(), "val", 3)]["metrics"]
    first = first_difference(run(), changed("val", 3, metrics=recorded | {"val/a": "1"}))
    assert (first.field, first.recorded, first.found) == ("val/a", None, "1")
    assert (
        first_difference(run(), changed("val", 3, metrics=recorded | {"val/a": "1", "val/f1": "2"})).field == "val/f1"
    )


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_longer_run_differs_in_its_length(cut):
    for pair in ((run(), run()[:-cut]), (run()[:-cut], run())):
        first = first_difference(*pair)
        assert (first.stage, first.field) == ("length", "lines")


def test_more_epochs_and_another_validation_interval():
    assert first_difference(run(epochs=2), run(epochs=3)).stage == "length"
    first = first_difference(run(), [line for line in run() if line["kind"] != "val"])
    assert (first.stage, first.recorded, first.found) == ("validation", "val", "epoch")


def test_a_line_of_an_unknown_kind_is_compared_as_a_whole():
    extra = {"kind": "note", "text": "a", "more": {}}
    assert first_difference([extra], [extra]) is None
    assert first_difference([extra], [extra | {"text": "b"}]).stage == "ledger"


@pytest.mark.parametrize("lost", [(3, 5), (2, 9), (5, 6)])
def test_around_a_gap_common_lines_are_compared(lost):
    whole = run()
    gap = {"kind": "gap", "step": 1, "reason": "damaged"}
    holed = [*whole[: lost[0]], gap, *whole[lost[1] :]]
    assert first_difference(holed, whole) is None
    assert first_difference(whole, holed) is None
    other = run()
    other[-2] |= {"weights": "x"}
    assert first_difference(holed, other).stage == "update"
    assert first_difference(other, holed).stage == "update"


def test_a_gap_at_the_end_is_no_difference():
    holed = [*run()[:4], {"kind": "gap", "step": 1, "reason": "damaged"}]
    assert first_difference(holed, run()) is None
    assert first_difference(run(), holed) is None


GAP = {"kind": "gap", "step": 1, "reason": "damaged"}


def test_lines_after_a_gap_that_the_run_does_not_have_are_a_difference():
    """A gap excuses lines that are missing, and none that are there."""
    invented = [line | {"epoch": 7} if line["kind"] == "step" else line for line in run()[1:4]]
    for holed in ([run()[0], GAP, *invented], [*run()[:4], GAP, *invented, *run()[8:]], [*run(), GAP, *invented]):
        assert first_difference(holed, run()).stage == "length"


def test_lines_that_are_told_twice_are_compared_twice():
    """A ledger that reached beyond the checkpoint of a resumed run tells the steps in between again."""
    twice = [*run()[:7], GAP, *run()[5:]]
    comparer = Comparer(twice)
    assert [comparer.take(line) for line in run()] == [None] * len(run())
    assert (comparer.finish(), comparer.steps, comparer.missing, comparer.remaining) == (None, 6, 0, 0)
    forged = [*run()[:4], run()[4] | {"loss": "0x1p-9"}, *run()[5:7], GAP, *run()[4:]]
    assert first_difference(forged, run()).stage == "forward"
    forged = [*run()[:7], GAP, *run()[4:6], run()[6] | {"metrics": {}}, *run()[7:]]
    assert first_difference(forged, run()) is not None


def test_steps_in_a_gap_are_not_counted_as_compared():
    lines = run()
    holed = [*lines[: at(lines, "step", 2)], GAP, *lines[at(lines, "step", 4) :]]
    comparer = Comparer(holed)
    assert [comparer.take(line) for line in lines] == [None] * len(lines)
    assert (comparer.finish(), comparer.steps, comparer.missing) == (None, 4, 2)


def test_every_field_is_compared_if_asked_for():
    def compared(kind: str, **fields: object) -> str:
        first = first_difference(changed(kind, 1 if kind == "step" else None, **fields), run(), every_field=True)
        return first.field if first is not None else ""

    assert compared("step", ids=None) == "ids"
    assert compared("step", inputs=None) == "inputs"
    assert compared("step", note="fine") == "note"
    assert compared("epoch", note=None) == "note"
    assert compared("start", run="another") == ""
    assert first_difference(run(), run(), every_field=True) is None


@pytest.mark.parametrize(
    ("kind", "fields"), [("step", {"epoch": False}), ("step", {"step": True}), ("end", {"step": 6.0})]
)
def test_values_of_another_type_are_other_values(kind, fields):
    assert first_difference(changed(kind, None, **fields), run()) is not None


def test_a_comparer_stops_at_the_first_difference():
    comparer, other = Comparer(run()), changed("step", 4, loss="0x1p-3")
    answers = [comparer.take(line) for line in other[: at(other, "step", 4) + 1]]
    assert answers[-1].stage == "forward"
    assert set(answers[:-1]) == {None}
    assert comparer.remaining == len(run()) - len(answers)


@pytest.mark.parametrize("value", [None, [], {}, {"a": [1]}, 3, "x", True])
@pytest.mark.parametrize("field", ["epoch", "batch", "step", "ids", "loss", "lr", "metrics", "weights"])
def test_malformed_lines_are_compared_like_others(field, value):
    other = [line | {field: value} if field in line else line for line in run()]
    gap = {"kind": "gap", "step": 1, "reason": "damaged"}
    for pair in ((run(), other), (other, run()), (other, other), ([gap, *other], run()), ([gap, *run()], other)):
        first_difference(*pair)
        numbers(*pair)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_pairs_steps_by_their_place():
    assert [distance.relative for distance in numbers(run(), run())] == [0.0] * 6
    other = changed("step", 4, loss=(1 / 4 + 1 / 400).hex())
    del other[at(other, "step", 2)]
    relative = {distance.step: distance.relative for distance in numbers(run(), other)}
    assert set(relative) == {1, 3, 4, 5, 6}
    assert relative.pop(4) == pytest.approx(0.01 / 1.01)
    assert set(relative.values()) == {0.0}


@pytest.mark.parametrize(
    ("a", "b", "relative"),
    [(0.0, -0.0, 0.0), (1.0, -1.0, 2.0), (0.0, 1e-300, 1.0), (1e308, -1e308, 2.0), (math.nan, math.nan, 0.0),
     (math.nan, 1.0, math.inf), (math.inf, 1.0, math.inf), (math.inf, math.inf, 0.0), (3.0, 4.0, 0.25)],
)  # fmt: skip
def test_the_relative_distance(a, b, relative):
    place = {"kind": "step", "epoch": 0, "batch": 0, "step": 1}
    assert numbers([place | {"loss": a.hex()}], [place | {"loss": b.hex()}])[0].relative == relative


# --- causes ----------------------------------------------------------------------------------------------------------

BASE = Manifest(
    inputs={"seeds": {"task": 1, "trainer": 1}, "data": {"digest": "a" * 64, "samples": 3}, "keyed": True,
            "config": {"model": {"lr": 0.001, "backbone": "a"}, "trainer": {"max_epochs": 2}},
            "transforms": {"train": "a" * 16}, "initial": "a" * 16, "code": {"model": "a" * 16}},
    environment={"threads": 2, "versions": {"torch": "2.14.1", "rich": "1"}, "git": None,
                 "switches": {"are_deterministic_algorithms_enabled": True}, "variables": {}},
    decisions={"recipe": {"lr": 0.001, "reason": "because"}},
)  # fmt: skip


def other(section: str, path: str, value) -> Manifest:
    def put(content: dict, names: list[str]) -> dict:
        inner = value if len(names) == 1 else put(content.get(names[0]) or {}, names[1:])
        return content | {names[0]: inner}

    return replace(BASE, **{section: put(getattr(BASE, section), path.split("/"))})


def difference(stage: str, **changes) -> Difference:
    return Difference(stage, 0, 3, 4, "field", "a", "b")._replace(**changes)


def test_differences_are_flat_and_leave_out_what_is_volatile():
    assert differences(BASE, replace(BASE, volatile={"host": "b"})) == []
    changed_rate = other("inputs", "config/model/lr", 0.002)
    assert differences(BASE, changed_rate) == [ManifestDifference("inputs", "config.model.lr", 0.001, 0.002)]
    assert differences(BASE, other("environment", "variables/MKL_CBWR", "AVX2")) == [
        ManifestDifference("environment", "variables.MKL_CBWR", None, "AVX2")
    ]
    assert differences(BASE, other("environment", "git", {"commit": "x"}))[0].name == "git.commit"
    assert differences(BASE, other("environment", "git", {"commit": None})) == []


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), (0, False), ("1", 1), ([1], [2])])
def test_values_of_another_type_differ(a, b):
    assert len(differences(Manifest({"x": a}, {}), Manifest({"x": b}, {}))) == 1


@pytest.mark.parametrize(
    ("stage", "section", "path", "value", "said"),
    [
        ("rate", "inputs", "config/model/lr", 0.002, "Likely the learning rate: 0.001 was recorded, 0.002 was found."),
        ("forward", "environment", "threads", 1, "Likely the number of threads: 2 was recorded, 1 is used."),
        ("forward", "environment", "processes", 2, "Likely the number of processes: none was recorded, 2 is used."),
        ("update", "environment", "precision", "16", "Likely the precision: none was recorded, 16 is used."),
        ("forward", "environment", "device", "cuda", "Likely the device: none was recorded, cuda is used."),
        ("order", "inputs", "data/digest", "b" * 64, "Likely other files, or other contents of them."),
        ("start", "inputs", "initial", "b" * 16, "Likely the initial weights."),
        ("start", "inputs", "seeds/task", 2, "Likely another seed of the model: 1 was recorded, 2 was found."),
        ("order", "inputs", "seeds/trainer", 2, "Likely another seed of the trainer: 1 was recorded, 2 was found."),
        ("inputs", "inputs", "transforms/train", "b" * 16, "Likely the settings or the code of a transform (train)."),
        ("forward", "inputs", "code/model", "b" * 16, "Likely the code of the task."),
        ("update", "environment", "git/commit", "b" * 40, "Likely the code of the project."),
        ("forward", "environment", "versions/torch", "3",
         "Likely the version of torch: 2.14.1 was recorded, 3 is used."),
        ("forward", "environment", "variables/MKL_CBWR", "AVX2",
         "Likely the environment variable MKL_CBWR: none was recorded, AVX2 is used."),
        ("forward", "environment", "switches/are_deterministic_algorithms_enabled", False,
         "Likely the switch torch.are_deterministic_algorithms_enabled: on was recorded, off is used."),
        ("start", "inputs", "config/model/backbone", "b", "Likely the option `backbone`: a was recorded, b was found."),
        ("length", "inputs", "config/trainer/max_epochs", 3,
         "Likely the option `epochs` (`max_epochs`): 2 was recorded, 3 was found."),
    ],
)  # fmt: skip
def test_a_cause_in_plain_words(stage, section, path, value, said):
    assert likely_cause(difference(stage), differences(BASE, other(section, path, value)), recorded=BASE) == said


@pytest.mark.parametrize(
    ("option", "lr", "recipe", "said"),
    [
        ((None, 0.002), (None, 0.002), (0.001, 0.002), "0.001 was recorded, 0.002 was found"),
        ((0.001, 0.002), (0.001, 0.002), (0.001, 0.002), "0.001 was recorded, 0.002 was found"),
        (None, (0.001, 0.002), (0.001, 0.002), "0.001 was recorded, 0.002 was found"),
        ((None, 0.002), (None, 0.002), None, "none was recorded, 0.002 was found"),
    ],
    ids=["left open", "given", "found by the finder", "without a recipe"],
)
def test_a_value_recorded_in_several_places_is_named_once(option, lr, recipe, said):
    places = (("inputs", "config.model.lr"), ("decisions", "lr"), ("decisions", "recipe.lr"))
    pairs = zip(places, (option, lr, recipe), strict=True)
    manifests = [ManifestDifference(*place, *pair) for place, pair in pairs if pair is not None]
    assert likely_cause(difference("rate"), manifests) == f"Likely the learning rate: {said}."


def test_files_are_named_where_they_are_known():
    manifests = differences(BASE, other("inputs", "data", {"digest": "b" * 64, "samples": 4}))
    assert (
        likely_cause(difference("order"), manifests, files=["photos/a.png"])
        == "Likely other files: photos/a.png changed."
    )
    many = likely_cause(difference("inputs"), manifests, files=list("abcde"))
    assert many == "Likely other files: a, b, c and 2 more changed."


def test_the_likeliest_comes_first_and_the_list_is_short():
    manifests = [ManifestDifference("environment", f"variables.X{number}", "1", "2") for number in range(5)]
    manifests += [
        ManifestDifference("environment", "threads", 2, 1),
        ManifestDifference("environment", "versions.x", "1", "2"),
    ]
    said = likely_cause(difference("forward"), manifests)
    assert said.startswith("Likely the number of threads: 2 was recorded, 1 is used; or the environment variable X0")
    assert said.endswith("; 3 more of what the manifests say differ.")


def test_an_unrelated_difference_is_not_called_likely():
    said = likely_cause(difference("rate"), differences(BASE, other("environment", "versions/rich", "2")))
    assert said.startswith("Nothing that usually matters here differs. What does differ: the version of rich: 1 was")


def test_reasons_results_and_levels_are_no_causes():
    manifests = [
        ManifestDifference("decisions", "recipe.reason", "a", "b"),
        ManifestDifference("levels", "R1", "a", "b"),
        ManifestDifference("results", "steps", 1, 2),
    ]
    assert likely_cause(difference("forward"), manifests).startswith("Nothing that is recorded differs.")


STAGES = ["start", "order", "inputs", "forward", "update", "rate", "validation", "length", "ledger"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_likely_cause_without_a_difference_of_manifests(stage):
    said = likely_cause(difference(stage), recorded=BASE)
    assert said.startswith("Nothing that is recorded differs. Likely ")
    assert said.endswith(".")


def test_an_unexpected_change_of_the_weights():
    said = (
        "outside of the records changed the weights after step 2: a callback, another process, or a non-deterministic"
    )
    assert said in likely_cause(difference("update", equal_until=2), recorded=BASE)
    assert said in likely_cause(difference("forward", equal_until=2), recorded=BASE)
    sure = likely_cause(difference("forward", equal_until=3), recorded=BASE)
    assert "the weights were equal before this step" in sure


def test_factors_that_an_older_version_did_not_record_are_named():
    later = other("environment", "package", "b" * 16)
    older = likely_cause(difference("forward"), differences(BASE, later), recorded=BASE)
    assert older.startswith("Likely the code of autotimm. The record is older and does not tell: the switch timm.")
    known = replace(later, environment={**later.environment, "threads": 1})
    said = likely_cause(difference("forward"), differences(BASE, known), recorded=BASE)
    assert said == "Likely the number of threads: 2 was recorded, 1 is used; or the code of autotimm."


def test_non_deterministic_kernels_are_named_where_nothing_differs():
    loose = replace(BASE, environment={"switches": {"are_deterministic_algorithms_enabled": False}})
    assert "deterministic=False" in likely_cause(difference("update"), recorded=loose)
    foreign = replace(BASE, inputs={"keyed": False})
    assert "the caller's own" in likely_cause(difference("order"), recorded=foreign)
    assert "the caller's own" not in likely_cause(difference("rate"), recorded=foreign)
