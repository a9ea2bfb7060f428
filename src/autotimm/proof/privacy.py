"""What must not leave with an archive: names of user and machine, places in home folders, and secrets.

Files of a run that hold them in places of no digest are written anew without them. Whatever is left is found by looking
through the bytes of every file, and refused: an id in the list of samples, for example, cannot be changed.
"""

from __future__ import annotations

import os
import pickletools
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autotimm.config import write_scalar
from autotimm.config.record import without_folders
from autotimm.records.environment import volatile
from autotimm.records.manifest import Manifest

__all__ = [
    "LEFT_OUT", "config_without_places", "found_in", "is_secret", "manifest_without_names", "private_words", "texts_of",
]  # fmt: skip

LEFT_OUT = "left_out"
"""The entry of a manifest's ``volatile`` with the files of the run that an archive lacks."""

_KEPT = ("started", "ended", "resumes", "compute")  # of the volatile part of a manifest
_PLACES = {
    "path", "pretrained", "image_dir", "train_csv", "val_csv", "test_csv", "out", "data_dir", "root", "run_dir",
    "default_root_dir",
}  # fmt: skip
_LINE = re.compile(r"(?P<name>\s*[\w.]+): (?P<value>.*?)(?P<comment> *  # .*)?$")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|ACCESS_?KEY", re.IGNORECASE)
_INDEX = re.compile(r"INDEX_URL|INDEX$|INDEX_|PROXY", re.IGNORECASE)
_COMMON = {"root", "user", "admin", "ubuntu", "runner", "nobody", "jovyan", "localhost", "docker", "vm"}
_LEAST = 8  # characters of a secret
_ENTITIES = {"&": (b"&amp;",), "<": (b"&lt;",), ">": (b"&gt;",), '"': (b"&quot;",), "'": (b"&apos;",)}


def manifest_without_names(manifest: Manifest, left_out: Iterable[str]) -> Manifest:
    """A manifest without names of machine, user and folders; they are in its volatile part, and so in no digest."""
    kept: dict[str, Any] = {name: value for name, value in manifest.volatile.items() if name in _KEPT}
    if names := sorted(left_out):
        kept[LEFT_OUT] = names
    return replace(manifest, volatile=kept)


def config_without_places(text: str) -> str:
    r"""The text of a ``config.yaml`` with the last parts of places, whose content is recorded elsewhere.

    Example:
        >>> config_without_places("path: /home/me/photos  # file /home/me/a.yaml")
        'path: photos  # file a.yaml\n'
    """
    return "".join(f"{_line(line)}\n" for line in text.splitlines())


def _line(line: str) -> str:
    if (found := _LINE.fullmatch(line)) is None:
        return line
    value, comment = found["value"], found["comment"] or ""
    if found["name"].strip() in _PLACES and re.match(r"""['"]?(/|~|\.\.|[A-Za-z]:\\)""", value):
        given = _scalar(value)
        value = write_scalar(re.split(r"[/\\]", given.rstrip("/\\"))[-1] or "data")
    head, hash_, source = comment.partition("# ")
    return f"{found['name']}: {value}{head}{hash_}{without_folders(source)}"


def _scalar(text: str) -> str:
    """The text of a value as YAML writes it."""
    return text[1:-1].replace("''", "'") if text[:1] == "'" else text.strip('"')


