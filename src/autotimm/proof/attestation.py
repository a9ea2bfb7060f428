"""Statements of a verifier: what was replayed, where, and with which result, as a signed in-toto attestation.

The statement has the predicate `test result <https://in-toto.io/attestation/test-result/v0.1>`_, with the verdict in a
field of its own, and is signed in a DSSE envelope. Its subjects are the record of the run without its volatile part,
the ledger, the results and the weights, so that it also holds for a copy of the run that :mod:`autotimm.proof.archive`
has made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import autotimm
from autotimm.errors import DifferentError, IncompleteError, ModelError, printable
from autotimm.records.digest import file_digest
from autotimm.records.environment import environment, package_digest
from autotimm.records.manifest import Manifest
from autotimm.records.readers import read_json
from autotimm.records.signing_keys import fingerprint, pem, read_private, read_public
from autotimm.runs.run import Run
from autotimm.runs.verdict import Verdict

__all__ = ["CheckedStatement", "attest", "check_statement"]

_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
_RECORD = "manifest.json, without its volatile part"
_FILES = ("ledger.jsonl", "results.json", "model.safetensors", "checkpoints/best.ckpt")
_TEST = "autotimm verify"


@dataclass(frozen=True)
class CheckedStatement:
    """A statement whose signature is that of a key.

    Attributes:
        content: The statement, as plain data.
        key: The SHA-256 of the public key.
        other: The subjects that a run lacks or has in another form; empty if no run was compared.
    """

    content: Mapping[str, Any]
    key: str
    other: tuple[str, ...] = ()

    @property
    def verification(self) -> Mapping[str, Any]:
        """What was verified."""
        said = self.content["predicate"].get("verification", {})
        return said if isinstance(said, Mapping) else {}

    @property
    def exit_code(self) -> int:
        """0 if it says that the run is identical; 6 if less, and 5 if it differs or is another run."""
        result = self.content["predicate"].get("result")
        if self.other or result not in ("PASSED", "WARNED"):
            return DifferentError.exit_code
        return 0 if result == "PASSED" else IncompleteError.exit_code

    def __str__(self) -> str:
        said, subjects = self.verification, self.content["subject"]
        where = said.get("where") if isinstance(said.get("where"), Mapping) else {}
        hardware = where.get("hardware") if isinstance(where, Mapping) else {}
        machine = ", ".join(str(value) for value in hardware.values()) if isinstance(hardware, Mapping) else ""
        listed = said.get("not_checked")
        not_checked = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        lines = [
            f"signed with the key {self.key}",
            *(f"about {each.get('name')}: {each.get('digest', {}).get('sha256')}" for each in subjects),
            *(f"the run has another {name}, or none" for name in self.other),
            f"verified on {machine}" if machine else "",
            *(f"not checked: {text}" for text in not_checked),
            f"stated: {said.get('words') or self.content['predicate'].get('result')}",
        ]
        return "\n".join(printable(line) for line in lines if line)


def attest(run: Run, verdict: Verdict, key: str | Path, *, asked: Mapping[str, Any]) -> str:
    """The signed statement about a run that was verified, as the text of a file.

    Args:
        run: The run.
        verdict: The result, whatever it is.
        key: A PEM file with the verifier's private key.
        asked: The options of the verification.

    Raises:
        UsageError: If the key cannot be used, or the extra ``proof`` is not installed.
        ModelError: If the run has no record.
    """
    private = read_private(Path(key), "attest")
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # public, and not said to be

    manifest = Manifest.load(run.path / "manifest.json")
    subjects = [ResourceDescriptor(name=name, digest={"sha256": digest}).pb
                for name, digest in _subjects(run.path, manifest).items()]  # fmt: skip
    statement = Statement(subjects, _PREDICATE, _predicate(manifest, verdict, asked))
    statement.validate()
    envelope = Envelope(_json(statement).encode(), _PAYLOAD, {})
    envelope.sign(CryptoSigner(private))
    return json.dumps(envelope.to_dict(), indent=2, sort_keys=True) + "\n"


def _json(statement: Any) -> str:
    from google.protobuf import json_format

    return str(json_format.MessageToJson(statement.pb, indent=None, sort_keys=True))


def _subjects(folder: Path, manifest: Manifest) -> dict[str, str]:
    files = {name: file_digest(folder / name) for name in _FILES if (folder / name).is_file()}
    return {_RECORD: manifest.digest, **files}


def _predicate(manifest: Manifest, verdict: Verdict, asked: Mapping[str, Any]) -> dict[str, Any]:
    passed, different = verdict.identical and not verdict.partial, verdict.verdict == "different"
    result = "PASSED" if passed else "FAILED" if different else "WARNED"
    tests = {"PASSED": "passedTests", "FAILED": "failedTests", "WARNED": "warnedTests"}
    data = manifest.inputs.get("data", {}).get("digest")
    here = environment(torch.get_num_threads(), ["cpu"])
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]
    hardware = {name: here["hardware"].get(name) for name in ("cpu", "instructions", "machine", "system")}
    where = {
        "autotimm": autotimm.__version__, "package": package_digest(), "versions": here["versions"],
        "hardware": {name: value for name, value in hardware.items() if value} | {"devices": ", ".join(devices)},
    }  # fmt: skip
    said = {"run_id": manifest.run_id, "asked": dict(asked), "where": where, **verdict.as_dict()}
    configuration = [{"name": "the images of the run", "digest": {"sha256": data}}] if data else []
    predicate = {"result": result, "configuration": configuration, tests[result]: [_TEST], "verification": said}
    plain: dict[str, Any] = json.loads(json.dumps(predicate, default=str))
    return plain


def check_statement(file: str | Path, key: str | Path, run: str | Path | None = None) -> CheckedStatement:
    """Read a statement, and check whose it is.

    Args:
        file: The envelope.
        key: A PEM file with the verifier's public key.
        run: The folder of a run that it must be about; ``None`` to compare none.

    Raises:
        UsageError: If the key cannot be used, or the extra ``proof`` is not installed.
        ModelError: If the file is no statement, or the run has no record.
        DifferentError: If it was not signed with the key, or was changed since.
    """
    public = read_public(Path(key), "attest")
    from in_toto_attestation.v1.statement import Statement
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # public, and not said to be

    damaged = f"The file {file} must be a signed statement about a run. It is something else. Use an intact copy."
    try:
        envelope = Envelope.from_dict(read_json(Path(file), "the statement"))
        known = SSlibKey.from_crypto(public)
        # The id is a hint for those who have many keys. Here there is one, whatever the file says.
        envelope.signatures = {known.keyid: next(iter(envelope.signatures.values()))}
        envelope.signatures[known.keyid].keyid = known.keyid
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        raise ModelError(damaged) from None
    try:
        envelope.verify([known], 1)
    except VerificationError:
        raise DifferentError(
            f"The statement {file} must be signed with the key {key}. It is not, or it was changed since."
        ) from None
    try:
        content = json.loads(envelope.payload)
        wrong = envelope.payload_type != _PAYLOAD or content["predicateType"] != _PREDICATE
        if wrong or content["_type"] != _STATEMENT:
            raise ValueError("another kind of statement")
        Statement.copy_from_pb(_parsed(envelope.payload)).validate()
    except (KeyError, TypeError, ValueError):
        raise ModelError(damaged) from None
    stated = {each.get("name"): each.get("digest", {}).get("sha256") for each in content["subject"]}
    if run is None:
        return CheckedStatement(content, fingerprint(pem(public)))
    found = _subjects(Path(run), Manifest.load(Path(run) / "manifest.json"))
    # All that were stated, of which earlier versions have stated less; one that is missing is another one, too.
    other = tuple(str(name) for name in (_RECORD, *stated) if stated.get(name) != found.get(name))
    return CheckedStatement(content, fingerprint(pem(public)), tuple(dict.fromkeys(other)))


def _parsed(payload: bytes) -> Any:
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement_pb2 import Statement

    try:
        return json_format.Parse(payload, Statement(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None
