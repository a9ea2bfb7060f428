"""Names of repositories and licenses on the hub, checked before anything heavy is imported."""

from __future__ import annotations

import re

from autotimm.errors import require

__all__ = ["CARD", "require_license", "require_repository"]

CARD = "README.md"
"""The model card, which the hub shows as the page of a repository."""

# As the hub itself has them, so that neither steers a file, an address or the front matter of a card.
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-]))*(?<![.-])"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_MOST = 96  # characters of a repository's name


def require_repository(name: str, owner: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UsageError: If it is none.
    """
    valid = len(name) <= _MOST and _REPOSITORY.fullmatch(name) is not None and not name.endswith(".git")
    require(valid, "repository", owner, "a name such as owner/name", name,
            "Use letters, digits, dashes, dots and underscores.")  # fmt: skip


def require_license(license_id: str | None, owner: str) -> None:
    """Refuse what is no id of a license.

    Raises:
        UsageError: If it is none.
    """
    valid = license_id is None or _LICENSE.fullmatch(license_id) is not None
    require(valid, "license", owner, "an id as the hub writes it, such as apache-2.0", license_id,
            "See https://huggingface.co/docs/hub/repositories-licenses.")  # fmt: skip
