"""The plan of a study: its runs, their seeds and their folders."""

import pytest

from autotimm import FitConfig
from autotimm.errors import ModelError, UsageError
from autotimm.studies.trials import has_test_data, keep_config, make_plan


def plan(tmp_path, a=None, b=None, **given):
    settings = {"seeds": 2, "vary": ("all",), "decompose": False, "jobs": 1, "name": None, **given}
    return make_plan(FitConfig(path="photos", **(a or {})), b, out=tmp_path, **settings)


def seeds_of(trial):
    return trial.config.seed, trial.config.stream_seeds


def test_seeds_are_counted_from_the_configured_seed(tmp_path):
    assert plan(tmp_path, seeds=3).seeds == (42, 43, 44)
    assert plan(tmp_path, {"seed": 7}, seeds="2").seeds == (7, 8)
    assert plan(tmp_path, {"seed": 2**32 - 1}).seeds == (2**32 - 1, 0)
    assert plan(tmp_path, seeds="3,1,2").seeds == plan(tmp_path, seeds=[3, 1, 2]).seeds == (3, 1, 2)


def test_vary_all_changes_the_root_seed(tmp_path):
    planned = plan(tmp_path, {"stream_seeds": "init=5"})
    assert [trial.name for trial in planned.trials] == ["seed-42", "seed-43"]
    assert [seeds_of(trial) for trial in planned.trials] == [(42, None), (43, None)]


def test_one_stream_varies_while_the_others_stay(tmp_path):
    planned = plan(tmp_path, {"stream_seeds": "order=5"}, vary=("init",))
    assert [trial.name for trial in planned.trials] == ["seed-42-order-5", "seed-42-init-43-order-5"]
    assert [seeds_of(trial) for trial in planned.trials] == [(42, ("order=5",)), (42, ("init=43", "order=5"))]


def test_decompose_shares_the_first_run(tmp_path):
    planned = plan(tmp_path, vary=("init", "order"), decompose=True)
    assert [trial.name for trial in planned.trials] == [
        "seed-42", "seed-42-init-43", "seed-42-order-43", "seed-42-init-order-43",
    ]  # fmt: skip
    assert (planned.single, planned.whole) == (["init", "order"], "init+order")
    whole = plan(tmp_path, decompose=True)
    assert whole.single == ["split", "init", "order", "augment", "step"]


def test_folder_depends_on_the_configuration_only(tmp_path):
    b = FitConfig(path="photos", lr=0.1)
    folders = {plan(tmp_path).folder, plan(tmp_path, {"epochs": 3}).folder, plan(tmp_path, b=b).folder}
    assert len(folders) == 3
    assert plan(tmp_path, {"num_workers": 3, "out": "elsewhere", "seed": 1}, seeds=7).folder == plan(tmp_path).folder
    assert plan(tmp_path, name="mine").folder == tmp_path / "mine"


def test_cores_are_shared_and_the_threads_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("autotimm.studies.trials.default_threads", lambda: 8)
    planned = plan(tmp_path, jobs=4, name="mine")
    assert planned.threads == planned.trials[0].config.threads == 2
    planned.folder.mkdir()
    (planned.folder / "study.json").write_text('{"threads": 2}')
    assert plan(tmp_path, jobs=1, name="mine").threads == 2
    assert plan(tmp_path, {"threads": 3}, jobs=4).threads == 3


def test_folder_belongs_to_one_configuration(tmp_path):
    keep_config(plan(tmp_path, name="mine").trials[0], tmp_path / "mine")
    keep_config(plan(tmp_path, {"num_workers": 2}, name="mine").trials[0], tmp_path / "mine")
    with pytest.raises(UsageError, match=r"was started with epochs: 10\. Got 3 instead"):
        keep_config(plan(tmp_path, {"epochs": 3}, name="mine").trials[0], tmp_path / "mine")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 1}, "must be a number of seeds, 2 or more"),
        ({"seeds": "1,1"}, "different seeds"),
        ({"seeds": "many"}, "Got 'many' instead"),
        ({"vary": ("all", "init")}, "Leave out `all`"),
        ({"vary": ("eval",)}, "must be one of all, split"),
        ({"vary": ("init",), "decompose": True}, "several streams to decompose"),
        ({"a": {"seed": None}}, "a study gives the seeds"),
        ({"b": FitConfig(path="photos")}, "must change an option that is studied"),
        ({"b": FitConfig(path="photos", lr=1), "decompose": True}, "Make two studies"),
        ({"name": "a/b"}, "a folder's name"),
    ],
)
def test_mistakes_are_refused(given, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        plan(tmp_path, **given)


@pytest.mark.parametrize("text", ['{"threads": 1e999}', '{"threads": -3}', "[]", "{"])
def test_damaged_record_of_a_study_is_named(text, tmp_path):
    folder = plan(tmp_path).folder
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(text)
    with pytest.raises(ModelError, match=r"study\.json must hold the record of the study\. It is damaged \(.+\)"):
        plan(tmp_path)


def test_a_run_without_its_list_of_splits_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"splits\.csv"):
        has_test_data(tmp_path)
