"""A stand-in for the hub on loopback: the part of its HTTP interface that pushing and loading a model uses."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_that_nobody_may_see"
ABOUT = ("/api/models/me/photos", "/api/models/me/photos/revision/main")  # release 0.34 of the library asks for both


class Hub(ThreadingHTTPServer):
    """A hub with a repository."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.commits: list[str] = []
        self.private: bool | None = None  # None: there is no repository yet
        self.large: tuple[str, ...] = (".safetensors",)  # endings of files that are sent apart from the commit
        self.refusal: tuple[int, str] | None = None
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_PUT(self) -> None:
        self._note()
        self.server.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer(200, b"")

    def do_POST(self) -> None:
        self._note()
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer_json({"error": f"no such token: {self.headers.get('Authorization')}"}, 401)
        elif self.server.refusal is not None:
            status, text = self.server.refusal
            self._answer_json({"error": text}, status)
        else:
            self._post(self.path.partition("?")[0], body)

    def _post(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/repos/create":
            if hub.private is not None:
                self._answer_json({"error": "You already created this model repo", "url": f"{hub.url}/me/photos"}, 409)
                return
            hub.private = json.loads(body).get("private", json.loads(body).get("visibility") == "private")
            self._answer_json({"url": f"{hub.url}/me/photos"})
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlicense: ")
            self._answer_json({"errors": [], "warnings": []})
        elif path == "/api/models/me/photos/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(hub.large) else "regular" for name in files]
            answers = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False}
                for name, mode in zip(files, modes, strict=True)
            ]
            self._answer_json({"files": answers})
        elif path == "/me/photos.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/blobs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer_json({"transfer": "basic", "objects": objects})
        elif path == "/api/models/me/photos/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, b"")

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
            elif line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.blobs[value["oid"]]
                assert (hashlib.sha256(content).hexdigest(), len(content)) == (value["oid"], value["size"])
                hub.files[value["path"]] = content
        answer = {"commitUrl": f"{hub.url}/me/photos/commit/{'c' * 40}", "commitOid": "c" * 40, "success": True}
        self._answer_json(answer)

    def _serve(self, with_body: bool) -> None:
        self._note()
        hub, path = self.server, self.path.partition("?")[0]
        name = path.removeprefix("/me/photos/resolve/main/")
        if path == "/":
            self._answer(200, b"")
        elif path in ABOUT and hub.private is not None:
            about = {"id": "me/photos", "sha": "c" * 40, "private": hub.private, "siblings": [], "tags": []}
            self._answer_json(about)
        elif name in hub.files:
            content = hub.files[name]
            digest = hashlib.sha256(content).hexdigest()
            self._answer(200, content, with_body, {"ETag": f'"{digest}"', "X-Repo-Commit": "c" * 40})
        else:
            self._answer(404, b"", headers={"X-Error-Code": "EntryNotFound"})

    def _note(self) -> None:
        self.server.requests.append(f"{self.command} {self.path.partition('?')[0]}")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer_json(self, answer: dict[str, Any], status: int = 200) -> None:
        self._answer(status, json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def _answer(
        self, status: int, content: bytes, with_body: bool = True, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
