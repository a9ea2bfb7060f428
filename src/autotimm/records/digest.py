"""Canonical digests: equal content gives an equal digest, on every machine and in every container.

Digests are SHA-256 over names in sorted order, data types, shapes and raw bytes. The bytes of ``torch.save`` cannot be
used: they depend on the file's name. Nor can ``torch.hash_tensor``: it ignores the order of the elements.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["config_digest", "file_digest", "files_digest", "state_digest", "tensor_digest", "text_digest"]


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    # A view as bytes works for every data type, bfloat16 included, which NumPy does not know.
    # as_strided: a single element counts as contiguous with any stride, and a view as bytes needs a stride of 1.
    digest.update(tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data)


def tensor_digest(tensor: Tensor) -> str:
    """Digest one tensor by data type, shape and content; device and memory layout do not matter.

    Example:
        >>> a = torch.arange(6).reshape(2, 3)
        >>> tensor_digest(a) == tensor_digest(a.t().contiguous().t())
        True
        >>> tensor_digest(a) == tensor_digest(a.float())
        False
    """
    digest = hashlib.sha256()
    _update(digest, tensor)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Digest the UTF-8 bytes of a text, as :func:`file_digest` digests a file with them.

    Example:
        >>> text_digest("")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Digest a (nested) state: tensors by content, everything else as canonical JSON.

    The order of insertion does not matter.

    Example:
        >>> state_digest({"a": torch.ones(2), "b": 1}) == state_digest({"b": 1, "a": torch.ones(2)})
        True
    """
    digest = hashlib.sha256()

    def visit(name: str, value: Any) -> None:
        # Every part carries its length, so that no two states have the same encoding.
        digest.update(f"{len(name)}:{name}".encode("utf-8", "surrogatepass"))
        if isinstance(value, Tensor):
            _update(digest, value)
        elif isinstance(value, Mapping):
            digest.update(f"map{len(value)}:".encode())
            for child in sorted(value, key=str):
                visit(str(child), value[child])
        elif isinstance(value, (list, tuple)):
            digest.update(f"list{len(value)}:".encode())
            for index, child in enumerate(value):
                visit(str(index), child)
        else:
            leaf = _canonical(value)
            digest.update(b"json%d:" % len(leaf) + leaf)

    visit("", state)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Digest the bytes of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_digest(paths: Iterable[str | Path], root: str | Path) -> str:
    """Digest files by content and by path relative to ``root``, so that a moved folder keeps its digest."""
    root = Path(root)
    lines = sorted(f"{Path(path).relative_to(root).as_posix()}\0{file_digest(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def config_digest(config: Any) -> str:
    """Digest plain data; the order of keys does not matter.

    Raises:
        TypeError: If something in it is not plain data.

    Example:
        >>> config_digest({"a": 1, "b": [1.5]}) == config_digest({"b": [1.5], "a": 1})
        True
    """
    return hashlib.sha256(_canonical(config)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