def private_words(manifest: Manifest, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """What must not be in an archive, with what it is.

    Args:
        manifest: The run's manifest, which names machine, user and folder of whoever made it.
        variables: The environment, by default that of this process: its secrets, and those in addresses of indexes.
    """
    variables = os.environ if variables is None else variables
    words: dict[str, str] = {}
    now = volatile()
    for name, what in (("host", "the name of the machine"), ("user", "the name of the user")):
        for said in (now.get(name), manifest.volatile.get(name)):
            if isinstance(said, str) and len(said) > 2 and said.lower() not in _COMMON:
                words[said] = what
    folder = manifest.volatile.get("folder")
    above = [*Path(folder).parents] if isinstance(folder, str) else []
    # The folder that the run was in, and the home folder of whoever made it.
    parents = [*map(str, above[:1]), *(str(place) for place in above if place.name == manifest.volatile.get("user"))]
    for place in (str(Path.home()), *parents):
        if place.count("/") > 1:  # /root and /content say nothing of anybody
            words[place] = "a folder of this machine"
    for name, value in variables.items():
        if _SECRET.search(name) and len(value) >= _LEAST:
            words[value] = f"the variable {name}"
        elif _INDEX.search(name):
            for address in value.split():
                secret = urlsplit(address).password or urlsplit(address).username if "://" in address else None
                if secret and len(secret) > 2:
                    kind = "the variable" if len(secret) >= _LEAST else "a name or password in the variable"
                    words[secret] = f"{kind} {name}"
    return words


def is_secret(what: str) -> bool:
    """Whether a private word is a secret rather than a name: no consent lets it leave."""
    return what.startswith("the variable")


def found_in(content: bytes, words: Mapping[str, str]) -> list[str]:
    """Which private words some bytes hold, each as what it is; names count as whole words only.

    A word is also found as JSON, HTML, an address or git writes it, and with its accents as marks of their own.
    """
    found = []
    for word, what in words.items():
        if max(re.findall("[A-Za-z0-9]+", word), key=len, default="").encode() not in content:
            continue  # the part that is written one way only
        needle = _written(word)
        # Where a word ends, so that neither `bob` is found in `bobsled` nor /data/bob in /data/bobsled.
        ends = rb"(?![A-Za-z0-9])"
        if what.startswith("the name"):
            needle = rb"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=%[0-9A-Fa-f]{2}))" + needle + ends
        elif not is_secret(what):
            needle += ends
        if re.search(needle, content):
            found.append(what)
    return list(dict.fromkeys(found))


def _written(word: str) -> bytes:
    """A pattern of the ways in which a text may be written."""
    forms = dict.fromkeys((word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)))
    return b"(?:" + b"|".join(b"".join(map(_written_letter, form)) for form in forms) + b")"


def _written_letter(letter: str) -> bytes:
    raw = letter.encode("utf-8", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "surrogatepass")
    if raw.isalnum():
        return raw
    units = letter.encode("utf-16-be", "surrogatepass")
    ways = [
        re.escape(raw),
        b"".join(rb"\\+u%02x%02x" % (high, low) for high, low in zip(units[::2], units[1::2], strict=True)),  # JSON
        b"".join(rb"\\+x%02x" % byte for byte in raw),
        b"".join(rb"\\+%03o" % byte for byte in raw),  # git
        b"".join(b"%%%02x" % byte for byte in raw),  # an address
        b"&#0*%d;" % ord(letter), b"&#x0*%x;" % ord(letter), *_ENTITIES.get(letter, ()),  # HTML
        rb"\\+" + re.escape(raw) if letter in "\\\"'/" else re.escape(raw),
    ]  # fmt: skip
    return b"(?i:" + b"|".join(dict.fromkeys(ways)) + b")"


def texts_of(path: Path) -> bytes:
    """The part of a file that is text: of tensors their names, of a checkpoint the texts in it.

    The bytes of millions of weights hold every name of three letters by chance, and in a checkpoint no space separates
    a text from what follows. What is in neither form is searched as it is.
    """
    with suppress(OSError, ValueError, zipfile.BadZipFile):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                return file.read(int.from_bytes(file.read(8), "little"))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                read = [archive.read(name) for name in names if name.endswith(".pkl")]
            texts = [each for content in read for _, each, _ in pickletools.genops(content)]  # nothing is executed
            encoded = (each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each for each in texts)
            return b"\n".join([*map(str.encode, names), *(each for each in encoded if isinstance(each, bytes))])
    return path.read_bytes()
