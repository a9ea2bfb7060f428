"""What this user knows of runs, kept outside of their folders: nobody who hands over a run can write it.

::

    ~/.local/state/autotimm/      or below XDG_STATE_HOME
      made/<id of a run>.json     files and names of runs that were made here, see :mod:`autotimm.records.trust`
      checked/<id of a run>.json  what was verified here

An id is the digest of a run's inputs, so that a run may be moved and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autotimm.records.atomic import write_text
from autotimm.serialization import read_json

__all__ = ["Kept", "read_state", "state_folder", "write_state"]

Kept = Literal["made", "checked"]


def state_folder() -> Path:
    """The folder of this user's state: below ``XDG_STATE_HOME``, or ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(home) / "autotimm"


def read_state(kept: Kept, run_id: str) -> dict[str, Any]:
    """What is kept of a run; empty if nothing is, or if the file is damaged."""
    try:
        values = read_json(_path(kept, run_id))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_state(kept: Kept, run_id: str, values: Mapping[str, Any]) -> None:
    """Keep values of a run in place of earlier ones.

    Raises:
        OSError: If the folder cannot be written to.
    """
    path = _path(kept, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _path(kept: Kept, run_id: str) -> Path:
    # The id may come from a manifest that somebody else wrote: it must not become a path.
    return state_folder() / kept / f"{hashlib.sha256(run_id.encode()).hexdigest()[:32]}.json"
