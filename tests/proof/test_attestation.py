"""Statements of a verifier: signed, checked, and about one run."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from autotimm.cli.main import main
from autotimm.proof.archive import prepared_archive
from autotimm.proof.attestation import CheckedStatement, attest, check_statement
from autotimm.runs.run import Run
from training import small_fit


def keys(folder: Path, curve: ec.EllipticCurve) -> tuple[Path, Path]:
    private = ec.generate_private_key(curve)
    key, public = folder / "key.pem", folder / "key.pub"
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    key.write_bytes(private.private_bytes(*forms, serialization.NoEncryption()))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, info))
    return key, public


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return keys(tmp_path_factory.mktemp("keys"), ec.SECP256R1())


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    return small_fit(toy_folder, tmp_path_factory.mktemp("runs"), name="one").path


@pytest.fixture(scope="module")
def statement(run, signer, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "one.attestation.json"
    assert main(["attest", str(run), "--key", str(signer[0]), "--out", str(out)]) == 0
    return out


def check(statement: Path, key: Path, *run: Path) -> int:
    return main(["attest", *map(str, run), "--check", str(statement), "--key", str(key)])


def test_an_authentic_statement(statement, signer, run, capsys):
    assert check(statement, signer[1], run) == 0
    said = capsys.readouterr().out
    assert said.endswith("stated: identical (3 steps compared)\n")
    assert "verified on" in said
    content = check_statement(statement, signer[1]).content
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicate"]["result"] == "PASSED"
    assert {"package", "versions", "hardware"} <= content["predicate"]["verification"]["where"].keys()


def test_json(statement, signer, capsys):
    assert main(["attest", "--check", str(statement), "--key", str(signer[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statement"]["predicate"]["result"] == "PASSED"


def test_it_holds_for_the_archive_and_not_for_another_run(statement, signer, run, toy_folder, tmp_path, capsys):
    with prepared_archive(Run(run), allow_names=True) as archive:
        assert check(statement, signer[1], archive.files["run/manifest.json"].parent) == 0
    other = small_fit(toy_folder, tmp_path, name="other", seed=7).path
    assert check(statement, signer[1], other) == 5
    assert "the run has another ledger.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoints/best.ckpt", "results.json"])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_what_a_reader_uses_is_what_was_verified(name, replaced, statement, signer, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / name).unlink()
    if replaced:
        (copy / name).write_bytes((run / name).read_bytes() + b"\n")
    assert check(statement, signer[1], copy) == 5
    assert f"the run has another {name}" in capsys.readouterr().out


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["P-256", "P-384"])
def test_another_key(statement, curve, tmp_path, capsys):
    assert check(statement, keys(tmp_path, curve)[1]) == 5
    assert "must be signed with the key" in capsys.readouterr().err


def test_a_changed_statement(statement, signer, tmp_path):
    envelope = json.loads(statement.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b"PASSED", b"FAILED")
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}))
    assert check(changed, signer[1]) == 5
    for text in ("", "{}", "[]", '{"payload": 3, "payloadType": 1, "signatures": []}', '{"signatures": {}}'):
        changed.write_text(text)
        assert check(changed, signer[1]) == 4, text


def test_a_seal_is_no_statement(run, signer, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "one"))
    Run(copy).seal(signer[0])
    bundle = json.loads((copy / "model.sig").read_text())
    (tmp_path / "x.json").write_text(json.dumps(bundle["dsseEnvelope"]))
    assert check(tmp_path / "x.json", signer[1]) == 4


def test_less_than_identical_is_stated_as_such(run, signer, tmp_path):
    out = tmp_path / "part.json"
    assert main(["attest", str(run), "--key", str(signer[0]), "--out", str(out), "--steps", "1"]) == 0
    assert check(out, signer[1], run) == 6
    copy = Path(shutil.copytree(run, tmp_path / "one"))
    (copy / "metrics.csv").write_text((copy / "metrics.csv").read_text().replace("0.", "1."))
    out = tmp_path / "different.json"
    assert main(["attest", str(copy), "--key", str(signer[0]), "--out", str(out)]) == 5
    assert check(out, signer[1], copy) == 5
    assert check_statement(out, signer[1]).content["predicate"]["result"] == "FAILED"


def test_the_longest_curve(run, tmp_path):
    key, public = keys(tmp_path, ec.SECP521R1())
    (tmp_path / "x.json").write_text(attest(Run(run), Run(run).verify(steps=1), key, asked={"steps": 1}))
    assert check_statement(tmp_path / "x.json", public, run).exit_code == 6


def test_usage(run, statement, signer, tmp_path):
    out = str(tmp_path / "x.json")
    for words in (
        [str(run)], [str(run), "--key", str(signer[0])], ["--key", str(signer[0]), "--out", out],
        [str(run), "--key", str(signer[1]), "--out", out], [str(run), "--key", str(signer[0]), "--out", str(statement)],
        ["--check", str(statement), "--key", str(signer[1]), "--steps", "3"],
        [str(run), "--key", "missing.pem", "--out", out],
    ):  # fmt: skip
        assert main(["attest", *words]) == 2, words
    assert not Path(out).exists()


@pytest.mark.parametrize("said", [{"not_checked": 5}, {"not_checked": "none"}, {"not_checked": None}, {"where": 3}])
def test_a_statement_of_another_form_is_shown(said):
    """Who signs decides what is in it."""
    content = {"predicate": {"result": "PASSED", "verification": said}, "subject": []}
    assert str(CheckedStatement(content, "aa")) == "signed with the key aa\nstated: PASSED"
