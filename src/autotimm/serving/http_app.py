"""The HTTP interface: ``POST /predict``, ``/health``, ``/metrics``, and the page on ``/``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autotimm.errors import AutotimmError
from autotimm.report.class_colors import css_colors, is_background
from autotimm.report.page_parts import TASK_NAMES, inlined, templates_of, without_surrogates
from autotimm.runs.prediction_files import as_csv
from autotimm.serving.answers import as_plain
from autotimm.serving.prediction_stream import PredictionStream
from autotimm.serving.request_limits import Limits, RateLimit, RefusedError
from autotimm.serving.uploads import Upload, decode, read_uploads
from autotimm.types import DataSpec

__all__ = ["make_app"]

_PATHS = ("/", "/predict", "/health", "/metrics")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
}  # fmt: skip


def make_app(
    stream: PredictionStream, facts: Mapping[str, Any], limits: Limits, folder: Path, hosts: Iterable[str] = ()
) -> ASGIApp:
    """Make the application.

    Args:
        stream: Predicts the images.
        facts: What ``/health`` says of the run: strings and numbers.
        limits: The limits of a request.
        folder: A folder for temporary files, which nobody else can read.
        hosts: The names by which a client may call the server; all if there are none. A server on the loopback
            interface answers no other, so that a page of a stranger, whose name leads there, cannot ask it.
    """
    figures = _Figures(stream, facts)
    service = _Service(stream, facts, limits, folder, figures)
    app = Starlette(
        routes=[
            Route("/", service.page),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health),
            Route("/metrics", service.metrics),
        ],
        exception_handlers={RefusedError: _refused, HTTPException: _http_error, AutotimmError: _failed},
    )
    return _Gate(app, figures, frozenset(hosts))


class _Figures:
    """What ``/metrics`` tells Prometheus."""

    def __init__(self, stream: PredictionStream, facts: Mapping[str, Any]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("autotimm_requests", "Requests", ["path", "code"], registry=registry)
        self.images = Counter("autotimm_images", "Images predicted", registry=registry)
        self.seconds = Histogram(
            "autotimm_request_seconds", "Seconds from a request to /predict to its answer", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        Gauge("autotimm_waiting_images", "Images that wait", registry=registry).set_function(lambda: stream.waiting)
        Gauge(
            "autotimm_batch_images", "Images per batch, mean of the last 1,000 batches", registry=registry
        ).set_function(lambda: sum(stream.batches) / max(1, len(stream.batches)))
        Info("autotimm_run", "The run", registry=registry).info({name: str(value) for name, value in facts.items()})


class _Service:
    def __init__(
        self, stream: PredictionStream, facts: Mapping[str, Any], limits: Limits, folder: Path, figures: _Figures
    ) -> None:
        self.stream, self.facts, self.limits, self.folder, self.figures = stream, dict(facts), limits, folder, figures
        self.rate = RateLimit(limits.rate)
        # One image is decoded at a time, since decoding can take much memory; the network works meanwhile.
        self.decoder = ThreadPoolExecutor(1, "decode")
        self.content, self.policy = _page(facts, stream.spec)

    async def predict(self, request: Request) -> Response:
        """The predictions of the images of a request, as JSON or as the CSV of ``autotimm predict``."""
        address = request.client.host if request.client else ""
        if wait := self.rate.wait_of(address):
            raise RefusedError(
                429, f"At most {self.limits.rate:g} requests per second.", Retry_After=str(math.ceil(wait))
            )
        if self.stream.waiting >= self.limits.waiting:
            raise RefusedError(503, "Too many images wait. Try again later.", Retry_After="1")
        uploads = await read_uploads(request, self.limits)
        loop = asyncio.get_running_loop()
        submitting = [loop.run_in_executor(self.decoder, self._submit, upload) for upload in uploads]
        submitted = await asyncio.gather(*submitting, return_exceptions=True)  # all: each closes the file of its image
        futures = [each for each in submitted if isinstance(each, Future)]
        for error in (each for each in submitted if isinstance(each, BaseException)):
            for future in futures:
                future.cancel()  # nobody waits for the other images of the request
            raise error
        predictions = await asyncio.gather(*map(asyncio.wrap_future, futures))
        self.figures.images.inc(len(predictions))
        if request.query_params.get("format") == "csv" or request.headers.get("accept", "").startswith("text/csv"):
            return Response(as_csv(predictions), media_type="text/csv; charset=utf-8")
        return JSONResponse({"images": [as_plain(prediction) for prediction in predictions]})

    def _submit(self, upload: Upload) -> Future[Any]:
        """Decode an image when there is room for it, and have it predicted."""
        self.stream.wait_for_room()
        return self.stream.submit(decode(upload, self.stream.spec, self.folder))

    async def health(self, request: Request) -> Response:
        """Whether images are predicted, and of which run."""
        alive = self.stream.is_alive
        return JSONResponse({"status": "ok" if alive else "failed", **self.facts}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(self.figures.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self.content, headers={"Content-Security-Policy": self.policy})


def _page(facts: Mapping[str, Any], spec: DataSpec) -> tuple[str, str]:
    """The page on which one drops an image, and its policy: no script but its own runs, and nothing else is loaded."""
    environment = templates_of("autotimm.serving")
    (style, style_digest), (script, script_digest) = (
        inlined(environment, name) for name in ("upload.css", "upload.js")
    )
    classes = [
        {"name": name, "color": color, "painted": not is_background(name)}
        for name, color in zip(spec.class_names, css_colors(spec.class_names), strict=True)
    ]
    page = environment.get_template("upload.html").render(
        style=style, script=script, facts=facts, task=TASK_NAMES[spec.kind].capitalize(), classes=classes
    )
    policy = (
        f"default-src 'none'; style-src '{style_digest}'; script-src '{script_digest}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return without_surrogates(page), policy


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": error.text}, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"There is no such page. There are {', '.join(_PATHS)}.", 405: "Images are sent by POST to /predict."}
    return JSONResponse({"error": text.get(error.status_code, error.detail)}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 500)


class _Gate:
    """Refuses other names of this host, counts requests, and adds headers that hold for every answer."""

    def __init__(self, app: ASGIApp, figures: _Figures, hosts: frozenset[str]) -> None:
        self.app, self.figures, self.hosts = app, figures, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, path, code = time.monotonic(), scope["path"], 500

        async def sending(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        app: ASGIApp = self.app
        if self.hosts and _host_of(Request(scope)) not in self.hosts:
            app = JSONResponse({"error": "This server listens on the loopback interface, and has another name."}, 421)
        try:
            await app(scope, receive, sending)
        finally:
            self.figures.requests.labels(path if path in _PATHS else "other", str(code)).inc()
            if path == "/predict":
                self.figures.seconds.observe(time.monotonic() - began)


def _host_of(request: Request) -> str:
    """The host that a client has asked for, without the port."""
    given = request.headers.get("host", "").lower()
    return given[: given.find("]") + 1] if given.startswith("[") else given.partition(":")[0]
