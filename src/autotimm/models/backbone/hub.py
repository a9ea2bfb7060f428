"""The Hugging Face hub, asked carefully: the cache first, then at most one probe per process, then a download.

With the hub out of reach, ``timm`` and ``huggingface_hub`` retry for most of a minute per model. A probe answers
"is it there at all?" within three seconds, once, before any of their code may wait.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from autotimm.errors import WeightsError

__all__ = [
    "PROBE_SECONDS",
    "avoid_hub",
    "cached_file",
    "cached_url",
    "download_file",
    "download_url",
    "hub_state",
    "split_revision",
]

PROBE_SECONDS = 3.0
_AVOIDED: ContextVar[bool] = ContextVar("autotimm_hub_avoided", default=False)
_PROXY_WANTS_A_PASSWORD = 407

# The base of the client's own errors (requests in old releases of huggingface_hub, httpx in new ones): named through
# the error that derives from it, since the client is the hub library's choice and not a dependency of ours.
_TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


@contextmanager
def avoid_hub() -> Iterator[None]:
    """Use the cache alone in this block: a checkpoint of somebody else must not decide whom this machine asks."""
    token = _AVOIDED.set(True)
    try:
        yield
    finally:
        _AVOIDED.reset(token)


def split_revision(repo: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision``.

    Example:
        >>> split_revision("timm/resnet18.a1_in1k@main")
        ('timm/resnet18.a1_in1k', 'main')
    """
    name, _, revision = repo.partition("@")
    return name, revision or None


def cached_file(repo: str, names: Iterable[str]) -> Path | None:
    """Find the first of ``names`` that the local cache has of a repository. Never uses the network."""
    name, revision = split_revision(repo)
    for filename in names:
        found = try_to_load_from_cache(name, filename, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def hub_state() -> str:
    """Say whether the hub may be asked: ``""`` if so, else the reason why not, as the end of a sentence.

    ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` are honored as ``huggingface_hub`` read them when it was imported.
    """
    if _AVOIDED.get():
        return "a checkpoint is loaded without the hub"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if _answers(constants.ENDPOINT) else "the hub is not reachable"


@cache
def _answers(endpoint: str) -> bool:
    """Whether a server answers at ``endpoint`` in time; asked once per process."""
    answers: list[bool] = []
    # A thread, since getaddrinfo has no timeout: with a name server that never answers it takes 10 s. The hub library's
    # own HF_HUB_ETAG_TIMEOUT=3 does not help, since it retries five times: 103 s for a file then, 390 s with a server
    # that never replies.
    probe = threading.Thread(target=lambda: answers.append(_probe(endpoint)), daemon=True, name="autotimm-hub-probe")
    probe.start()
    probe.join(PROBE_SECONDS)
    return bool(answers and answers[0])


def _probe(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code != _PROXY_WANTS_A_PASSWORD
    except (OSError, ValueError):  # unreachable, refused, cut off; an endpoint that is no URL
        return False


def download_file(repo: str, names: Iterable[str]) -> Path:
    """Fetch the first of ``names`` that a repository has into the cache of ``huggingface_hub``.

    Raises:
        WeightsError: If it has none of them or cannot be read.
    """
    name, revision = split_revision(repo)
    names = list(names)
    for filename in names:
        try:
            return Path(hf_hub_download(name, filename, revision=revision, etag_timeout=PROBE_SECONDS))
        except LocalEntryNotFoundError as error:  # "nobody answered", although it derives from the next one
            raise WeightsError(_failure(repo, error)) from None
        except EntryNotFoundError:
            continue
        except _TRANSPORT_ERRORS as error:
            raise WeightsError(_failure(repo, error)) from None
    raise WeightsError(
        f"The hub repository {repo} must hold one of {', '.join(names)}. It holds none of them. Check its name, or "
        "give the path of a weights file as `pretrained`."
    )


def _failure(repo: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"The hub repository {repo} must be readable. It is not ({reason}). Check its name and your access, or "
        "give the path of a weights file as `pretrained`."
    )


def cached_url(url: str) -> Path | None:
    """Find a file that ``torch.hub`` would keep for ``url``. Never uses the network."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return path if path.is_file() else None


def download_url(url: str) -> Path:
    """Fetch ``url`` into the cache of ``torch.hub``.

    Raises:
        WeightsError: If it cannot be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise WeightsError(
            f"The weights at {url} must be readable. They are not ({error}). Download them by other means and give "
            "their path as `pretrained`."
        ) from None
    return path
