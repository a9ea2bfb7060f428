"""``autotimm publish``: one archive for a reviewer, with everything that a verification needs but the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autotimm.data.table import Table
from autotimm.errors import ModelError, RunError, missing_extra, require
from autotimm.evidence import Evidence, evidence_path, write_evidence
from autotimm.export.hub_name import require_license
from autotimm.proof.checklist import checklist_text, readme_text
from autotimm.proof.crate import BOM, CRATE, bill_of_materials, crate_metadata
from autotimm.proof.lock_file import REQUIREMENTS, is_same_package, locked_versions, requirements_text, write_wheel
from autotimm.proof.plain_zip import write_zip
from autotimm.proof.privacy import (
    config_without_places,
    found_in,
    is_secret,
    manifest_without_names,
    private_words,
    texts_of,
)  # fmt: skip
from autotimm.records.atomic import link_or_copy, write_text
from autotimm.records.environment import code_patch, code_state
from autotimm.records.manifest import Manifest
from autotimm.records.readers import read_text
from autotimm.records.run_folder import FOLDS
from autotimm.records.run_seal import check_seal, write_seal
from autotimm.report.run_facts import RunFacts, read_run
from autotimm.report.written_page import REPORT
from autotimm.runs.output_paths import require_new_file
from autotimm.runs.run import Run

__all__ = ["Archive", "prepared_archive"]

_RUN = "run"
_PACKAGES = ("rocrate", "cyclonedx")
_FILES = (
    "ledger.jsonl", "files.csv", "splits.csv", "metrics.csv", "results.json", "model.safetensors",
    "initial.safetensors", "initial.ckpt", "commitment.json",
)  # fmt: skip
# What is left of evidence: no features and no maps or masks, which show what is in an image.
_EVIDENCE = {
    "classes": ("scores", "targets", "losses"),
    "boxes": ("sizes", "offsets", "boxes", "scores", "labels", "true_offsets", "true_boxes", "true_labels",
              "true_crowd", "true_area"),
    "pixels": ("sizes", "confusion", "intersections", "unions"),
}  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """An archive that can be written.

    Attributes:
        files: The files by their path in it.
        notices: What its maker and its readers must know, a sentence each.
    """

    files: dict[str, Path]
    notices: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes, sorted by path."""
        return {name: self.files[name].stat().st_size for name in sorted(self.files)}

    def write(self, out: str | Path) -> None:
        """Write it as a ZIP file. Equal runs, in equal environments, give equal bytes, unless they are signed.

        Raises:
            UsageError: If the file exists.
            RunError: If it cannot be written.
        """
        require_new_file(str(out), "out", "publish")
        try:
            write_zip(Path(out), self.files)
        except OSError as error:
            raise RunError(f"The archive {out} could not be written: {error.strerror}. Free some space.") from None


@contextmanager
def prepared_archive(
    run: Run, *, patch: bool = True, with_images: bool = False, data: str | Path | None = None,
    key: str | Path | None = None, license_id: str | None = None, allow_names: bool = False,
) -> Iterator[Archive]:  # fmt: skip
    """Collect what belongs into the archive of a run; nothing is written but in a temporary folder.

    Args:
        run: The run, finished.
        patch: Whether the changes of tracked files of the project belong to it.
        with_images: Whether the page shows images.
        data: Where the images are now, for the page.
        key: A private key that seals the run in the archive.
        license_id: The license of model and record, as the hub writes it; ``None`` if nobody said it.
        allow_names: Whether names of user, machine and folders that cannot be left out may stay. Secrets may not.

    Raises:
        UsageError: If an argument is wrong, or the extra ``proof`` is not installed.
        ModelError: If the run is not finished or not as it was sealed, or holds private names that cannot be left out.
    """
    if not all(find_spec(name) for name in _PACKAGES):
        raise missing_extra("An archive", "proof")
    require_license(license_id, "publish")
    require(data is None or with_images, "data", "publish", "left out without the images of the page", data,
            "Give `with_images` too.")  # fmt: skip
    manifest = Manifest.load(run.path / "manifest.json") if (run.path / "manifest.json").is_file() else None
    if manifest is None or manifest.results.get("status") != "finished":
        raise ModelError(f"The run {run.path} must be finished to be published. Resume it with `autotimm resume`.")
    if broken := check_seal(run.path).findings:
        raise ModelError(f"The run {run.path} must be what was sealed. {'; '.join(broken)}. Use an intact copy.")
    with TemporaryDirectory(prefix="autotimm-publish-") as scratch:
        root = Path(scratch, "archive")
        notices = list(_collect(run, manifest, root, run.data(data).tables if with_images else None, patch=patch))
        facts = _facts(root / _RUN, run.path)
        versions = locked_versions(manifest.environment.get("versions", {}))
        wheel = write_wheel(root / "wheels").relative_to(root).as_posix()
        python = str(manifest.environment.get("versions", {}).get("python", ""))
        write_text(root / REQUIREMENTS, requirements_text(versions, wheel, python))
        if key is not None:
            write_seal(root / _RUN, key)
        elif check_seal(run.path).sealed:
            notices.append("The run is sealed, and its copy without names is not: give a key to seal that.")
        _describe(root, facts, versions, license_id, sealed=key is not None, notices=notices)
        archive = Archive(_files(root), tuple(notices))
        words = private_words(manifest)
        _refuse_private(
            archive, {word: what for word, what in words.items() if is_secret(what) or not allow_names}, allow_names
        )
        yield archive


