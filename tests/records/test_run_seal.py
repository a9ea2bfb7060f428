"""Seals of runs: what they bind, what is found afterwards, and that nothing writes into a sealed run."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import verifying

import autotimm
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import ModelError, RunError, UsageError
from autotimm.records.atomic import refuse_sealed, write_text
from autotimm.records.run_folder import RunFolder
from autotimm.records.run_seal import check_seal, write_seal
from autotimm.runs.run import Run
from training import small_fit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write_keys(folder: Path, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """A private and a public key, as PEM."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    plain = serialization.NoEncryption()
    key, public = folder / "key.pem", folder / "key.pub"
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    return key, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    photos = write_toy_folder(folder / "photos", n=24, num_classes=3, image_size=32, seed=7)
    return small_fit(photos, folder / "runs", name="one", test_split=0.2).path


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "one"))


@pytest.fixture
def sealed(run, keys):
    write_seal(run, keys[0])
    return run


def is_signed(run: Path, public: Path) -> bool:
    """What the package model-signing says."""
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(run, run / "model.sig")
    except (InvalidSignature, ValueError, LookupError, TypeError, AttributeError):
        return False
    return True


def found(run: Path, key: Path | None = None) -> str:
    return "; ".join(check_seal(run, key).findings)


class TestSeal:
    def test_a_signed_run_verifies(self, sealed, keys, capsys):
        assert main(["verify", str(sealed), "--key", str(keys[1])]) == 0
        said = capsys.readouterr().out
        assert "the key that was given" in said
        assert said.endswith("verdict: identical (2 steps compared)\n")
        assert not (sealed / ".lock").exists()
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(sealed), "--signature",
                   str(sealed / "model.sig"), "--public_key", str(keys[1])]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_without_a_key_nobody_knows_whose_seal_it_is(self, run, sealed):
        notes = check_seal(run).notes
        assert "whose key that is was not checked" in notes[1]

    def test_digests_alone(self, run, capsys):
        assert main(["seal", str(run), "--json"]) == 0
        digest = capsys.readouterr().out.partition('"seal": "')[2][:64]
        check = check_seal(run)
        assert not check.findings
        assert digest in check.notes[0]
        assert "published" in check.notes[1]
        (run / "metrics.csv").write_text("epoch\n")
        assert found(run) == "metrics.csv was changed"

    def test_another_key_and_no_signature(self, run, sealed, tmp_path, trained):
        (tmp_path / "other").mkdir()
        other = write_keys(tmp_path / "other", ec.SECP384R1())
        assert found(run, other[1]).startswith("it was signed with another key")
        again = shutil.copytree(trained, tmp_path / "again")
        write_seal(again)
        assert found(again, other[1]) == "it was sealed without a signature"
        shutil.rmtree(again)
        shutil.copytree(trained, again)
        verdict = Run(again).verify(key=other[1])
        assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("incomplete", 6, 0)
        write_seal(again, other[0])
        assert not found(again, other[1])

    def test_a_moved_run_is_sealed(self, sealed, keys, tmp_path):
        moved = sealed.rename(tmp_path / "elsewhere")
        assert not found(moved, keys[1])
        assert is_signed(moved, keys[1])


class TestChanges:
    def test_a_changed_an_added_and_a_removed_file(self, sealed, keys):
        (sealed / "notes.txt").write_text("x")
        (sealed / "evidence" / "val.safetensors").unlink()
        with (sealed / "checkpoints" / "last.ckpt").open("r+b") as file:
            file.write(b"x")
        verdict = Run(sealed).verify()
        assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("different", 5, 0)
        assert {*verdict.findings[:3]} == {
            "checkpoints/last.ckpt was changed", "evidence/val.safetensors was removed", "notes.txt was added"
        }  # fmt: skip
        assert not is_signed(sealed, keys[1])

    @pytest.mark.parametrize("name", ["seal.json", "model.sig"])
    def test_a_part_of_the_seal_is_removed(self, sealed, name):
        (sealed / name).unlink()
        assert name in found(sealed)
        with pytest.raises(UsageError, match="sealed"):
            refuse_sealed(sealed / "report.html")

    def test_sealed_anew_by_somebody_else(self, sealed, keys, tmp_path):
        for name in ("seal.json", "model.sig"):
            (sealed / name).unlink()
        (sealed / "metrics.csv").write_text("epoch\n")
        (tmp_path / "other").mkdir()
        write_seal(sealed, write_keys(tmp_path / "other")[0])
        assert not found(sealed)
        assert "another key" in found(sealed, keys[1])

    def test_a_link_in_place_of_a_file(self, sealed, tmp_path):
        table = sealed / "metrics.csv"
        table.rename(tmp_path / "metrics.csv")
        table.symlink_to(tmp_path / "metrics.csv")
        assert "metrics.csv was replaced by a link" in found(sealed)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}, "public_key": null}'])
    def test_what_is_no_seal(self, sealed, text):
        (sealed / "seal.json").write_text(text)
        assert found(sealed) == "seal.json has changed"

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"mediaType":"x"}', '{"dsseEnvelope":[]}'])
    def test_what_is_no_signature(self, sealed, text):
        (sealed / "model.sig").write_text(text)
        assert found(sealed) == "model.sig has changed"

    def test_single_bytes(self, sealed, keys):
        assert edits_found(sealed, keys[1], 12) == (12, 12)

    @pytest.mark.slow
    def test_200_single_bytes(self, sealed, keys):
        assert edits_found(sealed, keys[1], 200) == (200, 200)


