"""Archives for reviewers: what is in them, what must not be, and that they verify."""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.numpy import load_file, save_file

from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_segmentation
from autotimm.proof.archive import prepared_archive
from autotimm.proof.lock_file import locked_versions
from autotimm.proof.privacy import config_without_places, found_in, private_words, texts_of
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.runs.run import Run
from environments import ROOT
from training import small_fit

USER, HOST, TOKEN = "alicewonder", "rabbit-hole-7", "hf_PlantedTokenOfNobody"
ENVIRONMENT = {
    "HOME": f"/nowhere/{USER}", "USER": USER, "LOGNAME": USER, "HF_TOKEN": TOKEN, "WANDB_API_KEY": f"{TOKEN}2",
    "PIP_INDEX_URL": "https://alice:IndexPassword@pypi.example.org/simple", "MY_OWN_VARIABLE": "OfNoTableAtAll",
}  # fmt: skip


def planted(run: Path) -> None:
    """Put names into the run, as if it had been made on another machine, at a place in somebody's home folder."""
    manifest = Manifest.load(run / "manifest.json")
    names = {"user": USER, "host": HOST, "folder": f"/home/{USER}/runs/one", "parent": f"/home/{USER}/runs/none",
             "notices": [f"3 files of /home/{USER}/photos were left out"]}  # fmt: skip
    text = asked = (run / "config.yaml").read_text()
    text = re.sub(r"^path: \S+", f"path: /home/{USER}/photos", text, flags=re.MULTILINE)
    text = re.sub(r"^out: \S+", f"out: /home/{USER}/runs", text, flags=re.MULTILINE)
    text = text.replace("# argument", f"# file /home/{USER}/photos.yaml")
    (run / "config.yaml").write_text(text)
    replace(manifest, volatile=manifest.volatile | names).save(run / "manifest.json")
    RunFolder(run, run.parent).bind_sources(asked, text)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", n=24, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    trained = small_fit(photos, tmp_path_factory.mktemp("runs"), name="one", test_split=0.2, commit=True)
    trained.test()
    planted(trained.path)
    return trained.path