def _collect(
    run: Run, manifest: Manifest, root: Path, tables: dict[str, Table] | None, *, patch: bool
) -> Iterator[str]:
    """Copy the run without names of user, machine and folders, make its page, and yield what has to be said."""
    folder, copy = run.path, root / _RUN
    (copy / "checkpoints").mkdir(parents=True)
    names = [*_FILES, *(f"checkpoints/{path.name}" for path in sorted((folder / "checkpoints").glob("*.ckpt")))]
    for name in [*names, "checkpoints/sha256.txt"]:
        if (folder / name).is_file() and not (folder / name).is_symlink():
            link_or_copy((folder / name).resolve(), copy / name)
    write_text(copy / "config.yaml", config_without_places(read_text(folder / "config.yaml", "the options")))
    facts = read_run(folder)
    left_out = [evidence_path(Path(), split).as_posix() for split in facts.evidence]
    write_text(copy / "manifest.json", manifest_without_names(manifest, left_out).text())
    _write_page(folder, copy, root, tables)
    for evidence in facts.evidence.values():
        write_evidence(root, _reduced(evidence))
    if left_out:
        yield "Of the evidence, ids, scores and targets are here; a replay makes the rest of it again."
    yield from _code(root, manifest, patch=patch)
    if not is_same_package(manifest.environment.get("package")):
        yield "The code of autotimm in wheels/ is not the one that made the run: it was published with another version."
    weights = manifest.decisions.get("weights")
    if isinstance(weights, dict) and weights.get("source") == "file":
        yield (
            "The run began with a file of weights, which is not here. A verification needs it, where `pretrained` in "
            f"run/config.yaml says; its SHA-256 is {weights.get('sha256')}."
        )
    if FOLDS in facts.results:
        yield "The folds are runs of their own, and not here. Publish each of them to let others verify it."
    if "start" in manifest.inputs:
        yield "The run went on from another one, whose archive is needed to verify that one too."


def _write_page(folder: Path, copy: Path, root: Path, tables: dict[str, Table] | None) -> None:
    """Make the page from the copy, in which no place of this machine is named."""
    from autotimm.report import write_report

    write_report(copy, tables, root / REPORT, _facts(copy, folder), views=tables is not None)
    page = (root / REPORT).read_text(encoding="utf-8")
    write_text(root / REPORT, page.replace(f"{root}/", ""))


def _facts(copy: Path, folder: Path) -> RunFacts:
    """What the copy of a run says, with the evidence of the run, and what it claimed before anybody has verified it."""
    facts = read_run(copy)
    return replace(facts, evidence=read_run(folder).evidence, levels=facts.manifest.levels)


def _reduced(evidence: Evidence) -> Evidence:
    kept = _EVIDENCE["boxes" if evidence.kind == "instances" else evidence.kind]
    arrays: dict[str, Any] = {name: array for name, array in evidence.arrays.items() if name in kept}
    return replace(evidence, arrays=arrays)


def _code(root: Path, manifest: Manifest, *, patch: bool) -> Iterator[str]:
    """The commit of the project that the run was made in, and the changes of tracked files, if they are still there."""
    recorded = manifest.environment.get("git")
    if not isinstance(recorded, dict):
        return
    (root / "code").mkdir()
    write_text(root / "code" / "commit.txt", f"{recorded.get('commit')}\n")
    if not recorded.get("dirty"):
        return
    if not patch:
        yield f"The code had changes since the commit {recorded.get('commit')}, which are left out."
    elif code_state(Path.cwd()) != recorded or (changes := code_patch(Path.cwd())) is None:
        yield "The code had changes since its commit, and is another one here by now: they are left out."
    else:
        (root / "code" / "changes.diff").write_bytes(changes)
        yield "code/changes.diff has the changes of tracked files since the commit; new files are not in it."


def _describe(
    root: Path, facts: RunFacts, versions: dict[str, str], license_id: str | None, *, sealed: bool, notices: list[str]
) -> None:  # fmt: skip
    write_text(root / "checklist.md", checklist_text(facts))
    kind = next((evidence.kind for evidence in facts.evidence.values()), None)
    write_text(root / BOM, bill_of_materials(facts, versions, kind, facts.classes))
    names = [*_files(root), "README.md", CRATE]
    write_text(root / "README.md", readme_text(facts, names, sealed=sealed, notices=notices))
    write_text(root / CRATE, crate_metadata(facts, _files(root), license_id))


def _files(root: Path) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def _refuse_private(archive: Archive, words: dict[str, str], allow_names: bool) -> None:
    """Refuse an archive in which something private is left.

    Raises:
        ModelError: If there is.
    """
    places = []
    for name, path in archive.files.items():
        if name.endswith(".whl"):  # autotimm itself
            continue
        if found := found_in(texts_of(path), words):
            places.append(f"{' and '.join(found)} in {name}")
    if places:
        must = "hold a secret" if allow_names else "say who made it"
        cure = "." if allow_names else ", or allow names with --allow-names."
        raise ModelError(
            f"An archive must not {must}. There is {'; '.join(places[:10])}. Remove it (--no-patch leaves out the "
            f"changes of the code){cure}"
        )
