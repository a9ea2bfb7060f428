import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from autotimm.errors import ModelError
from autotimm.records.bit_factors import VARIABLES
from autotimm.records.environment import code_state, environment, package_digest, volatile
from autotimm.records.manifest import SECTIONS, Manifest
from autotimm.repro import config_digest

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/reference/manifest.schema.json").read_text())
DIGEST = "a1" * 32


def manifest(**changes) -> Manifest:
    """Every field that a run records."""
    sections = {
        "inputs": {
            "config": {
                "model_class": "autotimm.tasks.classification.ImageClassifier",
                "model": {"backbone": "test_resnet", "lr": 0.001, "metrics": [{"name": "accuracy"}]},
                "data_class": "autotimm.data.image.ImageDataModule",
                "data": {"image_size": 32, "label_column": None},
                "trainer": {"max_epochs": 2},
            },
            "seeds": {"task": 42, "data": 42, "trainer": 2**63},
            "data": {"digest": DIGEST, "samples": 24},
            "splits": DIGEST,
            "transforms": {"train": "b" * 16, "eval": "c" * 16},
            "code": "d" * 16,
            "initial": "f" * 16,
            "keyed": True,
        },
        "environment": {
            **environment(2, ["cpu"]),
            "processes": 1,
            "precision": "32-true",
            "device": "cpu",
            "package": package_digest()[:16],
            "git": {"commit": "0" * 40, "dirty": True, "diff": DIGEST},
        },
        "decisions": {
            "lr": None,
            "batch_size": 8,
            "recipe": {"lr": 0.0005, "layer_decay": 1.0, "optimizer": "adamw", "reason": "CNN from scratch"},
            "weights": {"source": "random", "sha256": None, "architecture": None, "note": "weights: random"},
        },
        "results": {
            "ledger": "9" * 16, "status": "finished", "steps": 3, "weights": DIGEST, "metrics": {"f1": 0.5},
            "sources": DIGEST,
        },
        "levels": {"R0": "checked", "R1": "expected", "R7": "no, because it is not promised"},
        "volatile": {
            **volatile(), "folder": "/runs/a", "started": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:00:09Z",
            "duration_s": 9.5, "command": "autotimm fit photos", "resumes": ["2026-01-01T00:00:05Z"],
        },
    }  # fmt: skip
    return Manifest(**sections | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.json"


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_saved_manifest_comes_back_equal(path):
    before = manifest()
    before.save(path)
    after = Manifest.load(str(path))
    assert after == before
    assert (after.digest, after.run_id, after.problem()) == (before.digest, before.run_id, None)


def test_equal_manifests_give_equal_bytes_in_any_order_of_insertion(tmp_path):
    first = manifest()
    other = replace(first, **{name: dict(reversed(getattr(first, name).items())) for name in SECTIONS})
    first.save(tmp_path / "one")
    other.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert (tmp_path / "one").read_bytes().isascii()


def test_the_run_id_is_of_the_inputs_alone():
    base = manifest()
    assert base.run_id == config_digest(base.inputs)[:16]
    assert manifest(environment={}, results={}, decisions={}, volatile={}).run_id == base.run_id
    assert replace(base, inputs=base.inputs | {"initial": "0" * 16}).run_id != base.run_id


def test_the_digest_is_of_everything_but_what_is_volatile():
    base = manifest()
    assert replace(base, volatile={"host": "elsewhere"}).digest == base.digest
    for name in set(SECTIONS) - {"volatile"}:
        assert replace(base, **{name: getattr(base, name) | {"x": "y"}}).digest != base.digest


def test_golden_digests():
    # A contract: recorded runs hold them.
    fixed = Manifest(inputs={"config": {"lr": 0.1}}, environment={"threads": 2}, results={"status": "running"})
    assert fixed.run_id == "3c7745c39e8bc47b"
    assert fixed.digest == "9ddc6b20ddb7ca35941c3943567bd25acbd4e3996b55189c8d9c16bc59065825"


def test_values_are_copied_in_the_form_of_the_file(path):
    given = {"a": (1, 2), 3: {"nan": float("nan"), "low": float("-inf")}, "big": 2**70, "x": "\udcff犬"}
    copy = Manifest(inputs=given, environment={})
    assert copy.inputs == {"a": [1, 2], "3": {"nan": "nan", "low": "-inf"}, "big": 2**70, "x": "\udcff犬"}
    given["big"] = 0
    copy.save(path)
    assert Manifest.load(path) == copy
    assert Manifest.load(path).problem() is None


def test_floats_come_back_to_the_last_bit(path):
    values = [0.1 + 0.2, 1e-310, 1.0, -0.0, 1 / 3]
    Manifest({"values": values}, {}).save(path)
    assert [value.hex() for value in Manifest.load(path).inputs["values"]] == [value.hex() for value in values]


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", Path("x"), 1j])
def test_a_value_that_is_not_plain_data_is_named(value):
    with pytest.raises(TypeError, match=r"The `inputs\.config\.0\.x` of Manifest must be plain data"):
        Manifest(inputs={"config": [{"x": value}]}, environment={})


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["inputs"]["config"]["model"].update(lr=0.002),
        lambda content: content["inputs"].pop("initial"),
        lambda content: content["results"].update(steps=4),
        lambda content: content["results"].update(steps=3.0),
        lambda content: content["levels"].update(R7="checked"),
        lambda content: content["environment"].update(threads=1),
        lambda content: content.update(run_id="0" * 16),
        lambda content: content.update(digest="0" * 64),
        lambda content: content.pop("digest"),
        lambda content: content.pop("run_id"),
    ],
)
def test_an_edit_by_hand_is_detected(path, change):
    manifest().save(path)
    edit(path, change)
    assert Manifest.load(path).problem() == "it was edited after it was written"


