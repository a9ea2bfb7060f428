"""``autotimm seal``: bind every file of a run, and sign."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import FOLDER, open_folder
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Path
from autotimm.errors import missing_extra, printable

__all__ = ["SEAL"]


def run(argv: Sequence[str]) -> int:
    """Seal the run; the last line printed is the digest to publish."""
    given = parse(SEAL, argv)
    if given is None:
        return 0
    if given.value("key") is not None and find_spec("model_signing") is None:
        raise missing_extra("The option key of seal", "proof")
    with answering(given) as answer:
        seal = open_folder(given).seal(given.value("key"))
        signed = "digests alone, without a signature" if seal.key is None else f"signed with the key {seal.key}"
        print(f"sealed: {seal.files} files of {printable(seal.folder)}, {signed}")
        print(f"seal: {seal.digest}")
        answer.update(run=seal.folder, files=seal.files, seal=seal.digest, key=seal.key)
    return 0


SEAL = Verb(
    name="seal",
    summary="bind every file of a run, and sign, so that any later change is found",
    run=run,
    positionals=(FOLDER,),
    options={
        "key": Option(Path(metavar="FILE"), "private key that signs, as PEM (P-256, P-384 or P-521)", "Options",
                      none="no signature"),
        "json": JSON,
    },
    defaults={"key": None, "json": False},
    examples=(
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        "autotimm seal runs/photos-001 --key key.pem",
        "openssl ec -in key.pem -pubout -out key.pub",
        "autotimm verify runs/photos-001 --key key.pub",
    ),
    notes=(
        "Writes seal.json, and model.sig with a key: `model_signing verify key RUN --signature RUN/model.sig "
        "--public_key key.pub` checks it, too. Nothing of autotimm writes into a sealed run.",
        "Without a key anybody can seal a changed run again: publish the digest that is printed.",
    ),
    elsewhere=("sign",),
)  # fmt: skip
