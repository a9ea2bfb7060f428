"""What is wrong with annotations, said once and with names."""

from __future__ import annotations

from autotimm.errors import DataError, join_names

__all__ = ["Report"]


class Report:
    """What is wrong with the annotations: a line for each kind, with the names of a few files.

    Args:
        strict: Whether to refuse the data instead of leaving out what is wrong.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, cure: str, name: str) -> None:
        """Note one case.

        Args:
            what: What is wrong, in the plural.
            cure: What is done about it.
            name: The file.
        """
        self._found.setdefault((what, cure), []).append(name)

    def close(self, notices: list[str]) -> None:
        """Hand the lines over.

        Raises:
            DataError: With ``strict``, if anything is wrong.
        """
        lines = []
        for (what, cure), names in self._found.items():
            distinct = list(dict.fromkeys(names))
            count = f"{len(names)} {what}" if len(names) == len(distinct) else f"{len(names)} {what} in {len(distinct)}"
            lines.append((f"{count}: {join_names(distinct)}.", f"{count}, {cure}: {join_names(distinct)}."))
        if lines and self.strict:
            raise DataError(" ".join(plain for plain, _ in lines) + " Correct these, or leave out `strict`.")
        notices.extend(said for _, said in lines)
