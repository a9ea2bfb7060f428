"""Options of ``fit`` that contradict each other, and options that have no effect beside others.

What the tasks of ``fit`` have of their own: defaults, and options that would have no effect on others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotimm.config.option import Option

__all__ = ["is_table", "options_of_others", "task_defaults"]


def is_table(path: str | None) -> bool:
    """Whether a path is by its name that of a table."""
    return path is not None and path.lower().endswith((".csv", ".tsv"))


def task_defaults(options: Mapping[str, Option], task: str) -> dict[str, Any]:
    """Defaults of a task in place of those that all options have."""
    return {name: option.by_task[task] for name, option in options.items() if task in option.by_task}


def options_of_others(options: Mapping[str, Option], task: str) -> list[str]:
    """Options that have no effect on a task."""
    return [name for name, option in options.items() if task not in option.tasks]
