"""``autotimm serve``: the bits of ``autotimm predict``, under load and against hostile clients."""

import io
import re
import resource
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import warm
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import DataError, RunError, UsageError
from autotimm.runs.run import Run
from autotimm.serving.prediction_stream import PredictionStream
from autotimm.serving.request_limits import RefusedError
from autotimm.types import Sample
from messy import write_messy_files
from server import Server, form_of, serving_by, serving_run
from training import small_fit

# Small limits, which the command line does not have all of.
PROGRAM = """
import sys
from autotimm.cli.json_output import json_text
from autotimm.runs.run import Run
from autotimm.serving.http_server import serve
from autotimm.serving.request_limits import Limits

limits = Limits(max_bytes=1_000_000, max_images=16, rate=10_000, patience=2)
serve(Run(sys.argv[1]), port=0, limits=limits, started=lambda url: print(json_text({"url": url}), flush=True))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_toy_folder(folder / "toy", n=24, num_classes=3, seed=7)
    return small_fit(folder / "toy", folder / "runs", threads=2).path


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messy")
    write_messy_files(folder)
    return folder


@pytest.fixture(scope="module")
def readable(messy: Path) -> dict[str, bytes]:
    names = ["turned.jpg", "cmyk.jpg", "deep.png", "deep transparent.png", "float.tiff", "palette.gif", "=bits.bmp",
             'very, "wide".webp', "strip.png"]  # fmt: skip
    return {name: (messy / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    with serving_by(["-c", PROGRAM, str(run)]) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def rows(run: Path, messy: Path, readable: dict[str, bytes]) -> bytes:
    """What ``autotimm predict`` prints for the same files."""
    done = warm.run(["-m", "autotimm", "predict", run, *readable], messy)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


def png(width: int, height: int) -> bytes:
    """A valid PNG of zeros."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((3 * width + 1) * height), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                    for kind, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + body


def test_rows_are_those_of_predict_byte_for_byte(server: Server, readable: dict[str, bytes], rows: bytes) -> None:
    answer = server.predict(readable, "?format=csv")
    assert answer.status == 200, answer.body
    assert answer.body == rows
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"


def test_bits_do_not_depend_on_what_else_is_asked(server: Server, readable: dict[str, bytes], rows: bytes) -> None:
    """Each image alone, eight at a time, in another order: the same rows."""
    header, *expected = rows.splitlines(keepends=True)
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda name: server.predict({name: readable[name]}, "?format=csv"), [*readable][::-1])
    assert [answer.body for answer in answers] == [header + row for row in expected[::-1]]


def test_json_holds_the_same_scores(server: Server, run: Path, messy: Path, readable: dict[str, bytes]) -> None:
    from autotimm import Run

    answer = server.ask("POST", "/predict?name=turned.jpg", readable["turned.jpg"], {"Content-Type": "image/jpeg"})
    (expected,) = Run(run).predict(messy / "turned.jpg")
    assert answer.content == {
        "images": [{"name": "turned.jpg", "labels": list(expected.labels), "scores": expected.scores}]
    }


def test_health_and_metrics(server: Server, run: Path) -> None:
    health = server.ask("GET", "/health")
    assert health.status == 200
    assert health.content["status"] == "ok"
    assert (health.content["run"], health.content["kind"], health.content["classes"]) == (run.name, "classes", 3)
    server.ask("GET", "/no/such/page")
    metrics = server.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    text = metrics.body.decode()
    for line in (r'autotimm_requests_total\{code="404",path="other"\} \d', r"autotimm_images_total \d",
                 r"autotimm_waiting_images 0\.0", r'autotimm_request_seconds_bucket\{le="\+Inf"\} \d'):  # fmt: skip
        assert re.search(f"^{line}", text, flags=re.MULTILINE), line


