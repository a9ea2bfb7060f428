"""The images of a request: read within limits, kept in a temporary folder, and decoded by our own reader.

Nothing that a client sends is used as a path or fetched as an address: a name is only repeated in the answer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

import anyio
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from autotimm.data.formats.listing import text
from autotimm.data.image_io import reason
from autotimm.data.image_reading import ARRAY_SUFFIX, reading_of
from autotimm.data.inference_loaders import uploaded_sample
from autotimm.errors import DataError
from autotimm.serving.request_limits import Limits, RefusedError
from autotimm.types import DataSpec, Sample

__all__ = ["Upload", "decode", "read_uploads"]

_IN_MEMORY = 2**20  # bytes of an image, beyond which it is kept in a file
_LONGEST_NAME = 200
_DRAINED = 8  # times the limit: what is read and thrown away, so that the client sees the answer
_ARRAY = b"\x93NUMPY"
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)


class Upload(NamedTuple):
    """An image that was sent, not decoded yet.

    Attributes:
        name: What the client calls it, without folders.
        file: Its bytes.
    """

    name: str
    file: IO[bytes]


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the images of a request: its body, or the files of a form.

    Raises:
        RefusedError: If there are none, they are too large or too many, or they do not arrive in time.
    """
    _check_length(request.headers.get("content-length"), limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        with anyio.fail_after(limits.patience):
            if kind == "multipart/form-data":
                return await _form(request, limits)
            if kind in ("", "application/octet-stream") or kind.startswith("image/"):
                return [await _body(request, limits)]
            await _drain(_limited(request, limits))
    except TimeoutError:
        raise RefusedError(
            408, f"The request must arrive within {limits.patience:g} seconds.", Connection="close"
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "The request ended early.", Connection="close") from None
    raise RefusedError(415, "Send an image as the body (Content-Type: image/jpeg), or files as multipart/form-data.")


def _check_length(given: str | None, limits: Limits) -> None:
    if given is not None and int(given) > _DRAINED * limits.max_bytes:  # h11 has seen that it is a number
        raise RefusedError(413, _too_many_bytes(limits), Connection="close")


def _too_many_bytes(limits: Limits) -> str:
    return f"A request must have at most {limits.max_bytes:,} bytes."


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body; what is beyond the limit is thrown away, and refused when all of it has arrived."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limits.max_bytes:
            yield part
        elif size > _DRAINED * limits.max_bytes:
            raise RefusedError(413, _too_many_bytes(limits), Connection="close")
    if size > limits.max_bytes:
        raise RefusedError(413, _too_many_bytes(limits))


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    """Read what is left of a body, so that the client, which may not read before it has sent all, sees the answer."""
    async for _ in body:
        pass


async def _body(request: Request, limits: Limits) -> Upload:
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(SpooledTemporaryFile(_IN_MEMORY))
        async for part in _limited(request, limits):
            file.write(part)
        stack.pop_all()  # it stays open for whoever decodes it
    return Upload(_name_of(request.query_params.get("name")), file)


async def _form(request: Request, limits: Limits) -> list[Upload]:
    body = _limited(request, limits)
    parser = MultiPartParser(request.headers, body, max_files=limits.max_images, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        await _drain(body)
        raise RefusedError(400, f"The form is wrong: {error.message}") from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files:
        raise RefusedError(400, "The form must have an image as a file. It has none.")
    return [Upload(_name_of(file.filename), file.file) for file in files]


def _name_of(given: str | None) -> str:
    """The last part of a name; folders of the client say nothing here."""
    return text((given or "").replace("\\", "/").rpartition("/")[2])[:_LONGEST_NAME] or "image"


def decode(upload: Upload, spec: DataSpec, folder: Path) -> Sample:
    """Decode an image as ``autotimm predict`` decodes a file.

    Args:
        upload: The image, whose file is closed.
        spec: What the model knows of its data.
        folder: Where a temporary file may be made.

    Raises:
        RefusedError: If it is not an image, or has too many pixels.
    """
    with upload.file as sent:
        sent.seek(0)
        is_array = sent.read(len(_ARRAY)) == _ARRAY and not reading_of(spec).is_rgb
        sent.seek(0)
        handle, path = tempfile.mkstemp(ARRAY_SUFFIX if is_array else "", dir=folder)
        with open(handle, "wb") as copy:
            shutil.copyfileobj(sent, copy)
    try:
        return uploaded_sample(path, upload.name, spec)
    except DataError as error:
        cause = error.__cause__ or error
        status = 413 if isinstance(cause, _TOO_LARGE) else 422
        raise RefusedError(status, f"{upload.name} cannot be read as an image: {reason(path, cause)}.") from None
    finally:
        os.unlink(path)