def test_layout_and_volatile_part_do_not_count_as_an_edit(path):
    manifest().save(path)
    edit(path, lambda content: content["volatile"].update(host="elsewhere"))
    assert Manifest.load(path).problem() is None


def test_a_changed_copy_does_not_inherit_the_problem(path):
    manifest().save(path)
    edit(path, lambda content: content["results"].update(steps=4))
    copy = replace(Manifest.load(path), results={"status": "finished"})
    assert copy.problem() is None
    copy.save(path)
    assert Manifest.load(path).problem() is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(schema=2), "must be at most 1. Got 2 instead. A later version wrote it"),
        (lambda content: content.update(schema=0), "must be a whole number from 1. Got 0 instead"),
        (lambda content: content.update(schema="1"), "must be a whole number from 1. Got '1' instead"),
        (lambda content: content.update(schema=True), "must be a whole number from 1. Got True instead"),
        (lambda content: content.pop("schema"), "must be a whole number from 1. Got None instead"),
        (lambda content: content.update(input={}), "has a key `input`, which is unknown. Did you mean 'inputs'?"),
        (lambda content: content.pop("levels"), "The `levels` of the manifest .* must be an object. Got None instead"),
        (lambda content: content.update(inputs=[1]), r"must be an object. Got \[1\] instead"),
    ],
)
def test_a_malformed_or_later_manifest_is_refused(path, change, said):
    manifest().save(path)
    edit(path, change)
    with pytest.raises(ModelError, match=said):
        Manifest.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"\x00" * 100, b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}",
     b'{"schema": 1, "inputs": ' + b'{"a":' * 400 + b"1" + b"}" * 401],
)  # fmt: skip
def test_any_damage_is_one_sentence(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"The .*manifest .*manifest\.json must be"):
        Manifest.load(path)


def test_every_cut_is_refused(path):
    manifest().save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="must be JSON"):
            Manifest.load(path)


def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ModelError, match="must be readable"):
            Manifest.load(path)


# --- the published schema --------------------------------------------------------------------------------------------


def undescribed(value, schema, where="manifest") -> list[str]:
    """The fields below `value` that the schema does not explain; parts without `properties` are the caller's own."""
    missing = [] if schema.get("description") else [where]
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    if isinstance(value, dict) and (named or patterns):
        for name, item in value.items():
            part = named.get(name) or next(iter(patterns.values()), {})
            missing += undescribed(item, part, f"{where}.{name}")
    return missing


def stored(path: Path) -> dict:
    manifest().save(path)
    return json.loads(path.read_text())


def test_the_schema_is_a_schema_and_a_saved_manifest_validates(path):
    validator = jsonschema.Draft202012Validator
    validator.check_schema(SCHEMA)
    validator(SCHEMA).validate(stored(path))
    Manifest({"data": {"digest": None, "samples": None}}, {"git": None}).save(path)
    validator(SCHEMA).validate(json.loads(path.read_text()))


def test_the_schema_describes_every_field(path):
    assert undescribed(stored(path), SCHEMA) == []
    assert set(SCHEMA["properties"]) == {"schema", "run_id", "digest", *SECTIONS}
    assert sorted(SCHEMA["required"]) == sorted(SCHEMA["properties"])
    variables = SCHEMA["properties"]["environment"]["properties"]["variables"]
    assert variables["propertyNames"]["enum"] == list(VARIABLES)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"run_id": "x"},
        {"digest": None},
        {"more": 1},
        {"levels": {"R9": "checked"}},
        {"environment": {"threads": "2"}},
        {"environment": {"variables": {"AWS_SECRET_ACCESS_KEY": "x"}}},
        {"inputs": {"keyed": "yes"}},
        {"results": {"status": "well"}},
    ],
)
def test_the_schema_refuses_wrong_values(path, change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(deepcopy(stored(path)) | change)


def test_secrets_are_never_recorded(path, monkeypatch, tmp_path):
    secret = "s3cr3t-f0r-n0b0dy"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN", "PASSWORD", "OMP_SECRET",
                 "MKL_KEY", "TORCH_TOKEN", "CUDA_PASSWORD", "HTTPS_PROXY", "GIT_ASKPASS"):  # fmt: skip
        monkeypatch.setenv(name, secret)
    shutil.copytree(Path(__file__).parent, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    copy = manifest(environment={**environment(2, ["cpu"]), "git": code_state(tmp_path)}, volatile=volatile())
    copy.save(path)
    assert secret not in path.read_text()