def cut(kind: str) -> bytes:
    """The first 900 bytes of an image of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()[:900]


def bomb_of_header() -> bytes:
    """A PNG whose header says 2 gigapixels, in 100 bytes."""
    image = bytearray(png(4, 4))
    image[16:24] = struct.pack(">II", 60_000, 40_000)
    image[29:33] = struct.pack(">I", zlib.crc32(bytes(image[12:29])))
    return bytes(image)


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 422, "the file is empty"),
        (b"Dear all", 422, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not an image"),
        (b"\x93NUMPY\x01\x00", 422, "not an image"),
        (cut("jpeg"), 422, "truncated"),
        (cut("png"), 422, "truncated"),
        (bomb_of_header(), 413, "2,400,000,000 pixels"),
        (bytes(2_000_000), 413, "at most 1,000,000 bytes"),
    ],
    ids=["empty", "text", "postscript", "array", "truncated-jpeg", "truncated-png", "bomb", "too-many-bytes"],
)
def test_bad_images_are_refused_with_the_reason(server: Server, content: bytes, status: int, said: str) -> None:
    for answer in (
        server.ask("POST", "/predict?name=x.png", content, {"Content-Type": "image/png"}),
        server.predict({"x.png": content}),
    ):
        assert answer.status == status, answer.body
        assert said in answer.content["error"]
        assert "/tmp" not in answer.content["error"]
    assert server.ask("GET", "/health").status == 200


def test_a_real_bomb_is_refused(server: Server) -> None:
    """100 megapixels of zeros in 300 KB, which would be decoded if only the bytes were limited."""
    image = png(10_000, 10_000)
    assert len(image) < 1_000_000
    assert server.ask("POST", "/predict", image, {"Content-Type": "image/png"}).status == 413


def cut_off_or_answered(server: Server, parts: Iterator[bytes], answer: bytes) -> bool:
    """Whether a client gets an answer, or an error since the server has closed the connection while it was sending."""
    try:
        return server.send(parts).startswith(answer)
    except (BrokenPipeError, ConnectionResetError):
        return True


def test_100_megabytes_are_refused(server: Server) -> None:
    """With a length nothing is read; without one, no more than eight times the limit."""
    with_length = server.send([b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"])
    assert with_length.startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        yield b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(100):
            yield b"f4240\r\n" + bytes(1_000_000) + b"\r\n"

    assert cut_off_or_answered(server, endless(), b"HTTP/1.1 413 ")
    assert server.ask("GET", "/health").status == 200


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([HEAD + b"Content-Length: 5000\r\n\r\n" + png(8, 8)], 408),  # waits for more, which does not come
        ([HEAD + b"Content-Length: 20\r\n\r\n" + png(8, 8)], 422),
        ([HEAD + b"Content-Length: many\r\n\r\n" + png(8, 8)], 400),
        ([HEAD + b"Content-Length: -1\r\n\r\n" + png(8, 8)], 400),
        ([HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"], 400),
        ([b"POST /predict HTTP/1.1\r\nHost: loc"], 408),
        ([b""], 408),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)], 400),
        ([b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + bytes(100_000)], 400),
    ],
    ids=["longer", "shorter", "no-number", "negative", "two", "half-a-head", "silent", "tls", "long-head"],
)
def test_wrong_lengths_and_slow_clients(server: Server, parts: list[bytes], status: int) -> None:
    began = time.monotonic()
    assert server.send(parts).startswith(f"HTTP/1.1 {status} ".encode())
    assert time.monotonic() - began < 30
    assert server.ask("GET", "/health").status == 200


def test_a_client_that_trickles_is_cut_off(server: Server) -> None:
    def trickle() -> Iterator[bytes]:
        yield HEAD + b"Content-Length: 1000\r\n\r\n"
        for _ in range(40):
            time.sleep(0.1)
            yield b"x"

    assert cut_off_or_answered(server, trickle(), b"HTTP/1.1 408 ")


def test_a_client_that_leaves_does_no_harm(server: Server) -> None:
    for _ in range(5):
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 500000\r\n\r\n" + bytes(1000))
    assert server.predict({"a.png": png(8, 8)}).status == 200


def test_paths_and_addresses_are_not_opened(server: Server, messy: Path) -> None:
    """An image that is there, and a listener that is asked for nothing."""
    image = messy / "strip.png"
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/strip.png"
        kinds = ("application/json", "text/plain", "application/x-www-form-urlencoded", "message/external-body")
        for word in (str(image), f"file://{image}", url):
            for kind in kinds:
                assert server.ask("POST", "/predict", word.encode(), {"Content-Type": kind}).status == 415
            for content in (word, f'{{"path": "{word}"}}', f"<svg><image href='{word}'/></svg>"):
                assert server.predict({word: content.encode()}).status == 422
            assert server.ask("POST", f"/predict?path={word}&name={word}&url={word}", b"").status == 422
            fields = {"Content-Type": "multipart/form-data; boundary=a-line-that-occurs-in-no-image"}
            body = form_of({word: word.encode()}, 'name="image"')
            assert server.ask("POST", "/predict", body, fields).status == 400
        with pytest.raises(TimeoutError):
            canary.accept()
    for path in ("/etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/upload.js"):
        assert server.ask("GET", path).status == 404


def test_names_are_repeated_and_nothing_more(server: Server) -> None:
    answer = server.predict({"../../etc/passwd\x1b[2J.png": png(8, 8), "C:\\x\\y.png": png(8, 8)})
    assert [image["name"] for image in answer.content["images"]] == ["passwd\x1b[2J.png", "y.png"]
    assert b"\x1b" not in answer.body


def test_too_many_files_are_refused(server: Server) -> None:
    answer = server.predict({f"{number}.png": png(8, 8) for number in range(17)})
    assert (answer.status, "Too many files" in answer.content["error"]) == (400, True)


def test_one_bad_image_of_a_form_is_named(server: Server) -> None:
    answer = server.predict({"good.png": png(8, 8), "bad.png": b"none"})
    assert answer.status == 422
    assert answer.content == {"error": "bad.png cannot be read as an image: not an image."}


def test_other_methods_and_hosts_are_refused(server: Server) -> None:
    assert server.ask("GET", "/predict").status == 405
    assert server.ask("POST", "/health").status == 405
    for host in ("evil.example", "127.0.0.1.evil.example:80", ""):
        assert server.ask("POST", "/predict", png(8, 8), {"Host": host}).status == 421
    for host in ("localhost", "LOCALHOST:80", "[::1]:9"):
        assert server.ask("GET", "/health", headers={"Host": host}).status == 200


def test_answers_forbid_what_a_page_could_do_with_them(server: Server) -> None:
    answer = server.ask("GET", "/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in server.ask("GET", "/health", headers={"Origin": "http://a.b"}).headers
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', answer.body.decode())


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_requests_of_8_clients(count: int, server: Server, readable: dict[str, bytes], rows: bytes) -> None:
    """None is lost, and every answer is the row of ``autotimm predict``."""
    header, *lines = rows.splitlines(keepends=True)
    expected = dict(zip(readable, lines, strict=True))
    names = [[*readable][number % len(readable)] for number in range(count)]

    def ask(name: str) -> tuple[bool, float]:
        began = time.perf_counter()
        answer = server.predict({name: readable[name]}, "?format=csv")
        return answer.body == header + expected[name], time.perf_counter() - began

    with ThreadPoolExecutor(8) as clients:
        results = list(clients.map(ask, names))
    assert all(right for right, _ in results)
    seconds = sorted(taken for _, taken in results)
    print(f"p50 {1000 * seconds[count // 2]:.0f} ms, p95 {1000 * seconds[count * 95 // 100]:.0f} ms")
    batch = re.search(r"^autotimm_batch_images ([\d.]+)", server.ask("GET", "/metrics").body.decode(), re.MULTILINE)
    assert batch
    assert float(batch[1]) > 1, "no two images were predicted together"


@pytest.mark.slow
def test_small_files_of_many_pixels_take_little_memory(run: Path) -> None:
    """A dozen files of 60 KB, of 60 MB each when they are decoded."""
    with serving_run(run) as server:
        files = {f"{number}.png": png(5000, 4000) for number in range(12)}
        before, highest, ended = memory_of(server), 0, threading.Event()

        def watch() -> None:
            nonlocal highest
            while not ended.wait(0.02):
                highest = max(highest, memory_of(server))

        watching = threading.Thread(target=watch)
        watching.start()
        answer = server.predict(files)
        ended.set()
        watching.join()
    assert [image["name"] for image in answer.content["images"]] == [*files]
    assert highest - before < 520  # all of them take 720


def memory_of(server: Server) -> int:
    """Megabytes that the process holds."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def test_an_image_that_nobody_waits_for_any_more_ends_nothing(run: Path) -> None:
    with PredictionStream(Run(run)) as stream:
        futures = [stream.submit(black(name)) for name in "abc"]
        cancelled = futures[0].cancel()
        assert [future.result(timeout=60).id for future in futures[cancelled:]] == ["a", "b", "c"][cancelled:]
        assert stream.is_alive


