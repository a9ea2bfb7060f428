"""``autotimm serve`` under load on loopback: are requests lost, how long do they take, what do hostile uploads get?

A classifier is trained for an epoch and served by a process of its own. First one client and then eight send 200
photographs, one in each request and each over a new connection. An answer that is not the row of ``autotimm predict``,
byte for byte, counts as wrong, and a request without an answer as lost. Times are wall-clock times as the clients see
them. Then each kind of hostile upload is sent once, and a photograph after it.

    python benchmarks/serve.py [--quick] [--threads 1] [--data FOLDER]
"""

from __future__ import annotations

import http.client
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from _bench import PHOTOS, arguments, data_folder, report, table
from _drawn import draw_classes
from _trained import briefly_trained

CLIENTS = (1, 8)
REQUESTS = 200


class Answered(NamedTuple):
    """One request: the status, 0 if it was lost; the answer; and the seconds that it took."""

    status: int
    body: bytes
    seconds: float


class Client:
    """Sends requests to a server.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        """Send one request over a new connection."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "image/jpeg", **headers})
            answer = connection.getresponse()
            return Answered(answer.status, answer.read(), time.perf_counter() - began)
        except (OSError, http.client.HTTPException):
            return Answered(0, b"", time.perf_counter() - began)
        finally:
            connection.close()

    def rows(self, content: bytes, name: str) -> Answered:
        """Ask for the rows of an image."""
        return self.ask("POST", f"/predict?format=csv&name={name}", content)


@contextmanager
def serving(run: Path) -> Iterator[Client]:
    """Serve a run by a process of its own."""
    command = [sys.executable, "-m", "autotimm", "serve", str(run), "--port", "0", "--rate", "100000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") and (line := process.stdout.readline()):
            text += line
        try:
            yield Client(json.loads(text)["url"])
        finally:
            process.terminate()


def load(
    client: Client, photos: dict[str, bytes], expected: dict[str, bytes], clients: int, number: int
) -> dict[str, Any]:
    """Send some requests by some clients at once."""
    names = [[*photos][index % len(photos)] for index in range(number)]
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda name: client.rows(photos[name], name), names))
    taken = time.perf_counter() - began
    times = sorted(answer.seconds for answer in answers)
    cuts = statistics.quantiles(times, n=20)
    return {
        "clients": clients, "requests": number, "lost": sum(not answer.status for answer in answers),
        "wrong": sum(answer.body != expected[name] for name, answer in zip(names, answers, strict=True)),
        "p50_ms": round(1000 * cuts[9]), "p95_ms": round(1000 * cuts[18]), "per_second": round(number / taken, 1),
    }  # fmt: skip


def hostile(photo: bytes) -> dict[str, bytes]:
    """Uploads that must be refused, by what they are."""
    header = bytearray(_png(4, 4))
    header[16:24] = struct.pack(">II", 60_000, 40_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    return {
        "nothing": b"", "text": b"Dear all", "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n", "a pickle": b"\x80\x04K\x01.",
        "a truncated JPEG": photo[: len(photo) // 2], "a PNG whose header says 2.4 gigapixels": bytes(header),
        "100 megapixels of zeros": _png(10_000, 10_000), "100 MB": bytes(100_000_000),
    }  # fmt: skip


def _png(width: int, height: int) -> bytes:
    """A valid PNG of zeros."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(3 * width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def predicted(run: Path, files: Sequence[Path], names: Sequence[str]) -> dict[str, bytes]:
    """The rows of ``autotimm predict`` of each image, with the line of titles."""
    with tempfile.TemporaryDirectory() as folder:
        for file, name in zip(files, names, strict=True):
            os.symlink(file.resolve(), Path(folder, name))
        command = [sys.executable, "-m", "autotimm", "predict", str(run), *names]
        text = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    titles, *rows = text.splitlines(keepends=True)
    return {name: titles + row for name, row in zip(names, rows, strict=True)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the network")
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    options = parser.parse_args()
    network, size = ("test_resnet", 64) if options.quick else ("tf_efficientnet_lite0", 160)
    number = 24 if options.quick else REQUESTS
    with (
        data_folder(options, PHOTOS / "cls_clothing" / "validation", draw_classes) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        run = briefly_trained(folder, Path(scratch), network, size, options.threads)
        files = sorted(Path(folder).rglob("*.*"))[:32]
        names = [f"{index}{file.suffix}" for index, file in enumerate(files)]
        photos = dict(zip(names, (file.read_bytes() for file in files), strict=True))
        expected = predicted(run.path, files, names)
        with serving(run.path) as client:
            client.rows(photos[names[0]], names[0])  # the first one is not counted
            loads = [load(client, photos, expected, clients, number) for clients in CLIENTS]
            metrics = client.ask("GET", "/metrics").body.decode()
            refused, after = {}, []
            for kind, content in hostile(photos[names[0]]).items():
                refused[kind] = client.ask("POST", "/predict", content).status
                after.append(client.rows(photos[names[0]], names[0]).body == expected[names[0]])
    together = re.search(r"^autotimm_batch_images ([\d.]+)", metrics, re.MULTILINE)
    print(f"\n{table(('upload', 'status'), refused.items())}\n")
    columns = ("clients", "requests", "lost", "wrong", "p50, ms", "p95, ms", "requests/s")
    report(
        "serve", columns, [[*found.values()] for found in loads], network=network, size=size, threads=options.threads,
        loads=loads, refused=refused, right_after_each=all(after), images_of_a_batch=together and float(together[1]),
    )  # fmt: skip
    lost = sum(found["lost"] + found["wrong"] for found in loads)
    if lost or not all(after) or not all(400 <= status < 500 for status in refused.values()):
        raise SystemExit("Requests were lost or wrong, or a hostile upload was not refused.")


if __name__ == "__main__":
    main()
