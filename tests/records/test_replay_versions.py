"""Versions of streams, pipeline and ledger: what can be replayed."""

import pytest

import autotimm
from autotimm.errors import ModelError
from autotimm.records.causes import differences, likely_cause
from autotimm.records.ledger_diff import Difference
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import (
    CURRENT,
    RELEASES,
    not_replayable,
    replay_versions,
    require_replayable,
)


def test_the_current_triple_is_replayed_by_the_current_release():
    """Whoever raises a number, or `__version__`, must say in the table which release replays what."""
    assert RELEASES[tuple(CURRENT.values())] == autotimm.__version__


def test_a_record_without_versions_has_version_1():
    assert replay_versions({}) == {"streams": 1, "pipeline": 1, "ledger": 1}
    assert replay_versions({"replay_versions": None}) == replay_versions({})


def test_a_current_record_can_be_replayed(tmp_path):
    assert not_replayable({"replay_versions": dict(CURRENT)}) == ""
    require_replayable({"replay_versions": dict(CURRENT)}, tmp_path)


@pytest.mark.parametrize("value", [99, True, "1", 1.0, None, [1]])
def test_another_version_is_named_with_what_can_replay_it(value, tmp_path):
    environment = {"replay_versions": {"pipeline": value}, "versions": {"autotimm": "7.8.9"}}
    reason = not_replayable(environment)
    assert f"metrics) has version {value} there and {CURRENT['pipeline']} here" in reason
    assert 'pip install "autotimm==7.8.9"' in reason
    with pytest.raises(ModelError, match="has version"):
        require_replayable(environment, tmp_path)


def test_a_triple_of_the_table_names_its_last_release(monkeypatch):
    monkeypatch.setitem(RELEASES, (7, 1, 1), "0.0.7")
    reason = not_replayable({"replay_versions": {"streams": 7}, "versions": {"autotimm": "0.0.5"}})
    assert "the definition of random streams has version 7 there" in reason
    assert reason.endswith('pip install "autotimm==0.0.7".')


def test_a_record_that_does_not_name_its_release():
    assert not_replayable({"replay_versions": {"ledger": 9}}).endswith("Use the version that made it.")


def test_the_versions_are_no_part_of_the_run_id():
    plain, versioned = (Manifest({"x": 1}, environment) for environment in ({}, {"replay_versions": dict(CURRENT)}))
    assert plain.run_id == versioned.run_id


@pytest.mark.parametrize("stage", ["start", "order", "inputs", "forward", "rate", "update", "validation", "length"])
def test_another_version_is_the_likeliest_cause_at_every_stage(stage):
    plain = Manifest({"seeds": {"trainer": 1}}, {"threads": 1})
    later = Manifest({"seeds": {"trainer": 2}}, {"threads": 2, "replay_versions": {**CURRENT, "pipeline": 99}})
    said = likely_cause(Difference(stage, 0, 0, 1, "x", "a", "b"), differences(plain, later), recorded=plain)
    assert said.startswith("Likely the version of the pipeline: 1 was recorded, 99 is used")


def test_a_record_without_versions_does_not_differ_from_one_with_the_first():
    first = {"replay_versions": dict.fromkeys(CURRENT, 1)}
    assert differences(Manifest({}, {}), Manifest({}, first)) == []
