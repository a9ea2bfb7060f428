"""``autotimm attest``: verify a run and sign the result, or check such a statement."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.run_args import DATA, TRUST, WORKERS, open_folder, print_once
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import Option
from autotimm.config.value_types import Path, Whole
from autotimm.errors import UsageError, printable
from autotimm.runs.output_paths import require_new_file

__all__ = ["ATTEST"]

_OWNER = "autotimm attest"
_OF_MAKING = ("out", "data", "steps", "workers", "trust")


def run(argv: Sequence[str]) -> int:
    """Verify and sign; or check, with ``--check``."""
    given = parse(ATTEST, argv)
    if given is None:
        return 0
    if given.value("key") is None:
        raise UsageError(f"{_OWNER} needs --key: the private key of the verifier, or the public one with --check.")
    return _check(given) if given.value("check") is not None else _attest(given)


def _attest(given: Given) -> int:
    if given.positionals["run"] is None or given.value("out") is None:
        raise UsageError(f"{_OWNER} needs RUN and --out, the file of the statement. To read one, give --check.")
    out = given.value("out")
    require_new_file(out, "--out", _OWNER)
    with loading_torch():
        from autotimm.proof.attestation import attest
        from autotimm.records.atomic import write_text
        from autotimm.records.signing_keys import read_private
    from pathlib import Path as File

    read_private(File(given.value("key")), "attest")  # before a replay that may take hours
    with answering(given) as answer:
        verified = open_folder(given)
        asked = {name: given.value(name) for name in ("steps", "workers")}
        verdict = verified.verify(data=given.value("data"), **asked)
        print_once(verdict)
        write_text(File(out), attest(verified, verdict, given.value("key"), asked=asked))
        print(f"statement: {printable(out)}")
        answer.update(statement=out, **verdict.as_dict())
    return verdict.exit_code


def _check(given: Given) -> int:
    for name in _OF_MAKING:
        if name in given.options:
            raise UsageError(f"The `{name}` of {_OWNER} has no effect with `check`. Leave it out.")
    with answering(given) as answer:
        with loading_torch():
            from autotimm.proof.attestation import check_statement
        statement = check_statement(given.value("check"), given.value("key"), given.positionals["run"])
        print(statement)
        answer.update(key=statement.key, other=statement.other, statement=statement.content)
    return statement.exit_code


ATTEST = Verb(
    name="attest",
    summary="verify a run and sign the result, or check what somebody else has signed",
    run=run,
    positionals=(Positional("run", "RUN", "a run folder; with --check the one that it must be about", required=False),),
    options={
        "key": Option(Path(metavar="FILE"), "private key that signs, or with --check the public key, as PEM", "Options",
                      none="none"),
        "out": Option(Path(metavar="FILE"), "new file of the statement", "Options", none="none"),
        "check": Option(Path(metavar="FILE"), "read a statement, and check its signature", "Options", none="none"),
        "steps": Option(Whole(1), "number of optimizer steps to compare", "Options", none="all"),
        "data": DATA,
        "workers": WORKERS,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "key": None, "out": None, "check": None, "steps": None, "data": None, "workers": None, "trust": False,
        "json": False,
    },
    examples=(
        "autotimm attest runs/photos-001 --key key.pem --out photos.attestation.json",
        "autotimm attest runs/photos-001 --check photos.attestation.json --key key.pub",
    ),
    notes=(
        "The statement is an in-toto attestation in a DSSE envelope, with the verdict, the machine and the versions.",
        "With --check the exit code is 0 if it is authentic and says identical, 5 if the signature, the run or the "
        "verdict differs, 6 if it says less.",
    ),
)  # fmt: skip
