"""Keys that sign seals and statements: elliptic curves in PEM files, as OpenSSL writes them."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autotimm.errors import UsageError, missing_extra, sentence

__all__ = ["fingerprint", "has_extra", "pem", "read_private", "read_public"]

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE = "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_MAKE_PUBLIC = "Make it with: openssl ec -in key.pem -pubout -out key.pub"


def read_private(key: Path, owner: str) -> Any:
    """A private key of ``cryptography``.

    Args:
        key: The file.
        owner: Who was given it, for an error.

    Raises:
        UsageError: If it cannot be read, is encrypted or of another kind, or the extra ``proof`` is not installed.
    """
    _require_extra()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    must = "a PEM file with an unencrypted private key of the curve P-256, P-384 or P-521"
    try:
        private = serialization.load_pem_private_key(_content(key, owner), None)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        raise UsageError(sentence("key", owner, must, str(key), _MAKE)) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in _CURVES:
        raise UsageError(sentence("key", owner, must, str(key), _MAKE))
    return private


def read_public(key: Path, owner: str) -> Any:
    """A public key of ``cryptography``, see :func:`read_private`.

    Raises:
        UsageError: If it cannot be read or is of another kind, or the extra ``proof`` is not installed.
    """
    _require_extra()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    must = "a PEM file with a public key of the curve P-256, P-384 or P-521"
    try:
        public = serialization.load_pem_public_key(_content(key, owner))
    except ValueError:
        raise UsageError(sentence("key", owner, must, str(key), _MAKE_PUBLIC)) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _CURVES:
        raise UsageError(sentence("key", owner, must, str(key), _MAKE_PUBLIC))
    return public


def _content(key: Path, owner: str) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError(f"The `key` of {owner} must be a file. {key} cannot be read: {error.strerror}.") from None


def pem(public: Any) -> str:
    """A public key as PEM, in the one form of OpenSSL."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def fingerprint(public: str) -> str:
    """The SHA-256 of a public key as PEM, as model-signing writes it into a signature."""
    return hashlib.sha256(public.encode()).hexdigest()


def has_extra() -> bool:
    """Whether the packages that sign and verify are installed."""
    return all(find_spec(name) for name in ("cryptography", "model_signing", "OpenSSL", "securesystemslib"))


def _require_extra() -> None:
    if not has_extra():
        raise missing_extra("A signature", "proof")
