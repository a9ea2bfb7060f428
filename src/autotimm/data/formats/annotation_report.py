"""A report of what is wrong with annotations: one line for each kind of problem, with the names of a few files."""

from __future__ import annotations

from autotimm.errors import DataError, join_names

__all__ = ["Report"]


class Report:
    """Collects problems of annotations while they are read.

    Args:
        strict: Refuse the data instead of leaving out what is wrong.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._names: dict[tuple[str, str], list[str]] = {}

    def add(self, problem: str, consequence: str, name: str) -> None:
        """Note one case.

        Args:
            problem: What is wrong, in the plural.
            consequence: What is done about it.
            name: The file.
        """
        self._names.setdefault((problem, consequence), []).append(name)

    def close(self, notices: list[str]) -> None:
        """Append the lines to the notices.

        Raises:
            DataError: With ``strict``, if anything is wrong.
        """
        refusals, lines = [], []
        for (problem, consequence), names in self._names.items():
            files = list(dict.fromkeys(names))
            count = f"{len(names)} {problem}" + (f" in {len(files)}" if len(files) < len(names) else "")
            refusals.append(f"{count}: {join_names(files)}.")
            lines.append(f"{count}, {consequence}: {join_names(files)}.")
        if refusals and self.strict:
            raise DataError(" ".join(refusals) + " Correct these, or leave out `strict`.")
        notices.extend(lines)
