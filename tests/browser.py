"""Pages opened in headless Chromium, shared by the tests of the site and of reports."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")


class Handler(SimpleHTTPRequestHandler):
    """Forbids the browser to load from other hosts, and notes what is not there."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data:")
        super().end_headers()

    def send_error(self, code: int, *arguments: object) -> None:
        self.server.missing.append(self.path)
        super().send_error(code, *arguments)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """Serve a folder on the loopback interface; `missing` lists what was asked for in vain."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.missing = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def visit(folder: Path, page: str, profile: Path) -> tuple[str, list[str]]:
    """Open a page in Chromium: the page after its scripts have run, and what went wrong meanwhile.

    The log does not tell errors on the console from remarks; those of the theme begin with its name. It leaves out what
    the server does not have, so that the server says that.
    """
    with serving(folder) as server:
        shown, console = open_address(f"http://127.0.0.1:{server.server_port}/{page}", profile)
        missing = list(server.missing)
    return shown, [line for line in console if not line.startswith('"[PST]: ')] + missing


def open_address(url: str, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open an address of this machine in Chromium: the page after its scripts have run, and its console."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += ["--virtual-time-budget=20000", *options, "--dump-dom", url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    return run.stdout, re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", run.stderr)
