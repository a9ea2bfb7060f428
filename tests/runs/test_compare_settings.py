"""What a record says of its settings against its replay: what is a contradiction, and what is only not checked."""

import re
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest

from autotimm.config.record import said_sources
from autotimm.models.backbone.weights import RANDOM_BY_RECORD, Weights
from autotimm.records.digest import config_digest
from autotimm.records.manifest import SOURCES
from autotimm.runs.compare_settings import config_findings, manifest_findings
from autotimm.runs.file_contents import Finding
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.replayed_run import Replay
from autotimm.runs.restore import read_config

GONE = object()
EARLIER = {"environment.package": "0" * 16}
"""Of a manifest that another version of autotimm wrote."""


def edited(manifest, changes):
    """A manifest with other values at dotted places; GONE takes one out."""
    content = deepcopy({name: getattr(manifest, name) for name in ("inputs", "environment", "decisions", "results",
                                                                    "levels")})  # fmt: skip
    for place, value in changes.items():
        *folders, name = place.split(".")
        inside = content
        for folder in folders:
            inside = inside.setdefault(folder, {})
        if value is GONE:
            del inside[name]
        else:
            inside[name] = value
    return replace(manifest, **content)


@pytest.fixture(scope="module")
def record(run):
    return read_recorded(run.path)


@pytest.fixture(scope="module")
def replay(record):
    """A replay that has left the very record, but for what it finds out anew."""
    return Replay(
        record.folder, record.ledger.lines, record.manifest, ended=True, config=read_config(record.folder),
        weights=Weights(note=RANDOM_BY_RECORD), recipe=record.manifest.decisions["recipe"],
    )  # fmt: skip


@pytest.fixture
def said(record, replay):
    """What is said of a record and a replay that differ from these: findings, and in words what is not checked."""

    def compared(changes=None, found=None, *, both=None, **of_replay):
        both = both or {}
        run = replace(record, manifest=edited(record.manifest, {**both, **(changes or {})}))
        other = replace(replay, manifest=edited(record.manifest, {**both, **(found or {})}), **of_replay)
        every = [*manifest_findings(run, other)]
        return [str(one) for one in every if isinstance(one, Finding)], [one for one in every if isinstance(one, str)]

    return compared