def black(name: str, side: int = 32) -> Sample:
    return Sample(tv_tensors.Image(torch.zeros(3, side, side, dtype=torch.uint8)), None, name)


def test_an_error_of_own_transforms_is_that_of_its_images_alone(run: Path) -> None:
    with PredictionStream(Run(run)) as stream:
        usual, begun, go_on = stream._transform, threading.Event(), threading.Event()

        def odd(sample: Sample) -> Sample:
            begun.set()
            assert go_on.wait(60)
            if sample.id == "bad":
                raise DataError("This image cannot be turned.")
            return sample if sample.id == "large" else usual(sample)

        stream._transform = odd
        futures = {"a": stream.submit(black("a"))}
        assert begun.wait(60)
        futures |= {name: stream.submit(black(name, side=48)) for name in ("bad", "large")}  # of the same batch
        go_on.set()
        with pytest.raises(DataError, match="cannot be turned"):
            futures["bad"].result(timeout=60)
        for name in ("a", "large"):
            with pytest.raises(UsageError, match="must give images of one size and data type"):
                futures[name].result(timeout=60)
        assert stream.submit(black("next")).result(timeout=60).id == "next"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is said in the log of a server
def test_a_network_that_fails_leaves_nobody_waiting(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = PredictionStream(Run(run))
    begun, go_on = threading.Event(), threading.Event()

    def fails(*args: object) -> None:
        begun.set()
        assert go_on.wait(60)
        raise RuntimeError("the device is gone")

    with stream:
        monkeypatch.setattr(stream.task.network, "forward", fails)
        computed = stream.submit(black("a"))
        assert begun.wait(60)
        waiting = [stream.submit(black(name)) for name in "bc"]
        assert stream.waiting <= 2
        go_on.set()
        for future in (computed, *waiting):
            with pytest.raises(RunError, match=r"has stopped: the device is gone\. Start the server again"):
                future.result(timeout=60)
        assert not stream.is_alive
        with pytest.raises(RunError, match="the device is gone"):
            stream.submit(black("d"))
    failing = PredictionStream(Run(run))
    monkeypatch.setattr(failing.task.network, "forward", fails)
    with pytest.raises(RunError, match="the device is gone"), failing:
        raise AssertionError("a stream that cannot work must not start")


def test_no_more_images_wait_than_there_is_room_for(run: Path) -> None:
    with PredictionStream(Run(run), waiting=2) as stream:
        usual, begun, go_on = stream._transform, threading.Event(), threading.Event()

        def slow(sample: Sample) -> Sample:
            begun.set()
            assert go_on.wait(60)
            return usual(sample)

        stream._transform = slow
        futures = [stream.submit(black("a"))]
        assert begun.wait(60)  # it waits no more, and nothing else is taken before it is transformed
        futures += [stream.submit(black(name)) for name in "bc"]
        with pytest.raises(RefusedError, match="Too many images wait") as refused:
            stream.submit(black("d"))
        assert (refused.value.status, refused.value.headers, stream.waiting) == (503, {"Retry-After": "1"}, 2)
        go_on.set()
        assert [future.result(timeout=60).id for future in futures] == ["a", "b", "c"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_ends_cleanly_and_answers_what_has_begun(run: Path, number: int) -> None:
    with serving_run(run, "--rate", "0.25") as server:
        assert server.predict({"a.png": png(8, 8)}).status == 200
        refused = server.predict({"a.png": png(8, 8)})
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 4
        time.sleep(4)
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(server.predict({"a.png": png(2000, 2000)}).status))
        waiting.start()
        time.sleep(0.2)
        code = server.stop(number)
        waiting.join()
        assert code == 0
        assert answers == [200]
        assert server.errors.read().splitlines()[-1] == "stopped"


def test_port_in_use_is_a_usage_error(server: Server, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(run), "--port", str(server.port)]) == 2
    assert "cannot listen on 127.0.0.1, port" in capsys.readouterr().err


def test_only_loopback_is_listened_on(server: Server) -> None:
    """The sockets of the process, from the system."""
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [fields[1] for fields in listening if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == server.port]
    assert own == [f"0100007F:{server.port:04X}"]
