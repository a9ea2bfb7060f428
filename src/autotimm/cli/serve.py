"""``autotimm serve``: predictions of a run over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from autotimm.cli.json_output import JSON, json_text
from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, THRESHOLD, TRUST, open_run
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Number, Path, Whole
from autotimm.errors import missing_extra

__all__ = ["SERVE"]

_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_DEFAULTS = {"max_bytes": 20 * 2**20, "rate": 100.0}


def run(argv: Sequence[str]) -> int:
    """Serve until the process is told to stop; prints the address once clients can connect."""
    given = parse(SERVE, argv)
    if given is None:
        return 0
    if not all(find_spec(name) for name in _PACKAGES):
        raise missing_extra("autotimm serve", "serve")
    host, port, threshold = given.value("host"), given.value("port"), given.value("threshold")
    most_pixels, limits = given.value("max_pixels"), {name: given.value(name) for name in _DEFAULTS}
    served, ckpt = open_run(given)
    from PIL import Image

    from autotimm.serving.http_server import serve
    from autotimm.serving.request_limits import Limits

    if most_pixels is not None:
        Image.MAX_IMAGE_PIXELS = most_pixels

    def started(url: str) -> None:
        if given.value("json"):
            print(json_text({"url": url, "run": served.path}), flush=True)
        else:
            print(f"serving: {url}", flush=True)

    serve(served, host=host, port=port, ckpt=ckpt, threshold=threshold, limits=Limits(**limits), started=started)
    print("stopped", file=sys.stderr)
    return 0


SERVE = Verb(
    name="serve",
    summary="predict over HTTP, with the bits of predict, and on a page where one drops images",
    run=run,
    positionals=(RUN,),
    options={
        "host": Option(Path(metavar="ADDRESS"), "address to listen on; 0.0.0.0 is every machine's to reach", "Options"),
        "port": Option(Whole(0, bits=16), "port to listen on; 0 takes a free one", "Options"),
        "ckpt": CKPT,
        "threshold": THRESHOLD,
        "max_bytes": Option(Whole(1), "bytes of the largest request", "Options"),
        "max_pixels": Option(Whole(1), "pixels of the largest image", "Options", none="Pillow's"),
        "rate": Option(Number(0, low_open=True), "requests per second of one address", "Options"),
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "host": "127.0.0.1", "port": 8000, "ckpt": "best", "threshold": None, **_DEFAULTS, "max_pixels": None,
        "trust": False, "json": False,
    },
    examples=(
        "autotimm serve runs/photos-001",
        "curl -F image=@photo.jpg http://127.0.0.1:8000/predict",
        "autotimm serve runs/photos-001 --port 0 --json",
    ),
    notes=(
        "POST an image to /predict, or several as a form; add ?format=csv for the rows of autotimm predict.",
        "There are /health, /metrics for Prometheus, and a page on /. Ctrl-C or SIGTERM ends it with exit code 0.",
        "There is no password: whoever reaches the address can ask.",
    ),
    elsewhere=("api", "server", "host"),
)  # fmt: skip
