"""The seal of a run: the SHA-256 of every file in its folder, and with a key an OpenSSF model signature over them.

``seal.json`` lists the files, and holds the public half of the key that signed. ``model.sig`` is a bundle of the
package model-signing: it covers every file, ``seal.json`` included, and that package verifies it unchanged.
A seal without a signature protects nobody who does not know its digest: whoever changes a file can write another one.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autotimm.errors import ModelError, UsageError, join_names
from autotimm.records.atomic import SEAL, SIGNATURE, refuse_sealed, sealed_folder, sweep, write_text
from autotimm.records.digest import file_digest, text_digest
from autotimm.records.run_folder import RunFolder
from autotimm.records.signing_keys import fingerprint, has_extra, pem, read_private, read_public

__all__ = ["Seal", "SealCheck", "check_seal", "write_seal"]

_VERSION = 1
_LOCK = ".lock"
# The command line of model-signing leaves these out unless it is told not to, and would then miss what was signed.
_OF_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_BUNDLE = {
    "mediaType": str,
    "verificationMaterial": {"publicKey": {"hint": str}, "tlogEntries": list},
    "dsseEnvelope": {"payload": bytes, "payloadType": str, "signatures": [{"sig": bytes, "keyid": ""}]},
}
"""The fields of a bundle; ``bytes`` stands for canonical Base64. Any other form is refused, though it may be valid."""


@dataclass(frozen=True)
class Seal:
    """A seal that was written.

    Attributes:
        folder: The run.
        digest: The SHA-256 of ``seal.json``, to be published or kept.
        files: Number of files that it binds.
        key: The SHA-256 of the public key that signed; ``None`` without a signature.
    """

    folder: Path
    digest: str
    files: int
    key: str | None


@dataclass(frozen=True)
class SealCheck:
    """What is known of the seal of a run.

    Attributes:
        sealed: Whether there is one.
        findings: What is not as it was sealed, a line each.
        notes: What was checked, a line each.
    """

    sealed: bool
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def write_seal(folder: str | Path, key: str | Path | None = None) -> Seal:
    """Seal a run: bind every file of its folder. Nothing of autotimm writes into it from then on.

    Args:
        folder: The run folder.
        key: A PEM file with a private key of an elliptic curve, which signs; ``None`` for digests alone.

    Raises:
        UsageError: If the run is sealed, the key cannot be used, or the extra ``proof`` is not installed.
        ModelError: If the folder holds links, or names that a seal cannot bind.
        RunError: If another process writes to it, or nobody can.
    """
    folder = Path(folder)
    refuse_sealed(folder, "Remove seal.json and model.sig to seal it anew.")
    public = None if key is None else _public_half(Path(key), folder)
    place = RunFolder(folder, folder.parent)
    with place.locked(), place.writing():
        for inner in (folder, folder / "checkpoints", folder / "evidence"):
            if inner.is_dir():
                sweep(inner)
        text = _text(_digests(folder, strict=public is not None), public)
        with _removed_on_error(folder):
            write_text(folder / SEAL, text)
            # Not bound, and not needed any more: every writer looks for the seal.
            (folder / _LOCK).unlink(missing_ok=True)
            if key is not None:
                _sign(folder, Path(key))
    files = len(json.loads(text)["files"])
    return Seal(folder, text_digest(text), files, None if public is None else fingerprint(public))


def check_seal(folder: str | Path, key: str | Path | None = None) -> SealCheck:
    """Compare a run with its seal, and its signature with a public key.

    Args:
        folder: The run folder.
        key: A PEM file with the public key of whom the seal must be; ``None`` to check what is there.

    Raises:
        UsageError: If the key cannot be used, or the extra ``proof`` is not installed and a key is given.
    """
    folder = Path(folder)
    given = None if key is None else pem(read_public(Path(key), "verify"))
    if sealed_folder(folder) != folder.absolute():
        return SealCheck(False)
    path = folder / SEAL
    try:
        text = path.read_text(encoding="utf-8")
        seal = _read(text)
    except (OSError, ValueError, RecursionError):
        return SealCheck(True, (f"{SEAL} {'has changed' if path.exists() else 'is missing'}",))
    findings, public = [*_compared(folder, seal["files"])], seal["public_key"]
    notes = [f"sealed: {len(seal['files'])} files have the digests of {SEAL}, whose own is {text_digest(text)}"]
    if public is None:
        if os.path.lexists(folder / SIGNATURE):
            findings.append(f"{SIGNATURE} was added")
        if given is not None:
            findings.append("it was sealed without a signature")
        notes.append("sealed: without a signature; compare that digest with the one that was published")
    else:
        findings += _signature_findings(folder, public)
        if given is not None and given != public:
            findings.append(f"it was signed with another key, {fingerprint(public)[:16]}")
        who = "whose key that is was not checked: give it with --key" if given is None else "the key that was given"
        read = "signed" if has_extra() else "it says that it was signed (to check that: pip install 'autotimm[proof]')"
        notes.append(f"sealed: {read} with the key {fingerprint(public)[:16]}; {who}")
    return SealCheck(True, tuple(findings), () if findings else tuple(notes))


# Files


def _digests(folder: Path, *, strict: bool) -> dict[str, str]:
    """The SHA-256 of each file, by its path in the folder.

    Args:
        folder: The run.
        strict: Whether model-signing must be able to bind them, too.
    """
    digests = {}
    for name, kind in _entries(folder):
        if name == _LOCK:
            continue
        if kind != "file":
            raise ModelError(f"The run {folder} must hold its files itself. {name} is {kind}. Put a file in its place.")
        if not name.isprintable() or (strict and name.partition("/")[0] in _OF_GIT):
            raise ModelError(f"A seal cannot bind {name!r} of the run {folder}. Rename or move it.")
        digests[name] = file_digest(folder / name)
    return digests


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Everything in a folder but for folders and the seal: its path, and ``file`` or what else it is."""
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            mode = path.lstat().st_mode
            inside = path.relative_to(folder).as_posix()
            if stat.S_ISLNK(mode):
                yield inside, "a link"
            elif not stat.S_ISDIR(mode) and inside not in (SEAL, SIGNATURE):
                yield inside, "file" if stat.S_ISREG(mode) else "a pipe or a device"