def edits_found(run: Path, public: Path, count: int) -> tuple[int, int]:
    """Change single bytes of files, in turn, and count how many are found, without a key and by model-signing."""
    rng, counts = random.Random(0), [0, 0]
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(count):
        path = files[number % len(files)]
        before = path.read_bytes()
        place = rng.randrange(len(before))
        byte = (before[place] + rng.randrange(1, 256)) % 256
        path.write_bytes(before[:place] + bytes([byte]) + before[place + 1 :])
        counts[0] += bool(check_seal(run).findings)
        # model-signing reads its own file leniently: another form of the same signature is one to it.
        counts[1] += path.name == "model.sig" or not is_signed(run, public)
        path.write_bytes(before)
    assert not check_seal(run).findings
    return counts[0], counts[1]


def content(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


class TestWriters:
    def test_nothing_writes_into_a_sealed_run(self, sealed, tmp_path, capsys):
        before, run, image = content(sealed), str(sealed), str(next(tmp_path.parent.rglob("*.png"), tmp_path))
        commands = [
            ["test", run], ["report", run], ["resume", run], ["seal", run], ["report", run, "--out", f"{run}/a.html"],
            ["predict", run, image, "--out", f"{run}/evidence/a.csv"], ["fit", "photos", "--out", run],
            ["export", run, "--to", "torch", "--out", f"{run}/a.pt2"], ["test", run, "--out", f"{run}/a.json"],
            ["reproduce", run, "--out", f"{run}/again"],
        ]  # fmt: skip
        for command in commands:
            assert main(command) == 2, command
            assert "is sealed" in capsys.readouterr().err.replace("It is", "is"), command
        assert content(sealed) == before

    def test_results_and_the_page_are_written_elsewhere(self, sealed, tmp_path, capsys):
        before = content(sealed)
        assert main(["test", str(sealed), "--out", str(tmp_path / "test.json")]) == 0
        assert main(["report", str(sealed), "--out", str(tmp_path / "page.html")]) == 0
        assert '"test"' in (tmp_path / "test.json").read_text()
        assert "</html>" in (tmp_path / "page.html").read_text()
        assert main(["test", str(sealed), "--out", str(tmp_path / "test.json")]) == 2
        assert content(sealed) == before

    def test_a_trainer_refuses_it(self, sealed):
        with pytest.raises(UsageError, match="sealed"):
            RunFolder(sealed, sealed.parent).open("x", "", resume=True)
        with pytest.raises(UsageError, match="sealed"):
            write_text(sealed / "checkpoints" / "x.txt", "x")

    def test_a_file_of_that_name_elsewhere_seals_nothing(self, tmp_path):
        (tmp_path / "seal.json").write_text("{}")
        write_text(tmp_path / "x.txt", "x")


class TestRefusals:
    def test_while_another_process_writes(self, run):
        with RunFolder(run, run.parent).locked(), pytest.raises(RunError, match="one writer"):
            write_seal(run)
        assert not (run / "seal.json").exists()

    def test_keys_that_cannot_sign(self, run, keys, tmp_path):
        rsa_key = rsa.generate_private_key(65537, 2048)
        forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (tmp_path / "rsa.pem").write_bytes(rsa_key.private_bytes(*forms, serialization.NoEncryption()))
        secret = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "secret.pem").write_bytes(secret.private_bytes(*forms, serialization.BestAvailableEncryption(b"x")))
        (tmp_path / "text.pem").write_text("no key")
        for name in ("rsa.pem", "secret.pem", "text.pem", "missing.pem"):
            with pytest.raises(UsageError, match=r"The `key` of seal must"):
                write_seal(run, tmp_path / name)
        shutil.copy(keys[0], run / "key.pem")
        with pytest.raises(UsageError, match="outside of the run"):
            write_seal(run, run / "key.pem")
        with pytest.raises(UsageError, match=r"The `key` of verify must"):
            check_seal(run, keys[0])
        assert not (run / "seal.json").exists()

    def test_what_cannot_be_bound(self, run, keys, tmp_path):
        (run / ".gitignore").write_text("x")
        with pytest.raises(ModelError, match="gitignore"):
            write_seal(run, keys[0])
        (run / ".gitignore").unlink()
        (run / "link").symlink_to(tmp_path)
        with pytest.raises(ModelError, match="link is a link"):
            write_seal(run)

    def test_an_unfinished_run_is_sealed_with_a_remark(self, run, capsys):
        text = (run / "manifest.json").read_text()
        (run / "manifest.json").write_text(text.replace('"status": "finished"', '"status": "interrupted"'))
        autotimm.Run(run).seal()
        assert "cannot be resumed once it is sealed" in capsys.readouterr().err


@pytest.mark.parametrize("files", [["metrics.csv"], {"metrics.csv": 1}, None], ids=str)
def test_a_seal_that_lists_no_files(run, files):
    (run / "seal.json").write_text(json.dumps({"seal": 1, "files": files, "public_key": None}))
    assert "seal.json" in found(run)
    assert Run(run).verify(steps=1).verdict == "different"
