"""Notices about something that is wrong with the data, beside those that only say what was done."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Doubt"]

_CURE = "Correct them at their source, or accept what is done about them."


class Doubt(str):
    """A notice about something wrong with the data, of which :func:`autotimm.inspect_data` makes a warning.

    Args:
        text: The sentence.
        names: What it is about, such as files: all of them; the sentence names the first few.
        check: What kind of fault it is, in one word.
        total: How many cases there are; by default as many as names.
        cure: What to do, as a sentence.

    Example:
        >>> doubt = Doubt("2 boxes without area in the image, left out: a.jpg, b.jpg.", ["a.jpg", "b.jpg"])
        >>> doubt.partition(",")[0], doubt.names, doubt.total
        ('2 boxes without area in the image', ('a.jpg', 'b.jpg'), 2)
    """

    names: tuple[str, ...]
    check: str
    total: int
    cure: str

    def __new__(
        cls, text: str, names: Sequence[str] = (), *, check: str = "annotations", total: int = 0, cure: str = _CURE
    ) -> Doubt:
        """Make a notice."""
        doubt = super().__new__(cls, text)
        doubt.names, doubt.check, doubt.total, doubt.cure = tuple(names), check, total or len(names), cure
        return doubt