def _compared(folder: Path, recorded: Mapping[str, str]) -> Iterator[str]:
    entries = dict(_entries(folder))
    changed = [name for name, digest in recorded.items() if entries.get(name) == "file"
               and _readable_digest(folder / name) != digest]  # fmt: skip
    missing = [name for name in recorded if name not in entries]
    others = [name for name in entries if name not in recorded]
    links = [name for name, kind in entries.items() if kind != "file" and name in recorded]
    for names, what in ((changed, "changed"), (missing, "removed"), (others, "added"), (links, "replaced by a link")):
        if names:
            yield f"{join_names(names)} {'was' if len(names) == 1 else 'were'} {what}"


def _readable_digest(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def _text(files: Mapping[str, str], public: str | None) -> str:
    content = {"seal": _VERSION, "files": dict(files), "public_key": public}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _read(text: str) -> dict[str, Any]:
    """The content of a seal, in the one form in which it is written.

    Raises:
        ValueError: If it has another form.
    """
    content = json.loads(text)
    files = content.get("files") if isinstance(content, dict) else None
    public = content.get("public_key", 0) if isinstance(content, dict) else 0
    if not (isinstance(files, dict) and all(isinstance(value, str) for value in files.values())):
        raise ValueError("it lists no files")
    if not ((public is None or isinstance(public, str)) and text == _text(files, public)):
        raise ValueError("it is written in another form")
    return dict(content)


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Leave no half of a seal."""
    try:
        yield
    except BaseException:
        for name in (SEAL, SIGNATURE):
            (folder / name).unlink(missing_ok=True)
        raise


# Signatures


def _public_half(key: Path, folder: Path) -> str:
    if key.absolute().resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"The `key` of seal must lie outside of the run. {key} would be published with it. Move it.")
    return pem(read_private(key, "seal").public_key())


def _sign(folder: Path, key: Path) -> None:
    from model_signing import hashing, signing

    bound = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    signer = signing.Config().set_hashing_config(bound).use_elliptic_key_signer(private_key=key)
    signer.sign(folder.resolve(), folder / SIGNATURE)  # resolved: a signature holds the folder's name


def _signature_findings(folder: Path, public: str) -> Iterator[str]:
    """What is wrong with the signature of a seal, by the public key that the seal holds."""
    path = folder / SIGNATURE
    if not path.is_file():
        yield f"{SIGNATURE} was removed"
        return
    if path.is_symlink() or not _is_canonical(path):
        yield f"{SIGNATURE} has changed"
        return
    if not has_extra():  # the digests are compared all the same
        return
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    with TemporaryDirectory(prefix="autotimm-key-") as scratch:
        file = Path(scratch, "key.pub")
        file.write_text(public, encoding="ascii", errors="replace")
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=file).verify(folder.resolve(), path)
        except InvalidSignature:
            yield f"{SIGNATURE} is not a signature of the key in {SEAL}"
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # of a file that somebody made up
            yield f"{SIGNATURE} does not fit the files: {str(error)[:200]}"


def _is_canonical(path: Path) -> bool:
    """Whether a bundle is written in the form in which model-signing writes it."""
    with suppress(OSError, ValueError, RecursionError):
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        return _fits(content, _BUNDLE) and text == json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return False


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        known = isinstance(value, dict) and [*value] == [*shape]
        return known and all(_fits(value[name], shape[name]) for name in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and len(value) == 1 and _fits(value[0], shape[0])
    if shape is bytes:
        with suppress(ValueError, binascii.Error, TypeError):
            return bool(base64.b64encode(base64.b64decode(value, validate=True)).decode() == value)
        return False
    if shape is list:
        return bool(value == [])
    if shape == "":
        return bool(value == "")
    return isinstance(value, str)
