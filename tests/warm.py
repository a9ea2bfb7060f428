"""Programs in processes of their own that begin with all libraries imported.

To import torch, Lightning and timm takes five seconds, in processes that then work for half a second. One process, the
server, imports them once and forks for each program. Arguments, working folder, environment, streams, signals and exit
code are those of a new interpreter. It differs in two ways: `sys.modules` is full from the start, and variables that a
library reads when it is imported come too late. Where one of them matters, a test uses :mod:`subprocess`.
"""

import atexit
import gc
import json
import multiprocessing.process
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

_IMPORTED = ("autotimm.cli.main", "autotimm.report.page", "autotimm.runs.names_of_file", "autotimm.runs.run",
             "pycocotools.cocoeval")  # fmt: skip
_TIMEOUT = 300.0
Completed = subprocess.CompletedProcess[str]


class Program:
    """A running program, used like :class:`subprocess.Popen`; its output goes to files, and it leads a session."""

    def __init__(
        self, words: Sequence[object], cwd: Path | str | None = None, env: Mapping[str, str] | None = None,
        streams: Sequence[int | None] = (None, None, None),
    ):  # fmt: skip
        self.returncode: int | None = None
        self._output = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed by `communicate`)
        reading, writing = os.pipe()
        self._report = os.fdopen(reading)
        request = {"words": [*map(str, words)], "cwd": str(cwd or Path.cwd()), "env": dict(os.environ | (env or {}))}
        with open(os.devnull, "rb") as nothing:
            files = (nothing, *self._output)
            given = [file.fileno() if one is None else one for one, file in zip(streams, files, strict=True)]
            socket.send_fds(_server(), [json.dumps(request).encode() + b"\n"], [*given, writing])
        os.close(writing)
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            with self._report:
                self.returncode = int(self._report.readline())
        return self.returncode

    def wait(self, timeout: float = _TIMEOUT) -> int:
        if self.returncode is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a program", timeout)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float = _TIMEOUT) -> tuple[str, str]:
        """Wait for the end; return what was written to standard output and to standard error."""
        self.wait(timeout)
        written = []
        for file in self._output:
            with file:
                file.seek(0)
                written.append(file.read().decode())
        return written[0], written[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Process(Program):
    """A program of the interpreter that runs the test, started as by :class:`subprocess.Popen`."""

    def __init__(
        self, command: Sequence[str], *, stdin: int | None = None, stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | int | None = None, cwd: Path | str | None = None, env: Mapping[str, str] | None = None,
    ):  # fmt: skip
        interpreter, *words = command
        assert interpreter == sys.executable
        out = None if stdout is None else stdout.fileno()
        err = out if stderr == subprocess.STDOUT else stderr if stderr is None else cast(IO[bytes], stderr).fileno()
        reading, writing = os.pipe()
        self.stdin = os.fdopen(writing, "wb")
        super().__init__(words, cwd, env, (reading if stdin == subprocess.PIPE else None, out, err))
        os.close(reading)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdin.close()
        self.wait()
        for file in self._output:
            file.close()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Subprocess:
    """What parts of autotimm use of :mod:`subprocess` to start their processes; a test puts it in its place."""

    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
    Popen = Process

    @staticmethod
    def run(command: Sequence[str], *, check: bool = False, capture_output: bool = False, text: bool = False,
            **options: Any) -> Completed:  # fmt: skip
        with Process(command, **options) as process:
            out, err = process.communicate() if capture_output else ("", "")
        return Completed([*command], process.wait(), out, err)


def run(words: Sequence[object], cwd: Path | str | None = None, env: Mapping[str, str] | None = None,
        timeout: float = _TIMEOUT) -> Completed:  # fmt: skip
    """Run a program to its end, as :func:`subprocess.run` does.

    Args:
        words: What follows the name of the interpreter: ``-m autotimm fit photos``, ``-c CODE`` or a file.
        cwd: Its working folder.
        env: Environment variables beside those of the test.
        timeout: Seconds after which it is killed, with what it started.
    """
    program = Program(words, cwd, env)
    try:
        out, err = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    return Completed([*words], program.wait(), out, err)


def forgotten(*packages: str) -> str:
    """The first lines of a program that imports these packages anew, from another folder or with other variables."""
    return f"""import sys
for name in [name for name in sys.modules if name.partition(".")[0] in {packages}]:
    del sys.modules[name]
"""


@cache
def _server() -> socket.socket:
    """The connection to the server, which ends when that is closed."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, str(theirs.fileno())]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # what has threads cannot be forked
    server = subprocess.Popen(command, env=one_thread, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()

    def close() -> None:
        ours.shutdown(socket.SHUT_RDWR)  # closing is not enough: loading processes have been forked with a copy of it
        ours.close()
        server.wait()

    atexit.register(close)
    return ours


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns a request in the process that is to fulfil it, and None at the end."""
    for name in _IMPORTED:
        import_module(name)
    import_module("PIL.Image").init()  # or each program imports the plugins of 40 formats
    pages = import_module("autotimm.report.page_parts").templates_of("autotimm.report")
    for name in pages.list_templates(extensions=["html"]):
        pages.get_template(name)
    gc.collect()
    gc.freeze()  # or the first collection of each program goes through all modules
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    reports: dict[int, int] = {}
    while True:
        ready = select.select([connection, woken], [], [])[0]
        if woken in ready:
            woken.recv(1024)
            for pid in [*reports]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _tell(report := reports.pop(pid), os.waitstatus_to_exitcode(status))
                    os.close(report)
        if connection in ready:
            received, streams, _, _ = socket.recv_fds(connection, 65536, 4)
            if not received:
                return None
            while not received.endswith(b"\n"):
                received += connection.recv(65536)
            pid = os.fork()
            if pid == 0:
                return _become(json.loads(received), *streams)
            reports[pid] = streams.pop()
            for stream in streams:
                os.close(stream)


def _tell(report: int, number: int) -> None:
    os.write(report, f"{number}\n".encode())


def _become(request: dict[str, Any], given: int, out: int, err: int, report: int) -> dict[str, Any]:
    """Make a forked process what a new one would be, and say that it is there."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(given, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]  # where a spawned process looks for the main module
    import_module("numpy").random.seed()  # Python's own generator is seeded by the fork
    _tell(report, os.getpid())
    for descriptor in {given, out, err, report}:
        os.close(descriptor)
    return request


def _execute(words: list[str]) -> None:
    """Do what the interpreter does with its arguments."""
    kind, *rest = words
    libraries = sys.path[1:]  # the first is the folder of the server's own file
    if kind == "-m":
        here = [] if os.environ.get("PYTHONSAFEPATH") else [os.getcwd()]
        sys.path[:], sys.argv = [*here, *libraries], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[:], sys.argv = ["", *libraries], ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[:], sys.argv = [str(Path(kind).resolve().parent), *libraries], words
        runpy.run_path(kind, run_name="__main__")


def _run(words: list[str]) -> int:
    """Run a program as the interpreter does; return its exit code."""
    try:
        _execute(words)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        return 1
    return 0


if __name__ == "__main__":
    task = _serve(socket.socket(fileno=int(sys.argv[1])))
    if task:
        code = _run(task["words"])
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # to take apart a thousand modules takes a second
