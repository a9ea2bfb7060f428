"""``autotimm serve`` in a process of its own, and a client that sends what no library would."""

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

import warm

_BOUNDARY = "a-line-that-occurs-in-no-image"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running server."""

    def __init__(self, process: warm.Program, url: str, errors: IO[str]) -> None:
        self.process, self.url, self.errors = process, url, errors
        address = urlsplit(url)
        assert address.port is not None
        assert address.hostname is not None
        self.host, self.port = address.hostname, address.port

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()

    def predict(self, files: Mapping[str, bytes], query: str = "") -> Answer:
        """Send images as a form, as ``curl -F`` does."""
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        return self.ask("POST", f"/predict{query}", form_of(files), {"Content-Type": kind})

    def send(self, parts: Iterable[bytes], timeout: float = 60) -> bytes:
        """Send bytes, and return everything that comes back until the connection ends."""
        with socket.create_connection((self.host, self.port), timeout=timeout) as connection:
            for part in parts:
                connection.sendall(part)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def form_of(files: Mapping[str, bytes], field: str = 'name="image"; filename="{}"') -> bytes:
    """A form with files, or with other fields."""
    parts = []
    for name, content in files.items():
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {field.format(quoted)}\r\n\r\n"
        parts.append(head.encode() + content + b"\r\n")
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


@contextmanager
def serving_run(run: Path, *words: str) -> Iterator[Server]:
    """Serve a run by ``autotimm serve`` on a free port."""
    with serving_by(["-m", "autotimm", "serve", str(run), "--port", "0", "--json", *words]) as server:
        yield server


@contextmanager
def serving_by(arguments: list[str]) -> Iterator[Server]:
    """Run a program that prints the answer of ``autotimm serve --json``."""
    with ExitStack() as stack:
        ends = [os.pipe() for _ in range(2)]
        out, err = (stack.enter_context(os.fdopen(reading)) for reading, _ in ends)
        process = warm.Program(arguments, streams=(None, *(writing for _, writing in ends)))
        for _, writing in ends:
            os.close(writing)
        lines = []
        while "}" not in "".join(lines[-1:]) and (line := out.readline()):
            lines.append(line)
        if not lines:
            raise AssertionError(err.read())
        try:
            yield Server(process, json.loads("".join(lines))["url"], err)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
