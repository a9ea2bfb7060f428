"""Push of a run to the hub: the folder for timm with its model card, shown first and sent only on request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from autotimm.errors import ModelError, UsageError, require_flags, shortened
from autotimm.export.hub_name import CARD
from autotimm.models.backbone.hub import hub_state
from autotimm.records.readers import read_text

__all__ = ["Push", "push_folder"]

# The client of the hub library, whichever it is, has these errors; ValueError: the hub refuses the card.
_FAILURES: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Push:
    """What was sent to the hub, or would be.

    Attributes:
        repository: The repository, as ``owner/name``.
        files: Its files, and their sizes in bytes.
        card: The model card, ``README.md``.
        url: The address of the commit; ``None`` if nothing was sent.
    """

    repository: str
    files: dict[str, int]
    card: str
    url: str | None = None


def push_folder(write: Callable[[Path], None], repository: str, *, upload: bool, private: bool, message: str) -> Push:
    """Write a folder, and send it to the hub if asked to.

    Args:
        write: Writes the folder, which is removed at the end.
        repository: The repository, as ``owner/name``.
        upload: Whether to send it; nothing is asked of the hub otherwise.
        private: Whether only its owner may see the repository.
        message: The message of the commit.

    Raises:
        ModelError: If the hub cannot be reached, there is no token, or it refuses.
        UsageError: If the repository is public and should not be.
    """
    require_flags("push", upload=upload, private=private)
    token = _token() if upload else ""  # before a model is written
    with tempfile.TemporaryDirectory(prefix="autotimm-push-") as temporary:
        folder = Path(temporary, "model")
        write(folder)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        card = read_text(folder / CARD, "the model card")
        url = _sent(folder, repository, token, private, message) if upload else None
    return Push(repository, files, card, url)


def _token() -> str:
    """The user's token.

    Raises:
        ModelError: If there is none, or the hub cannot be asked.
    """
    if state := hub_state():
        raise ModelError(f"The hub must be reachable to push. It is not: {state}. Nothing was sent.")
    token = get_token()
    if not token or not token.isascii() or not token.isprintable():
        problem = "is none" if not token else "is one that is no token"
        raise ModelError(
            f"The hub must know who pushes, by a token. There {problem}. Run `hf auth login`, or set HF_TOKEN. "
            "Nothing was sent."
        )
    return token


def _sent(folder: Path, repository: str, token: str, private: bool, message: str) -> str:
    """Send a folder, and return the address of the commit."""
    from huggingface_hub import HfApi  # late: every start would wait for it

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        # A repository that was there keeps who may see it.
        if private and not api.model_info(repository).private:
            raise UsageError(
                f"The repository {repository} must be private. It is there already, and public. Make it private on the "
                "hub, leave out --private, or choose another name. Nothing was sent."
            )
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except UsageError:
        raise
    except _FAILURES as error:
        said = (str(error).strip() or type(error).__name__).replace(token, "***")
        reason = shortened(" ".join(said.split())).rstrip(".")
        raise ModelError(
            f"The repository {repository} must take the model. The hub refuses ({reason}). Check its name and what "
            "your token may do."
        ) from None
    return str(commit.commit_url)
