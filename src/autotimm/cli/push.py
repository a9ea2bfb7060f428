"""``autotimm push``: the model of a run as a repository of the hub, with a model card made of its record."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, TRUST, open_run
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.byte_size import written_bytes
from autotimm.config.value_types import Flag, Text
from autotimm.errors import printable
from autotimm.export.hub_name import CARD, require_license, require_repository

__all__ = ["PUSH"]

_BREAK = "\n"


def run(argv: Sequence[str]) -> int:
    """Show what a push sends; send it with ``--upload``."""
    given = parse(PUSH, argv)
    if given is None:
        return 0
    repository, license_id = given.positionals["repository"], given.value("license")
    require_repository(repository, "autotimm push")
    require_license(license_id, "autotimm push")
    with answering(given) as answer:
        pushed_run, ckpt = open_run(given)
        push = pushed_run.push(
            repository, upload=given.value("upload"), private=given.value("private"), license=license_id, ckpt=ckpt
        )
        for name, size in push.files.items():
            print(f"{written_bytes(size):>10}  {printable(name)}")
        if push.url is None:
            print(f"{_BREAK}{CARD}:{_BREAK}{_BREAK}{printable(push.card, keep=_BREAK)}")
            print("nothing was sent: --upload sends it")
        else:
            print(f"sent: {printable(push.url)}")
        answer.update(repository=push.repository, sent=push.url is not None, url=push.url, files=push.files,
                      card=push.card)  # fmt: skip
    return 0


PUSH = Verb(
    name="push",
    summary="show the model with its card as a repository of the hub; --upload sends it",
    run=run,
    positionals=(RUN, Positional("repository", "OWNER/NAME", "the repository; it is made if it is not there")),
    options={
        "upload": Option(Flag(), "send it; without, the hub is not asked", "Options"),
        "private": Option(Flag(), "only its owner may see the repository", "Options"),
        "license": Option(Text(metavar="ID"), "license of the model, as the hub writes it", "Options", none="unknown"),
        "ckpt": CKPT,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={"upload": False, "private": False, "license": None, "ckpt": "best", "trust": False, "json": False},
    examples=(
        "autotimm push runs/photos-001 me/photos",
        "autotimm push runs/photos-001 me/photos --license apache-2.0 --private --upload",
        "autotimm fit other-photos --backbone hf-hub:me/photos",
    ),
    notes=(
        "It is the folder of `autotimm export --to timm`: a classifier, its classes, and a card with the results.",
        "The token is that of `hf auth login`, or HF_TOKEN. No image and no path of this machine is sent.",
        "Exit code 4: timm has no such model, the hub is not reachable, there is no token, or the hub refuses.",
    ),
    elsewhere=("upload",),
)  # fmt: skip
