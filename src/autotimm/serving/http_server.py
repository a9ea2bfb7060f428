"""Serves a run over HTTP until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
import tempfile
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import autotimm
from autotimm.errors import RunError, UsageError, require
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run
from autotimm.serving.http_app import make_app
from autotimm.serving.prediction_stream import PredictionStream
from autotimm.serving.request_limits import Limits

__all__ = ["serve"]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_GRACE = 10  # seconds that requests have to end when the server stops
_KEEP_ALIVE = 15
_SILENT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def serve(
    run: Run, *, host: str = "127.0.0.1", port: int = 8000, ckpt: str = "best", threshold: float | None = None,
    limits: Limits | None = None, started: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve predictions until Ctrl-C or SIGTERM, when requests that have begun are answered first.

    Args:
        run: The run.
        host: The address to listen on. The default cannot be reached from other machines.
        port: The port; 0 takes a free one.
        ckpt: Which checkpoint of the run.
        threshold: Score from which on labels or objects are reported; ``None`` for the task's own.
        limits: What a client may ask.
        started: Is called with the address, such as ``http://127.0.0.1:8000``, once clients can connect.

    Raises:
        UsageError: If the address cannot be listened on, or the task has no threshold.
        ModelError: If the checkpoint cannot be used.
        RunError: If the network fails.
    """
    limits = limits or Limits()
    with (
        _listening(host, port) as listener,
        PredictionStream(run, ckpt, threshold, limits.waiting) as stream,
        tempfile.TemporaryDirectory(prefix="autotimm-serve-") as folder,  # of this user alone
    ):
        address: str = listener.getsockname()[0]
        names = (*_LOOPBACK_NAMES, host.lower()) if ipaddress.ip_address(address).is_loopback else ()
        app = make_app(stream, _facts_of(run, stream), limits, Path(folder), names)
        config = uvicorn.Config(
            app, http=_protocol(limits.patience), loop="asyncio", ws="none", lifespan="off", log_config=None,
            log_level="error", access_log=False, server_header=False, proxy_headers=False,
            limit_concurrency=limits.connections, timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=_GRACE,
        )  # fmt: skip
        started(f"http://{f'[{address}]' if ':' in address else address}:{listener.getsockname()[1]}")
        with _stopping_quietly():
            uvicorn.Server(config).run(sockets=[listener])
        if not stream.is_alive:
            raise RunError("The prediction has stopped, see above. Start the server again.")


def _facts_of(run: Run, stream: PredictionStream) -> dict[str, Any]:
    """What clients are told of the run."""
    manifest = run.path / "manifest.json"
    return {
        "run": run.path.absolute().name, "run_id": Manifest.load(manifest).run_id if manifest.is_file() else "",
        "kind": stream.spec.kind, "classes": len(stream.spec.class_names),
        "eval_batch_size": stream.spec.eval_batch_size, "autotimm": autotimm.__version__,
    }  # fmt: skip


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, before the model is loaded: a wrong address is an error at once."""
    # getaddrinfo would take 80808 for 15272, the rest of a division by 2**16.
    require(0 <= port < 2**16, "port", "serve", "a whole number in [0, 2**16)", port, "0 takes a free one.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UsageError(
            f"autotimm serve cannot listen on {host}, port {port}: {error.strerror}. Give another --host or --port."
        ) from None
    with listener:
        yield listener


@contextmanager
def _stopping_quietly() -> Iterator[None]:
    """Keep uvicorn from raising the signal that stopped it again: a server that was told to stop has not failed."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _protocol(patience: float) -> type[H11Protocol]:
    """The protocol of uvicorn, which by itself waits for ever for a client that sends no whole request head."""

    class Protocol(H11Protocol):
        _due: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as in the base
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._due is not None:
                self._due.cancel()

        @property
        def _is_between_requests(self) -> bool:
            cycle: Any = self.cycle  # None at first
            return cycle is None or cycle.response_complete

        def _watch(self) -> None:
            if not self._is_between_requests and self._due is not None:
                self._due.cancel()
                self._due = None
            elif self._is_between_requests and self._due is None:
                self._due = self.loop.call_later(patience, self._give_up)

        def _give_up(self) -> None:
            self._due = None
            if self._is_between_requests and not self.transport.is_closing():
                self.transport.write(_SILENT)
                self.transport.close()

    return Protocol