@pytest.fixture
def options_said(record, replay, tmp_path):
    """What is said of a record with another `config.yaml`."""

    def compared(change, manifest=None, *, resigned=True, **of_replay):
        folder = tmp_path / "run"
        folder.mkdir()
        text = change((record.folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(text)
        signed = {f"results.{SOURCES}": config_digest(said_sources(text))} if resigned else {}
        run = replace(record, folder=folder, manifest=edited(record.manifest, {**signed, **(manifest or {})}))
        every = [*config_findings(run, replace(replay, **of_replay))]
        return [str(one) for one in every if isinstance(one, Finding)], [one for one in every if isinstance(one, str)]

    return compared


def with_option(name, value, source=None):
    """The options with another value of one, and who has decided it."""

    def change(text):
        old = re.search(rf"^{name}: .*?  # (.*)$", text, flags=re.MULTILINE)
        return text.replace(old[0], f"{name}: {value}  # {source or old[1]}")

    return change


def test_a_record_and_its_own_replay_agree(said, options_said):
    assert said() == ([], [])
    assert options_said(lambda text: text) == ([], [])


# The manifest


def test_a_value_that_one_of_two_versions_lacks_is_not_checked(said):
    changes = {"inputs.seeds.other": 5}
    assert said(changes) == (["manifest.json: inputs.seeds.other: 5 was recorded, nothing found"], [])
    found, unchecked = said({**changes, **EARLIER})
    assert found == []
    assert "manifest.json: inputs: 1 value that only one of the two versions of autotimm records" in unchecked
    _, unchecked = said({**changes, **EARLIER, "inputs.seeds.data": GONE})
    assert "manifest.json: inputs: 2 values that only one of the two versions of autotimm records" in unchecked
    found, _ = said({**EARLIER, "inputs.seeds.data": 43})  # both have it
    assert found == ["manifest.json: inputs.seeds.data: 43 was recorded, 42 found"]


def test_code_is_bound_where_it_is_ours_and_of_the_same_versions(said):
    for name in ("inputs.code", "inputs.transforms.train"):
        found, _ = said({name: "0" * 16})
        assert len(found) == 1
        assert found[0].startswith(f"manifest.json: {name}: 0000000000000000 was recorded, ")
    own = {"inputs.config.model_class": "photos.Mine", "inputs.config.data.train_transforms": "photos.crop"}
    for name in ("inputs.code", "inputs.transforms.train"):
        found, unchecked = said({name: "0" * 16}, both=own)
        assert (found, len(unchecked)) == ([], 1)
        assert re.fullmatch(rf"manifest\.json: {name} \(.* is another one\)", unchecked[0])
    found, unchecked = said({"inputs.code": "0" * 16}, {"environment.versions.timm": "0.0"})
    assert found == []
    assert unchecked[0].startswith("manifest.json: inputs.code (")


def test_a_replay_from_a_checkpoint_does_not_see_the_start(said):
    changes = {"inputs.initial": "0" * 16, "decisions.weights.source": "hub"}
    found, _ = said(changes)
    assert [text.split(": ")[1] for text in found] == ["inputs.initial", "decisions.weights.source"]
    assert said(changes, first_epoch=1) == (
        [],
        [f"manifest.json: {name} (the replay begins at a checkpoint)" for name in ("inputs.initial",
                                                                                   "decisions.weights")],
    )  # fmt: skip


def test_a_search_is_made_again_by_a_whole_replay_alone(said):
    both = {"decisions.search.budget": "3x"}
    assert said(both=both) == ([], [])
    _, unchecked = said(both=both, part="epoch 2")
    assert unchecked == ["manifest.json: decisions.search (a replay of the whole run makes the search again)"]


def test_the_recipe_is_the_one_that_is_chosen_now(said, record):
    recipe = {**record.manifest.decisions["recipe"], "lr": 0.25}
    assert said(recipe=recipe) == (["manifest.json: decisions.recipe.lr: 0.0005 was recorded, 0.25 found"], [])
    found, unchecked = said(EARLIER, recipe=recipe)
    assert found == []
    assert "manifest.json: decisions.recipe.lr (another version of autotimm has chosen it)" in unchecked


class TestWeights:
    CACHED = Weights("cache", "a" * 64, note="weights: timm/r (cache, 3 MB)")

    def test_what_was_fetched_once_is_in_the_cache(self, said):
        fetched = {"decisions.weights": {**self.CACHED.as_dict(), "source": "hub",
                                         "note": "weights: timm/r (hub, 3 MB)"}}  # fmt: skip
        found, _ = said(fetched, weights=self.CACHED)
        assert found == ["config.yaml: pretrained: False was recorded, pretrained weights found"]
        fetched["decisions.weights"]["sha256"] = "b" * 64
        found, _ = said(fetched, weights=self.CACHED)
        assert [text.partition(" was ")[0] for text in found[1:]] == [
            f"manifest.json: decisions.weights.sha256: {'b' * 57}..."
        ]

    def test_weights_of_another_run_are_no_contradiction(self, said):
        both = {"inputs.start": {"kind": "run"}, "decisions.weights": self.CACHED.as_dict()}
        assert said(both=both, weights=self.CACHED) == ([], [])

    def test_a_module_that_records_none_has_none(self, said):
        assert said(both={"decisions.weights": None}, weights=None) == ([], [])
        found, _ = said(both={"decisions.weights": None})
        assert found[0].startswith("manifest.json: decisions.weights: none was recorded, ")
        found, _ = said(weights=None)
        assert found[0].endswith(", none found")

    def test_random_weights_were_asked_for_or_there_is_a_reason(self, said, record, tmp_path):
        changes = {"decisions.weights.note": "weights: random (no network)"}
        found, _ = said(changes)
        assert found == ["manifest.json: decisions.weights.note: weights: random (no network) was recorded, "
                         "weights: random (pretrained is off) found"]  # fmt: skip
        text = (record.folder / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(with_option("pretrained", "auto", "default")(text))
        open_record = replace(record, folder=tmp_path, manifest=edited(record.manifest, changes))
        own = Replay(tmp_path, [], open_record.manifest, ended=True, weights=Weights(note=RANDOM_BY_RECORD),
                     recipe=record.manifest.decisions["recipe"])  # fmt: skip
        assert [*manifest_findings(open_record, own)] == [
            "manifest.json: decisions.weights.note (why no pretrained weights were available)"
        ]
        (tmp_path / "config.yaml").write_text(
            "model: {class_path: a.B, init_args: {pretrained: false}}\ndata: {class_path: a.D}\ntrainer: {}\n"
        )
        (finding,) = manifest_findings(open_record, own)
        assert str(finding).endswith("weights: random (pretrained is off) found")


def test_surroundings_are_bound_where_options_decide_them(said):
    for name, value in (("threads", 3), ("device", "cuda"), ("callbacks.Mine", 1)):
        found, unchecked = said({f"environment.{name}": value}, both={"environment.callbacks.Ours": 2})
        assert len(found) == 1, name
        assert unchecked == []
        assert found[0].startswith(f"manifest.json: environment.{name}"), name
    both = {"inputs.config.trainer.portable": True}
    assert said({"environment.threads": 3}, both=both) == ([], [])  # they change no bit of such a run
    found, unchecked = said({"environment.device": "cuda"}, both={"inputs.config.trainer.accelerator": "auto"})
    assert (found, unchecked) == ([], ["environment.device: the device: cuda was recorded, cpu is used"])
    assert said({"environment.git": {"commit": "0" * 40}}) == ([], ["environment.git: the code of the project"])


def test_surroundings_that_an_earlier_version_did_not_know_are_counted(said):
    changes = {**EARLIER, "environment.hardware.cpu": GONE, "environment.hardware.system": GONE}
    found, unchecked = said(changes)
    assert found == []
    assert unchecked[-1] == "environment: 2 values that the version of autotimm that made the run did not record"
    assert all(text.startswith("environment.package: ") for text in unchecked[:-1])


def test_levels_are_those_that_the_replay_claims(said):
    assert said({"levels.R3": "checked"}) == (["manifest.json: levels.R3: checked was recorded, expected found"], [])
    assert said({**EARLIER, "levels.R3": "checked"})[0] == []  # earlier versions wrote what was checked
    found, _ = said({**EARLIER, "levels.R3": "no, because of something else"})
    assert found == ["manifest.json: levels.R3: no, because of something else was recorded, expected found"]
    both = {"inputs.start.kind": "run"}
    _, unchecked = said({"levels.R1": "no, because its data are gone"}, both=both, first_epoch=1)
    assert "manifest.json: levels.R1 (the replay begins at a checkpoint)" in unchecked


def test_results_are_bound_to_the_end(said, record):
    changes = {"results.steps": 5}
    assert said(changes) == (["manifest.json: results.steps: 5 was recorded, 6 found"], [])
    assert said(changes, ended=False) == ([], ["manifest.json: results"])
    assert said({"results": {"status": "interrupted"}}) == ([], [])
    (found,), _ = said({"results.ledger": "0" * 16})
    assert found == f"manifest.json: results.ledger: {'0' * 16} was recorded, {record.ledger.last} found"


# Options


def test_every_option_is_there_and_none_more(options_said):
    found, _ = options_said(lambda text: re.sub(r"^(record|keep|patience): .*\n", "", text, flags=re.MULTILINE))
    assert found == ["config.yaml: it does not say `record: 2` as the file of a run does",
                     "config.yaml: it lacks patience, keep"]  # fmt: skip


def test_options_that_an_earlier_version_did_not_know_are_named(options_said):
    found, unchecked = options_said(lambda text: re.sub(r"^keep: .*\n", "", text, flags=re.MULTILINE), EARLIER)
    assert (found, unchecked) == ([], ["config.yaml: keep (unknown to the version that made the run)"])


def test_the_task_is_the_one_of_the_data(options_said, replay):
    found, _ = options_said(lambda text: text, config=replace(replay.config, task="detection"))
    assert found == ["config.yaml: task: classification was recorded, detection found"]


def test_what_a_recipe_decides_is_what_it_has_chosen(options_said):
    found, _ = options_said(with_option("lr", 0.25))
    assert found == ["config.yaml: lr: 0.25 was recorded, 0.0005 found"]


def test_what_was_asked_for_comes_before_the_recipe(options_said):
    found, _ = options_said(lambda text: text, {"inputs.config.model.lr": 0.125})
    assert found == ["config.yaml: lr: 0.0005 was recorded, 0.125 found"]


def test_what_was_chosen_is_written_at_the_end(options_said):
    left_open = with_option("lr", "auto", "default")
    assert options_said(left_open)[0] == ["config.yaml: lr: it lacks what was chosen, 0.0005"]


def test_what_is_not_chosen_yet_is_missing_in_an_unfinished_run(options_said):
    left_open = with_option("lr", "auto", "default")
    assert options_said(left_open, {"results": {"status": "interrupted"}}, resigned=False) == ([], [])


@pytest.mark.parametrize(
    ("option", "search", "said"),
    [
        ("3x", None, "config.yaml: search_budget: the manifest has no search"),
        ("0x", {"budget": "3x"}, "config.yaml: search_budget: the manifest has a search"),
        ("3x", {"budget": 3.0, "chosen": 1}, "manifest.json: decisions.search: it does not say what was open and what "
                                             "was chosen"),
        ("3x", {"budget": 2.0, "chosen": {}, "asked": {}}, "config.yaml: search_budget: 3.0 was recorded, 2.0 found"),
        ("3x", {"budget": 3.0, "chosen": {"head_dropout": 0.5}, "asked": {"head_dropout": None, "other": 1}},
         "manifest.json: decisions.search.chosen.head_dropout: 0.5 was recorded, 0.0 found"),
    ],
)  # fmt: skip
def test_a_search_has_decided_what_it_says(option, search, said, options_said):
    manifest = {} if search is None else {"decisions.search": search}
    found, _ = options_said(with_option("search_budget", option, "argument"), manifest)
    assert found == [said]


def test_what_was_looked_for_is_what_was_found(options_said):
    found, unchecked = options_said(with_option("lr_find", "true", "argument"))
    assert found == ["config.yaml: lr_find: the manifest does not say what was found"]
    assert unchecked == ["config.yaml: lr_find (the search is not made again)"]


@pytest.mark.parametrize(
    ("name", "value", "source", "said"),
    [
        ("patience", 3, "default", "config.yaml: patience, by default: 3 was recorded, none found"),
        ("patience", 3, "task classification", "config.yaml: patience, by its task: 3 was recorded, none found"),
        ("patience", 3, "recipe", "config.yaml: patience: no recipe decides it"),
    ],
)
def test_who_decided_a_value_can_have_decided_it(name, value, source, said, options_said):
    found, _ = options_said(with_option(name, value, source))
    assert found == [said]


def test_who_decided_the_options_is_what_the_manifest_refers_to(options_said):
    found, _ = options_said(with_option("patience", "none", "argument"), resigned=False)
    assert found == ["config.yaml: who decided its options is not what the manifest refers to"]


# Class paths and arguments, of a run that was made from objects

OBJECTS = """
model: {{class_path: autotimm.tasks.{module}.InstanceSegmentor, init_args: {{num_classes: 3, lr: {lr}}}}}
data: {{class_path: autotimm.ImageDataModule, init_args: {{data_dir: {place}}}}}
trainer: {{threads: {threads}, devices: {devices}, max_epochs: 2{more}}}
"""


@pytest.mark.parametrize(
    ("recorded", "found", "said"),
    [
        ({}, {"module": "instance", "place": "b"}, []),  # where they were, and where they are
        ({}, {"lr": 0.25}, ["config.yaml: model.init_args.lr: 0.125 was recorded, 0.25 found"]),
        ({}, {"threads": 2}, ["config.yaml: trainer.threads: 1 was recorded, 2 found"]),
        ({"more": ", shards: 2"}, {"more": ", shards: 2", "devices": 2}, []),
    ],
)
def test_objects_are_those_of_the_replay(recorded, found, said, record, replay, tmp_path):
    usual = {"module": "detection", "lr": 0.125, "place": "a", "threads": 1, "devices": 1, "more": ""}
    for name, values in (("run", recorded), ("replay", found)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(OBJECTS.format(**{**usual, **values}))
    run, other = replace(record, folder=tmp_path / "run"), replace(replay, folder=tmp_path / "replay")
    assert [str(one) for one in config_findings(run, other)] == said
    shutil.rmtree(tmp_path / "replay")
    assert [*config_findings(run, other)] == []  # there is none before the replay
