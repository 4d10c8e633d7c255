"""From a request's bytes to an image: read within limits of size and time, then decoded beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from refocus.errors import UnreadableImage
from refocus.serving.config import ServingConfig
from refocus.serving.status import Refusal
from refocus.wire.codec import decode, sniff
from refocus.wire.image import Container, WireImage

# Boundaries and headers of the parts come on top of the image.
_MULTIPART_EXTRA_BYTES = 64 * 1024


async def read_image(request: Request, config: ServingConfig) -> WireImage:
    """Return the image in a request's body: raw, or the one file of a multipart form.

    Raises
    ------
    Refusal
        415 where the body is no image, 408 where it comes too slowly, 400 where the form is not one file alone.
    ImageTooLarge
        As soon as the length, announced or arrived, is over the limit.
    """
    body = await read_body(request, config)
    try:
        sniff(body)
    except UnreadableImage as error:
        raise Refusal(415, "no-image", str(error)) from error
    return await asyncio.to_thread(decode, body, config.limits)


async def read_body(request: Request, config: ServingConfig) -> bytes:
    """Return the image's bytes; raises as `read_image` does."""
    multipart = request.headers.get("content-type", "").startswith("multipart/form-data")
    announced = request.headers.get("content-length", "")
    if announced.isdigit():
        config.limits.check_body(int(announced) - (_MULTIPART_EXTRA_BYTES if multipart else 0))
    try:
        async with asyncio.timeout(config.upload_timeout_s):
            pieces = [piece async for piece in _limited(request, config, multipart=multipart)]
    except TimeoutError:
        raise Refusal(
            408, "slow-body", f"The body was not complete after {config.upload_timeout_s:g} s; send it faster."
        ) from None
    if not multipart:
        return b"".join(pieces)
    return await _file_of(request.headers, pieces, config)


async def _limited(request: Request, config: ServingConfig, *, multipart: bool) -> AsyncIterator[bytes]:
    arrived = -_MULTIPART_EXTRA_BYTES if multipart else 0
    async for piece in request.stream():
        arrived += len(piece)
        config.limits.check_body(arrived)
        yield piece


async def _file_of(headers: Headers, pieces: list[bytes], config: ServingConfig) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece

    try:
        form = await MultiPartParser(headers, stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise Refusal(400, "bad-form", f"The multipart form cannot be read: {error}") from error
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        fields = [name for name, value in form.multi_items() if not isinstance(value, UploadFile)]
        if fields:
            named = ", ".join(repr(name) for name in fields)
            raise Refusal(
                400,
                "bad-form",
                f"The form holds {named} beside the image, and forms are read for the image alone. Parameters belong "
                "in the address: /v1/refocus?na=0.45.",
            )
        if len(files) != 1:
            raise Refusal(400, "bad-form", f"The form holds {len(files)} files; expected one, the image.")
        body = await files[0].read()
    finally:
        await form.close()
    config.limits.check_body(len(body))
    return body


def accepted(header: str | None) -> Container | None:
    """Return the container that an Accept header asks for, None where any will do.

    Raises
    ------
    Refusal
        406 where nothing that is written here is accepted.

    Examples
    --------
    >>> accepted("image/png"), accepted("*/*"), accepted("image/png;q=0.5, image/tiff")
    ('png', None, 'tiff')
    """
    wishes = []
    for position, entry in enumerate((header or "*/*").split(",")):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        wishes.append((-quality, position, media))
    known: dict[str, Container | None] = {
        "image/tiff": "tiff", "image/png": "png", "image/*": None, "*/*": None, "": None,
    }  # fmt: skip
    for quality, _, media in sorted(wishes):
        if quality < 0 and media in known:
            return known[media]
    raise Refusal(406, "not-acceptable", f"{header!r} is asked for; image/tiff and image/png are written.")
