import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import warm
from autotimm.errors import UsageError, WeightsError
from autotimm.models import Weights, build_backbone, build_classifier, resolve_weights
from autotimm.records.digest import file_digest, state_digest


def saved_state(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Weights as timm saves them, with a classifier of 1000 classes by default."""
    torch.manual_seed(1)
    return dict(timm.create_model(name, **arguments).state_dict())


def load(name: str, path: Path, **arguments: Any) -> torch.nn.Module:
    return build_backbone(name, weights=resolve_weights(name, str(path)), **arguments)


class TestWeightsFile:
    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_fills_the_backbone(self, tmp_path: Path, name: str, suffix: str) -> None:
        state, path = saved_state(name), tmp_path / f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
        backbone = load(name, path)
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())

    def test_is_recorded_by_digest_and_not_by_path(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.safetensors"
        save_file(saved_state("test_resnet"), path)
        weights = resolve_weights("test_resnet", path)
        assert (weights.source, weights.sha256, weights.pretrained) == ("file", file_digest(path), True)
        assert weights.note == f"weights: mine.safetensors (file, sha256 {file_digest(path)[:12]})"
        assert str(tmp_path) not in json.dumps(weights.as_dict())
        assert Weights.from_dict(weights.as_dict()).recorded == file_digest(path)

    @pytest.mark.parametrize(
        "prefix", ["model.", "net.", "student.", "model.net.", "module.model.", "model._orig_mod."]
    )
    def test_a_prefix_of_all_names_is_left_out_and_said(self, tmp_path: Path, prefix: str) -> None:
        state, path = saved_state("test_resnet"), tmp_path / "w.pth"
        torch.save({"state_dict": {prefix + name: value for name, value in state.items()}}, path)
        backbone = load("test_resnet", path)
        assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
        said = prefix.removeprefix("module.")  # which timm removes itself
        assert f", without the prefix {said!r} of its names)" in resolve_weights("test_resnet", path).note

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.backbone.", "network.backbone."])
    def test_other_wrappers_are_left_out(self, tmp_path: Path, prefix: str) -> None:
        state, path = saved_state("test_resnet", num_classes=0), tmp_path / "w.pth"
        head = (
            {}
            if prefix.endswith("mod.") or prefix == "module."
            else {prefix.replace("backbone", "head"): torch.ones(2)}
        )
        torch.save({prefix + name: value for name, value in state.items()} | head, path)
        backbone = load("test_resnet", path)
        assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())

    def test_a_prefix_of_some_names_stays(self, tmp_path: Path) -> None:
        state, path = saved_state("test_resnet"), tmp_path / "w.pth"
        torch.save({f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(2)}, path)
        with pytest.raises(WeightsError, match="also has model"):
            load("test_resnet", path)

    @pytest.mark.parametrize("classes", [0, 7])
    @pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
    def test_may_have_no_classifier_or_another_one(self, tmp_path: Path, name: str, classes: int) -> None:
        state, path = saved_state(name, num_classes=classes), tmp_path / "weights.safetensors"
        save_file(state, path)
        key = next(key for key in state if key.endswith("mlp.fc1.weight"))
        assert torch.equal(load(name, path).state_dict()[key], state[key])

    @pytest.mark.parametrize("classes", [0, 7])
    def test_is_resampled_to_another_image_size(self, tmp_path: Path, classes: int) -> None:
        state, path = saved_state("test_vit", num_classes=classes), tmp_path / "weights.safetensors"
        save_file(state, path)
        backbone = load("test_vit", path, image_size=64).state_dict()
        assert backbone["pos_embed"].shape != state["pos_embed"].shape
        assert torch.equal(backbone["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])

    def test_may_be_a_checkpoint_or_an_export_of_autotimm(self, tmp_path: Path) -> None:
        network = build_classifier("test_resnet", 3, seed=5)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "best.ckpt")
        for name in ("model.safetensors", "best.ckpt"):
            backbone = load("test_resnet", tmp_path / name)
            assert state_digest(backbone.state_dict()) == state_digest(network.backbone.state_dict())

    def test_names_of_the_original_authors_are_translated(self, tmp_path: Path) -> None:
        state = saved_state("deit_tiny_patch16_224")
        save_file(state, tmp_path / "deit.safetensors")
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "original.pth")
        backbone = load("deit_tiny_patch16_224", tmp_path / "original.pth")
        assert torch.equal(backbone.state_dict()["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])

    def test_loading_leaves_the_generators_alone(self, tmp_path: Path) -> None:
        save_file(saved_state("test_vit"), tmp_path / "w.safetensors")
        before = torch.get_rng_state()
        load("test_vit", tmp_path / "w.safetensors", image_size=64)
        assert torch.equal(torch.get_rng_state(), before)

    def test_missing_keys_are_rejected(self, tmp_path: Path) -> None:
        state = saved_state("test_resnet")
        del state["layer4.0.conv1.weight"]
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(
            WeightsError, match=r"does not fit test_resnet: it lacks layer4.0.conv1.weight. Give the backbone"
        ):
            load("test_resnet", tmp_path / "w.safetensors")

    def test_unexpected_keys_are_rejected(self, tmp_path: Path) -> None:
        save_file(saved_state("test_resnet") | {"extra.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=r"does not fit test_resnet: it also has extra.weight"):
            load("test_resnet", tmp_path / "w.safetensors")

    def test_weights_of_another_backbone_are_rejected(self, tmp_path: Path) -> None:
        save_file(saved_state("test_resnet"), tmp_path / "w.safetensors")
        with pytest.raises(
            WeightsError, match=r"does not fit test_vit: it lacks cls_token.* and \d+ more and also has bn1"
        ):
            load("test_vit", tmp_path / "w.safetensors")

    def test_other_shapes_are_rejected(self, tmp_path: Path) -> None:
        state = saved_state("test_resnet")
        state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=r"does not fit test_resnet: it has other shapes.*layer1.0.conv1.weight"):
            load("test_resnet", tmp_path / "w.safetensors")

    def test_pickled_code_is_rejected_and_not_executed(self, tmp_path: Path) -> None:
        class Malicious:
            def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
                return os.system, (f"touch {tmp_path / 'ran'}",)

        torch.save({"state_dict": {"conv1.weight": Malicious()}}, tmp_path / "torch.pth")
        (tmp_path / "bare.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
        for name in ("torch.pth", "bare.pth"):
            with pytest.raises(WeightsError, match=r"contain tensors and plain data only"):
                load("test_resnet", tmp_path / name)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_damaged_files_are_rejected(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"The weights file .*w\.(pth|safetensors) (cannot be read|contains no)"):
            load("test_resnet", path)

    def test_files_without_a_dictionary_of_tensors_are_rejected(self, tmp_path: Path) -> None:
        for value in (torch.zeros(3), [1, 2], {"a": 1}, {"state_dict": None}):
            torch.save(value, tmp_path / "w.pth")
            with pytest.raises(WeightsError, match=r"contains no dictionary of tensors"):
                load("test_resnet", tmp_path / "w.pth")

    def test_missing_files_and_unknown_extensions_are_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"There is no weights file .*none\.pth"):
            resolve_weights("test_resnet", str(tmp_path / "none.pth"))
        (tmp_path / "w.npz").touch()
        with pytest.raises(WeightsError, match=r"must end in one of \.safetensors.*It ends in '\.npz'"):
            resolve_weights("test_resnet", tmp_path / "w.npz")


class TestReplay:
    def test_requires_the_recorded_file(self, tmp_path: Path) -> None:
        save_file(saved_state("test_resnet"), tmp_path / "w.safetensors")
        recorded = resolve_weights("test_resnet", tmp_path / "w.safetensors").recorded
        replayed = resolve_weights("test_resnet", tmp_path / "w.safetensors", expected_sha256=recorded)
        assert replayed.sha256 == recorded
        save_file(saved_state("test_resnet", num_classes=3), tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=rf"must have the recorded sha256 {recorded}\. w\.safetensors has"):
            resolve_weights("test_resnet", tmp_path / "w.safetensors", expected_sha256=recorded)

    def test_random_weights_stay_random(self) -> None:
        assert resolve_weights("test_resnet", False).recorded == "random"
        for pretrained in (None, True, False, "gone.pth"):
            assert resolve_weights("test_resnet", pretrained, expected_sha256="random").source == "random"


def test_invalid_pretrained_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"`pretrained` of test_resnet must be True, False, None or the path"):
        resolve_weights("test_resnet", 3)  # type: ignore[arg-type]


def test_models_without_pretrained_weights() -> None:
    assert resolve_weights("resnet10t", False).note == "weights: random (pretrained is off)"
    assert resolve_weights("resnet200").note == ("weights: random (timm has no pretrained weights for resnet200)")
    with pytest.raises(WeightsError, match=r"timm has no pretrained weights for resnet200. Use pretrained=None"):
        resolve_weights("resnet200", True)


# huggingface_hub reads its environment variables when it is imported, so each case runs in its own process, and imports
# it and what refers to it anew.


class Hub(ThreadingHTTPServer):
    """A hub that serves the given files and records the requests."""

    def __init__(self, files: dict[str, bytes], status: int = 200) -> None:
        self.files, self.status, self.requests = files, status, []
        super().__init__(("127.0.0.1", 0), HubHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.server.files.get(self.path.partition("?")[0])
        served = self.server.status == 200 and body is not None
        self.send_response(200 if served else 404 if self.server.status == 200 else self.server.status)
        if served and body is not None:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        return body if served and body is not None else b""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Hub]]:
    hubs = []

    def start(files: dict[str, bytes], status: int = 200) -> Hub:
        hubs.append(Hub(files, status))
        threading.Thread(target=hubs[-1].serve_forever, daemon=True).start()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


def run_in_process(code: str, home: Path, *arguments: str, prefix: Sequence[str] = (), **variables: str) -> Any:
    """Run code that prints JSON, with an empty cache and without proxies; a prefix starts an interpreter of its own."""
    foreign = [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("HF_")]
    given = {"HF_HOME": str(home), "TORCH_HOME": str(home / "torch"), "NO_PROXY": "*"} | variables
    prelude = f"""
import json, os
for name in {foreign}:
    os.environ.pop(name)
os.environ.update({given})
from autotimm.models import *
from autotimm.errors import *
"""
    words = ["-c", warm.forgotten("autotimm", "huggingface_hub", "timm") + prelude + code, *arguments]
    if prefix:
        command = [*prefix, sys.executable, *words]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        completed = warm.run(words)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


def hub_files(repo: str, tmp_path: Path, **config: Any) -> dict[str, bytes]:
    save_file(saved_state("test_resnet"), tmp_path / "served.safetensors")
    data = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}} | config
    root = f"/{repo}/resolve/main"
    return {
        "/": b"",
        f"{root}/model.safetensors": (tmp_path / "served.safetensors").read_bytes(),
        f"{root}/config.json": json.dumps(data).encode(),
    }


RESOLVE_NOTES = "notes = [resolve_weights(name).note for name in ('test_resnet', 'test_vit', 'test_convnext')]\n"
MESSAGE_OF = """
def message_of(call, *arguments):
    try:
        call(*arguments)
    except ModelError as error:
        return str(error)
"""


HUB_STATE = """
import time
from autotimm.models.backbone.hub import hub_state
begin = time.monotonic()
print(json.dumps([hub_state(), hub_state(), time.monotonic() - begin]))
"""
# As root of namespaces of its own: nothing but loopback, and a name server there that never answers.
STALLED = """
import fcntl, socket, struct, subprocess, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(server, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
server.bind(("127.0.0.1", 53))
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
"""


class TestWithoutHub:
    def test_a_name_server_that_never_answers_costs_three_seconds(self, tmp_path: Path) -> None:
        namespaces = ["unshare", "--map-root-user", "--mount", "--net"]
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("nameserver 127.0.0.1\n")
        prepared = [*namespaces, sys.executable, "-c", STALLED, str(resolv_conf)]
        if shutil.which("unshare") is None or subprocess.run(prepared, capture_output=True, check=False).returncode:
            pytest.skip("namespaces of one's own are not allowed here")
        code = f"{STALLED}{HUB_STATE}"
        state, again, seconds = run_in_process(code, tmp_path, str(resolv_conf), prefix=namespaces)
        assert state == again == "the hub is not reachable"
        assert 2.5 < seconds < 8, "getaddrinfo alone takes 10 s"

    @pytest.mark.slow
    def test_a_server_that_never_answers_costs_three_seconds(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts, nobody replies
            endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
            state, again, seconds = run_in_process(HUB_STATE, tmp_path, HF_ENDPOINT=endpoint)
        assert state == again == "the hub is not reachable"
        assert 2.5 < seconds < 8

    @pytest.mark.slow
    def test_random_weights_are_used_and_noted(self, tmp_path: Path) -> None:
        code = f"{RESOLVE_NOTES}print(json.dumps(notes))"
        notes = run_in_process(code, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
        assert notes[0] == "weights: random (test_resnet.r160_in1k is not cached and the hub is not reachable)"

    def test_hub_is_probed_once_without_retries(self, tmp_path: Path, serve: Callable[..., Hub]) -> None:
        hub = serve({}, status=503)
        code = f"""{RESOLVE_NOTES}{MESSAGE_OF}
required = message_of(resolve_weights, "test_resnet", True)
named = message_of(find_architecture, "hf-hub:owner/tiny")
print(json.dumps([notes, required, named]))
"""
        notes, required, named = run_in_process(code, tmp_path, HF_ENDPOINT=hub.url)
        assert all("the hub is not reachable" in note for note in notes)
        assert "is not cached and the hub is not reachable. Connect to the hub once, give the path of a" in required
        assert "'hf-hub:owner/tiny' is not cached and the hub is not reachable. Connect to the hub once" in named
        assert hub.requests == ["HEAD /"]

    @pytest.mark.slow
    def test_offline_mode_contacts_no_hub(self, tmp_path: Path, serve: Callable[..., Hub]) -> None:
        hub = serve({"/": b""})
        notes = run_in_process(
            f"{RESOLVE_NOTES}print(json.dumps(notes))", tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"
        )
        assert all("HF_HUB_OFFLINE is set" in note for note in notes)
        assert hub.requests == []


class TestWithHub:
    # One process each: with the hub, offline with its cache, and on another machine with only the record.
    BUILD = (
        MESSAGE_OF
        + """
weights = [resolve_weights(name) for name in ("test_resnet", "test_resnet", "hf-hub:owner/tiny")]
network = build_classifier("hf-hub:owner/tiny", 3, weights=weights[2])
first = network.backbone.state_dict()["conv1.0.weight"].flatten()[:3].tolist()
mean = network.normalize.mean.flatten().tolist()
lacking = [message_of(resolve_weights, "test_vit", True), message_of(find_architecture, "hf-hub:owner/bert"),
           resolve_weights("test_vit").note]
print(json.dumps([[w.as_dict() for w in weights], first, mean, lacking]))
"""
    )
    REBUILD = """
weights = resolve_weights("hf-hub:owner/tiny", False)
print(json.dumps(build_classifier("hf-hub:owner/tiny", 3, weights=weights).normalize.mean.flatten().tolist()))
"""

    def test_weights_are_downloaded_once_and_recorded(self, tmp_path: Path, serve: Callable[..., Hub]) -> None:
        bert = {"/owner/bert/resolve/main/config.json": b'{"model_type": "bert"}'}
        hub = serve(hub_files("timm/test_resnet.r160_in1k", tmp_path) | hub_files("owner/tiny", tmp_path) | bert)
        records, first, mean, lacking = run_in_process(self.BUILD, tmp_path / "home", HF_ENDPOINT=hub.url)
        digest = file_digest(tmp_path / "served.safetensors")
        assert [record["source"] for record in records] == ["hub", "cache", "hub"]
        assert [record["sha256"] for record in records] == [digest] * 3
        assert records[0]["note"] == f"weights: timm/test_resnet.r160_in1k (hub, sha256 {digest[:12]})"
        assert first == saved_state("test_resnet")["conv1.0.weight"].flatten()[:3].tolist()
        assert mean == pytest.approx([0.1, 0.2, 0.3])
        assert hub.requests.count("HEAD /") == 1
        weights, architecture, note = lacking
        assert "holds none of them. Check its name" in weights
        assert "The `config.json` of hf-hub:owner/bert must name an `architecture` of timm" in architecture
        assert note.startswith("weights: random (The hub repository timm/test_vit.r160_in1k must hold one of")

        requests = list(hub.requests)
        again = run_in_process(self.BUILD, tmp_path / "home", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert [record["source"] for record in again[0]] == ["cache"] * 3
        assert again[1:3] == [first, mean]
        remember = f"remember_architecture({records[2]['architecture']!r})\n"
        assert run_in_process(remember + self.REBUILD, tmp_path / "other", HF_ENDPOINT=hub.url) == mean
        assert hub.requests == requests
