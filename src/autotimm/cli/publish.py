"""``autotimm publish``: one archive for a reviewer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, TRUST, open_folder
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.byte_size import written_bytes
from autotimm.config.value_types import Flag, Path, Text
from autotimm.errors import UsageError, missing_extra, printable
from autotimm.runs.output_paths import require_new_file

__all__ = ["PUBLISH"]

_OWNER = "autotimm publish"


def run(argv: Sequence[str]) -> int:
    """List what the archive holds, then write it."""
    given = parse(PUBLISH, argv)
    if given is None:
        return 0
    if not all(find_spec(name) for name in ("rocrate", "cyclonedx")):
        raise missing_extra(_OWNER, "proof")
    out, dry = given.value("out"), given.value("dry_run")
    if out is None and not dry:
        raise UsageError(f"{_OWNER} needs --out, the file of the archive. To see what would be in it, give --dry-run.")
    if out is not None:
        require_new_file(out, "--out", _OWNER)
    with answering(given) as answer:
        published = open_folder(given)
        from autotimm.proof.archive import prepared_archive

        with prepared_archive(
            published, patch=not given.value("no_patch"), with_images=given.value("with_images"),
            data=given.value("data"), key=given.value("key"), license_id=given.value("license"),
            allow_names=given.value("allow_names"),
        ) as archive:  # fmt: skip
            for name, size in archive.sizes.items():
                print(f"{written_bytes(size):>10}  {printable(name)}")
            for notice in archive.notices:
                print(printable(notice))
            if dry:
                print("nothing was written: --out without --dry-run writes it")
            else:
                archive.write(out)
                print(f"archive: {printable(out)}")
            answer.update(archive=None if dry else out, files=archive.sizes, notices=archive.notices)
    return 0


PUBLISH = Verb(
    name="publish",
    summary="write one archive for a reviewer: record, weights, environment, descriptions, and no image",
    run=run,
    positionals=(FOLDER,),
    options={
        "out": Option(Path(metavar="FILE"), "the new archive, a ZIP file", "Options", none="none"),
        "dry_run": Option(Flag(), "list what would be in it, and write nothing", "Options"),
        "key": Option(Path(metavar="FILE"), "private key that seals the run in it", "Options", none="no seal"),
        "license": Option(Text(metavar="ID"), "license of model and record, as the hub writes it", "Options",
                          none="unknown"),
        "no_patch": Option(Flag(), "leave out the changes of tracked files of the project", "Options"),
        "with_images": Option(Flag(), "show images on the page", "Options"),
        "allow_names": Option(Flag(), "keep names of user, machine and folders that cannot be left out", "Options"),
        "data": DATA,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "out": None, "dry_run": False, "key": None, "license": None, "no_patch": False, "with_images": False,
        "allow_names": False, "data": None, "trust": False, "json": False,
    },
    examples=("autotimm publish runs/photos-001 --dry-run", "autotimm publish runs/photos-001 --out paper.zip"),
    notes=(
        "Nothing is sent. The README.md in the archive has the two commands of a reviewer: install, and verify.",
        "Names of user, machine and home folders, and secrets of the environment, are left out, or the archive is "
        "refused with the place where one is.",
    ),
)  # fmt: skip
