"""Numbers of bytes as people write them, such as ``20GB``; units are powers of 1000, as those of disks."""

from __future__ import annotations

import re

__all__ = ["BYTES_MUST", "exact_bytes", "read_bytes", "written_bytes"]

BYTES_MUST = "a number of bytes, such as 20GB"
"""What a number of bytes must be, as it stands in an error sentence."""

_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)\s*([TGMk]?B)?", re.ASCII | re.IGNORECASE)
_BY_LETTER = {unit.upper(): factor for unit, factor in _UNITS.items()}


def read_bytes(size: object) -> int:
    """Convert a number of bytes that was given as such, or as text with a unit: B, kB, MB, GB or TB.

    Raises:
        ValueError: If it is less than a byte, or more than any disk has.
        TypeError: If it is neither a whole number nor text.

    Example:
        >>> read_bytes("1.5GB"), read_bytes("200 mb"), read_bytes(4096)
        (1500000000, 200000000, 4096)
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError
    found = _SIZE.fullmatch(str(size).strip())
    if found is None:
        raise ValueError
    number, factor = found[1], _BY_LETTER[(found[2] or "B").upper()]
    value = int(number) * factor if number.isdecimal() else round(float(number) * factor)
    if not 1 <= value < 2**63:
        raise ValueError
    return value


def exact_bytes(size: int) -> str:
    """A number of bytes as :func:`read_bytes` reads it back, in the largest unit that divides it.

    Example:
        >>> exact_bytes(20 * 10**9), exact_bytes(4096)
        ('20GB', '4096B')
    """
    unit, factor = next((unit, factor) for unit, factor in _UNITS.items() if size % factor == 0)
    return f"{size // factor}{unit}"


def written_bytes(size: float) -> str:
    """A number of bytes for people, with at least two digits.

    Example:
        >>> written_bytes(20 * 10**9), written_bytes(1_540_000), written_bytes(12)
        ('20 GB', '1.5 MB', '12 B')
    """
    unit, factor = next(((unit, factor) for unit, factor in _UNITS.items() if size >= factor), ("B", 1))
    value = size / factor
    return f"{value:.1f} {unit}" if value < 10 and value != round(value) else f"{value:.0f} {unit}"