@pytest.fixture(scope="module")
def archive(run, tmp_path_factory):
    """The archive of a run of somebody whose environment holds secrets."""
    out = tmp_path_factory.mktemp("out") / "paper.zip"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        assert main(["publish", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture
def unpacked(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_it_verifies_in_an_empty_folder(unpacked, photos, capsys):
    assert main(["verify", str(unpacked / "run"), "--data", str(photos)]) == 0
    said = capsys.readouterr().out
    assert "not checked: evidence/val.safetensors (left out by whoever published the run)" in said
    assert "not checked: evidence/test.safetensors (left out by whoever published the run)" in said
    assert "commitment: kept" in said
    assert "verdict: identical (2 steps compared)" in said


def test_evidence_that_nobody_has_left_out_is_missing(unpacked, photos):
    manifest = Manifest.load(unpacked / "run" / "manifest.json")
    assert manifest.problem() is None
    replace(manifest, volatile={}).save(unpacked / "run" / "manifest.json")
    assert Run(unpacked / "run").verify(data=photos).exit_code == 6


def test_a_run_without_its_folds_is_identical_and_names_them(photos, tmp_path):
    run = small_fit(photos, tmp_path, val_split=None, folds=2, name="folded")
    with prepared_archive(run, patch=False, allow_names=True) as archive:
        archive.write(tmp_path / "paper.zip")
        assert any("The folds are runs of their own" in notice for notice in archive.notices)
    with zipfile.ZipFile(tmp_path / "paper.zip") as file:
        file.extractall(tmp_path / "unpacked")
    verdict = Run(tmp_path / "unpacked" / "run").verify(data=photos)
    assert verdict.verdict == "identical"
    assert {"evidence/folds.safetensors (left out by whoever published the run)", "how its 2 folds were trained"} <= {
        *verdict.not_checked
    }


def test_nothing_says_who_made_it(unpacked):
    words = [USER, HOST, TOKEN, "IndexPassword", "pypi.example.org", "OfNoTableAtAll", "/home/", "nowhere"]
    files = [path for path in unpacked.rglob("*") if path.is_file() and path.suffix != ".whl"]
    assert len(files) > 15
    for word in words:
        assert not [str(path) for path in files if word.encode() in path.read_bytes()], word
    page = (unpacked / "report.html").read_text()
    assert "data:image" not in page
    assert "unpacked" not in page
    assert "autotimm-publish" not in page


def test_no_picture_and_no_features(unpacked):
    for split in ("val", "test"):
        assert {*load_file(unpacked / "evidence" / f"{split}.safetensors")} == {"scores", "targets", "losses"}
    assert not (unpacked / "run" / "evidence").exists()
    assert not [path for path in unpacked.rglob("*") if path.suffix in (".png", ".jpg")]


def test_the_archive_has_the_same_bytes_again(run, archive, tmp_path):
    with prepared_archive(Run(run)) as prepared:
        prepared.write(tmp_path / "again.zip")
    with zipfile.ZipFile(archive) as a, zipfile.ZipFile(tmp_path / "again.zip") as b:
        assert a.namelist() == b.namelist()
        assert [name for name in a.namelist() if a.read(name) != b.read(name)] == []
    assert archive.read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_dry_run_lists_and_writes_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(run.rglob("*"))
    assert main(["publish", str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "run/model.safetensors" in said
    assert said.endswith("nothing was written: --out without --dry-run writes it\n")
    assert not [*tmp_path.iterdir()]
    assert sorted(run.rglob("*")) == before


def test_texts(unpacked):
    readme, checklist = ((unpacked / name).read_text() for name in ("README.md", "checklist.md"))
    assert "pip install -r requirements.txt\nautotimm verify run --data IMAGES\n" in readme
    for heading in ("splits", "hyper-parameters", "error bars", "compute"):
        assert heading in checklist
    assert re.search(r"95 % interval: [\d.]+ to [\d.]+", checklist)
    assert "Wall time" in checklist
    assert "Committed to before the first step" in checklist


def test_the_lock_file(unpacked):
    lines = (unpacked / "requirements.txt").read_text().splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert entries[0].startswith("./wheels/autotimm-")
    assert (unpacked / entries[0]).is_file()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!]+", line) for line in entries[1:])
    assert {"torch", "timm", "numpy", "pytorch-lightning"} <= {line.partition("==")[0] for line in entries}
    assert "://" not in "".join(entries)


def test_recorded_versions_take_precedence():
    versions = locked_versions({"torch": "2.99.0+cpu", "python": "3.11.7", "pillow-heif": None})
    assert versions["torch"] == "2.99.0+cpu"
    assert "python" not in versions
    assert "pytest" not in versions


def test_the_wheel_holds_the_package(unpacked):
    (wheel,) = (unpacked / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        assert {"autotimm/cli/main.py", "autotimm/report/templates/run.html"} <= {*names}
        record = next(name for name in names if name.endswith("RECORD"))
        assert len(file.read(record).decode().splitlines()) == len(names)


def test_bill_of_materials_fits_its_schema(unpacked):
    text = (unpacked / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"validation", "test"} == {metric["slice"] for metric in metrics}
    assert (
        model["hashes"][0]["content"] == hashlib.sha256((unpacked / "run/model.safetensors").read_bytes()).hexdigest()
    )


def test_the_crate_lists_every_file(unpacked):
    graph = {
        entity["@id"]: entity for entity in json.loads((unpacked / "ro-crate-metadata.json").read_text())["@graph"]
    }
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert names - {"ro-crate-metadata.json"} == {each["@id"] for each in graph["./"]["hasPart"]}
    action = next(entity for entity in graph.values() if entity["@type"] == "CreateAction")
    assert action["instrument"]["@id"] in graph
    assert {"@id": "run/model.safetensors"} in action["result"]


class TestRefusals:
    def test_a_name_that_cannot_be_left_out(self, run, tmp_path, capsys):
        copy = Path(shutil.copytree(run, tmp_path / "one"))
        with (copy / "splits.csv").open("a") as file:
            file.write(f"/home/{USER}/photos/x.png,cat,train\n")
        command = ["publish", str(copy), "--out", str(tmp_path / "paper.zip")]
        assert main(command) == 4
        said = capsys.readouterr().err
        assert "the name of the user and a folder of this machine in run/splits.csv" in said
        assert not (tmp_path / "paper.zip").exists()
        assert main([*command, "--allow-names"]) == 0

    def test_what_is_not_finished_or_not_as_sealed(self, run, tmp_path):
        copy = Path(shutil.copytree(run, tmp_path / "one"))
        Run(copy).seal()
        with zipfile.ZipFile(published(copy, tmp_path / "sealed.zip")) as file:
            assert not [name for name in file.namelist() if "seal" in name]
            assert "give a key to seal that" in file.read("README.md").decode()
        (copy / "metrics.csv").write_text("epoch\n")
        assert main(["publish", str(copy), "--out", str(tmp_path / "x.zip")]) == 4
        unfinished = Path(shutil.copytree(run, tmp_path / "two"))
        manifest = Manifest.load(unfinished / "manifest.json")
        replace(manifest, results={"status": "interrupted"}).save(unfinished / "manifest.json")
        assert main(["publish", str(unfinished), "--out", str(tmp_path / "x.zip")]) == 4

    def test_usage(self, run, tmp_path, capsys):
        assert main(["publish", str(run)]) == 2
        (tmp_path / "there.zip").write_text("x")
        assert main(["publish", str(run), "--out", str(tmp_path / "there.zip")]) == 2
        assert main(["publish", str(run), "--out", str(tmp_path / "x.zip"), "--license", "My License"]) == 2
        assert main(["publish", str(run), "--out", str(tmp_path / "x.zip"), "--data", "photos"]) == 2


def published(run: Path, out: Path, *words: str) -> Path:
    assert main(["publish", str(run), "--out", str(out), *words]) == 0
    return out


def test_with_images_the_page_shows_them(run, photos, tmp_path):
    out = published(run, tmp_path / "x.zip", "--with-images", "--data", str(photos))
    with zipfile.ZipFile(out) as file:
        assert b"data:image" in file.read("report.html")


def test_no_map_of_a_segmented_image_leaves(tmp_path):
    images = write_toy_segmentation(tmp_path / "images", splits={"train": 4, "val": 2}, image_size=64)
    run = small_fit(images, tmp_path, name="one", image_size=64, batch_size=2, val_split=None).path
    assert "data:image" in (run / "report.html").read_text()
    with zipfile.ZipFile(published(run, tmp_path / "x.zip")) as file:
        assert b"data:image" not in file.read("report.html")
        (tmp_path / "val.safetensors").write_bytes(file.read("evidence/val.safetensors"))
    assert {*load_file(tmp_path / "val.safetensors")} == {"sizes", "confusion", "intersections", "unions"}


def test_the_code_of_a_project(photos, tmp_path, monkeypatch):
    """The changes of tracked files, and no untracked file."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "model.py").write_text("rate = 1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "model.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (project / "model.py").write_text("rate = 2\n")
    (project / "notes.txt").write_text("untracked")
    run = small_fit(photos, project / "runs", name="one").path
    with zipfile.ZipFile(published(run, project / "a.zip")) as file:
        assert b"+rate = 2" in file.read("code/changes.diff")
        assert b"untracked" not in file.read("code/changes.diff")
        assert len(file.read("code/commit.txt").strip()) == 40
    with zipfile.ZipFile(published(run, project / "b.zip", "--no-patch")) as file:
        assert "code/changes.diff" not in file.namelist()
    (project / "model.py").write_text("rate = 3\n")
    with zipfile.ZipFile(published(run, project / "c.zip")) as file:
        assert "code/changes.diff" not in file.namelist()
        assert "is another one here by now" in file.read("README.md").decode()


def test_places_in_options():
    text = "path: '/home/me/my photos'  # command line\nout: ../runs\nlr: 0.1   # record /home/me/r/config.yaml\n"
    assert config_without_places(text) == "path: my photos  # command line\nout: runs\nlr: 0.1   # record config.yaml\n"
    assert config_without_places("pretrained: ~/weights/a.pt  # default\n") == "pretrained: a.pt  # default\n"
    assert config_without_places("pretrained: true  # default\n") == "pretrained: true  # default\n"
    nested = "data:\n  class_path: autotimm.ImageDataModule\n  init_args:\n    data_dir: /home/me/photos\n"
    assert config_without_places(nested).endswith("    data_dir: photos\n")


def test_private_words():
    manifest = Manifest({}, {}, volatile={"user": "bob", "host": "root", "folder": "/data/bob/runs/one"})
    variables = {"PIP_INDEX_URL": "https://me:secretword@x.org/simple", "AWS_SECRET_ACCESS_KEY": "12345678"}
    words = private_words(manifest, variables)
    assert {"bob", "/data/bob/runs", "secretword", "12345678"} <= words.keys()
    assert "root" not in words
    assert found_in(b"a bobsled", {"bob": "the name of the user"}) == []
    assert found_in(b"made by bob.", {"bob": "the name of the user"}) == ["the name of the user"]
    assert found_in(b"/data/bobsled", {"/data/bob": "a folder of this machine"}) == []
    assert found_in(b"/data/bob/x", {"/data/bob": "a folder of this machine"}) == ["a folder of this machine"]
    assert found_in(b"xx12345678yy", {"12345678": "the variable KEY"}) == ["the variable KEY"]
    assert found_in(b"photos-of_bob-1", {"bob": "the name of the user"}) == ["the name of the user"]


@pytest.mark.parametrize(
    "text",
    [
        "/home/josé/x", "photos_josé", "jose\u0301", json.dumps("/home/josé"), json.dumps(json.dumps("of josé")),
        r"one\njos\u00e9", html.escape("josé"), "jos&#233;", quote("/home/josé"), quote("/josé", safe=""),
        r"a/jos\303\251.py",
    ],
)  # fmt: skip
def test_a_name_is_found_however_it_is_written(text):
    assert found_in(text.encode(), {"josé": "the name of the user"}) == ["the name of the user"]
    assert found_in(text.replace("jos", "bos").encode(), {"josé": "the name of the user"}) == []


def test_a_folder_is_found_however_it_is_written():
    words = {"/home/o'brien & co": "a folder of this machine"}
    for text in ("/home/o'brien & co/x", html.escape("/home/o'brien & co"), quote("/home/o'brien & co"),
                 r"/home/o\'brien & co", r"\/home\/o'brien & co"):  # fmt: skip
        assert found_in(text.encode(), words) == ["a folder of this machine"]


def test_names_are_not_found_in_numbers_and_are_in_checkpoints(tmp_path):
    """Bytes of weights hold every name of three letters; in a pickle a letter follows the text."""
    words = dict.fromkeys(("bob", "joe", "amy", "leo", "eva", "max"), "the name of the user")
    numbers = np.random.default_rng(0).normal(0, 0.02, 12_000_000).astype(np.float32)
    assert found_in(numbers.tobytes(), words)
    save_file({"weight": numbers}, tmp_path / "model.safetensors")
    assert found_in(texts_of(tmp_path / "model.safetensors"), words) == []
    torch.save({"weight": torch.from_numpy(numbers), "made by": "bobby"}, tmp_path / "a.ckpt")
    assert found_in(texts_of(tmp_path / "a.ckpt"), words) == []
    torch.save({"weight": torch.zeros(1), "made by": "bob"}, tmp_path / "b.ckpt")
    assert found_in(texts_of(tmp_path / "b.ckpt"), words) == ["the name of the user"]
    save_file({"bob": numbers[:1]}, tmp_path / "named.safetensors")
    assert found_in(texts_of(tmp_path / "named.safetensors"), words) == ["the name of the user"]
    (tmp_path / "c.ckpt").write_bytes(b"PK of bob")
    assert found_in(texts_of(tmp_path / "c.ckpt"), words) == ["the name of the user"]


def test_a_secret_does_not_leave_with_names(run, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "one"
    shutil.copytree(run, copy)
    with (copy / "config.yaml").open("a") as options:
        options.write(f"# {USER} {TOKEN}\n")
    monkeypatch.setenv("USER", USER)
    monkeypatch.setenv("LOGNAME", USER)
    command = ["publish", str(copy), "--dry-run", "--allow-names"]
    assert main(command) == 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(command) == 4
    said = capsys.readouterr().err
    assert "must not hold a secret. There is the variable HF_TOKEN in run/config.yaml" in said


def environment(folder: Path, *requirements: str, cwd: Path) -> Path:
    """A fresh environment; the test is skipped where no index of packages can be reached."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *requirements], cwd=cwd, capture_output=True, text=True, timeout=1800
    )
    if done.returncode and re.search(r"No matching distribution|Failed to establish|Could not find", done.stderr):
        pytest.skip(f"the packages cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return python


@pytest.mark.slow
def test_it_verifies_in_a_fresh_environment(unpacked, photos, tmp_path):
    began = time.monotonic()
    python = environment(tmp_path / "fresh", "-r", "requirements.txt", cwd=unpacked)
    installed = time.monotonic()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-m", "autotimm", "verify", "run", "--data", str(photos)],
        cwd=unpacked, env=variables, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    print(f"installed in {installed - began:.0f} s, verified in {time.monotonic() - installed:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: identical" in done.stdout


VALIDATOR = """
import json, sys
from rocrate_validator import services
settings = {"rocrate_uri": sys.argv[1], "profile_identifier": "process-run-crate-0.5",
            "requirement_severity": "REQUIRED", "offline": True}
found = services.validate(settings)
print(json.dumps([str(issue.message) for issue in found.get_issues()]))
"""


@pytest.mark.slow
def test_the_crate_fits_its_profile(unpacked, tmp_path):
    """Validated in an environment of its own; the context, which is on the web, has a stand-in with the same terms."""
    path = unpacked / "ro-crate-metadata.json"
    content = json.loads(path.read_text())
    assert content["@context"] == "https://w3id.org/ro/crate/1.1/context"
    terms = {key for entity in content["@graph"] for key in entity if not key.startswith("@")}
    terms |= {kind for entity in content["@graph"] for kind in [entity["@type"]]}
    context = {term: f"http://schema.org/{term}" for term in terms}
    context |= {"conformsTo": "http://purl.org/dc/terms/conformsTo", "File": "http://schema.org/MediaObject"}
    path.write_text(json.dumps({**content, "@context": context}))
    python = environment(tmp_path / "validator", "roc-validator", cwd=tmp_path)
    done = subprocess.run(
        [python, "-c", VALIDATOR, str(unpacked)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
