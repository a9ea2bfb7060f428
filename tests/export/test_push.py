"""Push to the hub and its model card, with a stand-in for the hub on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from markdown_it import MarkdownIt
from safetensors.torch import load_file

from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import ModelError, UsageError
from autotimm.records.manifest import Manifest
from autotimm.report.model_card import model_card
from hub_stand_in import TOKEN, Hub, serving_hub
from training import small_fit

FILES = ["README.md", "config.json", "export.json", "model.safetensors"]
NAMES = ["<img src=x onerror=alert(1)>", "a`b](http://evil) @me", "---", "c|d\nlicense: mit", "``"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("push")
    photos = write_toy_folder(folder / "photos", splits={"train": 40, "test": 12}, num_classes=2, image_size=32, seed=7)
    run = small_fit(photos, folder / "runs", name="one", evidence=True)
    run.test()
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the protocol of Git LFS
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "*")
        yield hub


def test_nothing_is_sent_without_upload(run: Run, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert main(["push", str(run.path), "me/photos"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("nothing was sent: --upload sends it\n")
    assert [line.split()[-1] for line in out.splitlines()[:4]] == FILES
    assert "# `me/photos`" in out
    assert hub.requests == []
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_upload_sends_what_was_shown(run: Run, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["push", str(run.path), "me/photos", "--upload", "--private", "--license", "apache-2.0", "--json"]
    assert main(command) == 0
    output = capfd.readouterr()
    answer = json.loads(output.out)
    assert (answer["sent"], answer["url"]) == (True, f"{hub.url}/me/photos/commit/{'c' * 40}")
    assert hub.private is True
    assert hub.commits == [f"Add the model of the autotimm run {Manifest.load(run.path / 'manifest.json').run_id}"]
    assert sorted(hub.files) == FILES == sorted(answer["files"])
    assert answer["files"] == {name: len(content) for name, content in hub.files.items()}
    assert hub.files["README.md"].decode() == answer["card"]
    assert not [name for name, content in hub.files.items() if str(run.path.parent.parent).encode() in content]
    assert TOKEN not in output.out + output.err
    assert not [name for name, content in hub.files.items() if TOKEN.encode() in content]


@pytest.mark.slow
def test_fit_starts_from_what_was_pushed(run: Run, hub: Hub, tmp_path: Path) -> None:
    run.push("me/photos", upload=True)
    photos = write_toy_folder(tmp_path / "photos", n=24, num_classes=3, image_size=32)
    words = ["--backbone", "hf-hub:me/photos", "--image-size", "32", "--epochs", "1", "--batch-size", "8",
             "--num-workers", "0", "--accelerator", "cpu", "--recipe", "plain", "--lr", "1e-30", "--json"]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "autotimm", "fit", str(photos), *words], capture_output=True, text=True, cwd=tmp_path,
        env={**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fitted = Run(tmp_path / json.loads(done.stdout)["run"])
    pushed = tmp_path / "pushed.safetensors"
    pushed.write_bytes(hub.files["model.safetensors"])
    # The learning rate is too small to change a weight.
    weight = fitted.model().network.backbone.state_dict()["conv1.0.weight"]
    torch.testing.assert_close(weight, load_file(pushed)["conv1.0.weight"], rtol=0, atol=0)


def test_upload_by_the_way_of_xet(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hf_xet the hub library sends folders by other code; the chunks of large files have no stand-in."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.large = ()
    assert run.push("me/photos", upload=True).url is not None
    assert sorted(hub.files) == FILES


def test_public_repository_takes_nothing_private(run: Run, hub: Hub) -> None:
    hub.private = False
    with pytest.raises(UsageError, match="It is there already, and public"):
        run.push("me/photos", upload=True, private=True)
    assert not hub.files
    assert run.push("me/photos", upload=True).url is not None
    assert sorted(hub.files) == FILES


def test_refusals_show_no_token(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["push", str(run.path), "me/photos", "--upload"]
    hub.refusal = (403, f"the token {TOKEN} may not write")
    assert main(command) == 4
    error = capsys.readouterr().err
    assert "error: The repository me/photos must take the model. The hub refuses (" in error
    assert TOKEN not in error

    for token in ("hf_wrong", "hf_line\x1b[2J"):
        monkeypatch.setenv("HF_TOKEN", token)
        assert main([*command, "--json"]) == 4
        output = capsys.readouterr()
        assert json.loads(output.out)["exit_code"] == 4
        assert token not in output.out + output.err

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run.path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(run.path / "none"))
    asked = len(hub.requests)
    assert main(command) == 4
    assert capsys.readouterr().err == (
        "error: The hub must know who pushes, by a token. There is none. Run `hf auth login`, or set HF_TOKEN. "
        "Nothing was sent.\n"
    )
    assert len(hub.requests) == asked
    assert not hub.files


def test_unreachable_hub(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving_hub() as hub:
        gone = hub.url
    monkeypatch.setattr(constants, "ENDPOINT", gone)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(run.path), "me/photos", "--upload"]) == 4
    assert capsys.readouterr().err == (
        "error: The hub must be reachable to push. It is not: the hub is not reachable. Nothing was sent.\n"
    )


@pytest.mark.parametrize(
    "name", ["photos", "me/photos/x", "me/../x", "me/pho tos", "-me/photos", "me/x.git", "https://a/b"]
)
def test_wrong_repository(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "no-run", *(["--"] if name.startswith("-") else []), name]) == 2
    assert "a name such as owner/name" in capsys.readouterr().err


def test_wrong_license(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "no-run", "me/photos", "--license", "mit\ntags: [x]"]) == 2
    assert "an id as the hub writes it" in capsys.readouterr().err


def test_export_has_the_same_card(run: Run, tmp_path: Path) -> None:
    run.export(tmp_path / "model", to="timm")
    exported, pushed = (tmp_path / "model" / "README.md").read_text(), run.push("me/photos").card
    assert exported == pushed.replace("`me/photos`", "`model`").replace("hf-hub:me/photos", "local-dir:DIR")


def test_card_has_the_results_of_the_record(run: Run) -> None:
    card = run.push("me/photos").card
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("unknown", "timm")
    manifest = Manifest.load(run.path / "manifest.json")
    for text in (manifest.run_id, manifest.digest, manifest.inputs["data"]["digest"], manifest.inputs["splits"]):
        assert text in card
    value, low, high = map(float, re.findall(r"\| Accuracy, test \| (\S+) \| (\S+) to (\S+) \| 12 \|", card)[0])
    assert value == pytest.approx(run.metrics["test/accuracy"], abs=5e-4)
    assert low <= value <= high
    assert f"| `val/accuracy` | {run.metrics['val/accuracy']:.4f} | not computed | 10 |" in card
    assert "`blue_circle`: 15 train, 5 val, 6 test images" in card


def test_card_of_other_weights_shows_no_results(run: Run) -> None:
    card = run.push("me/photos", ckpt="last").card
    assert "The record has no results of these weights." in card
    assert "These weights are not those of the best epoch" in card
    assert "--ckpt last --out" in card


def test_card_of_a_run_that_was_not_tested(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    results.pop("test")
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    shutil.rmtree(tmp_path / "run" / "evidence")
    card = Run(tmp_path / "run").push("me/photos").card
    assert "- Not measured on test images." in card
    assert "there are no intervals" in card


def test_names_are_harmless(run: Run) -> None:
    spec = replace(run.model().spec, class_names=tuple(NAMES))
    card = model_card(run.path, spec, name="x](y)<b>")
    front, body = card.split("---\n", 2)[1:]
    assert yaml.safe_load(front).keys() == {"license", "library_name", "pipeline_tag", "tags"}
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [token.type for token in (*tokens, *inline) if "html" in token.type or "link" in token.type]
    codes = [child.content for child in inline if child.type == "code_inline"]
    assert [name.replace("\n", "\\n") for name in NAMES] == [code for code in codes if code in
                                                          {name.replace("\n", "\\n") for name in NAMES}]  # fmt: skip


def test_checkpoint_without_its_run_is_refused(run: Run, tmp_path: Path) -> None:
    alone = Run(shutil.copy(run.checkpoint(), tmp_path / "alone.ckpt"))
    with pytest.raises(ModelError, match="manifest"):
        alone.push("me/photos")
    alone.export(tmp_path / "model", to="timm")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES[1:]


def test_model_that_timm_does_not_have_is_refused(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    task = run.model()
    task.__class__ = type("Own", (type(task),), {})  # how it turns logits into predictions is code of its own
    monkeypatch.setattr(Run, "model", lambda *_: task)
    with pytest.raises(ModelError, match="must hold a classifier"):
        run.push("me/photos", upload=True)
    assert hub.private is None
    assert not hub.files
