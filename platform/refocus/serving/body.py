"""From a request's bytes to an image: read within limits of size and time, then decoded beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from refocus.errors import UnreadableImage
from refocus.serving.config import ServingConfig
from refocus.serving.status import Refusal
from refocus.wire.codec import WRITTEN, can_hold, decode, output_container, sniff
from refocus.wire.image import MEDIA_TYPES, Container, WireImage

# Boundaries and headers of the parts come on top of the image.
_MULTIPART_EXTRA_BYTES = 64 * 1024


async def read_image(request: Request, config: ServingConfig) -> WireImage:
    """Return the image in a request's body: raw, or the one file of a multipart form.

    Raises
    ------
    Refusal
        415 where the body is no image, or is coded; 408 where it comes too slowly; 400 where a form is not one file.
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
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(
            415,
            "coded-body",
            f"The body is coded as {coding[:40]!r} (Content-Encoding), and codings are not read. Send the file as it "
            "is; TIFF and PNG compress by themselves.",
        )
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
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


def accepted(header: str | None) -> dict[Container, tuple[float, int]]:
    """Return the containers that an Accept header allows, each with its rank: the smallest is liked best.

    For each the most special range that fits decides (RFC 9110, section 12.5.1): ``image/tiff;q=0, */*`` is any
    but TIFF.

    Raises
    ------
    Refusal
        406 where nothing that is written here is accepted.

    Examples
    --------
    >>> accepted("image/png;q=0.5, image/tiff")
    {'tiff': (-1.0, 1), 'png': (-0.5, 0)}
    """
    wishes: dict[str, tuple[float, int]] = {}
    for position, entry in enumerate((header or "*/*").split(",")):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        wishes.setdefault(media, (-quality, position))
    ranks: dict[Container, tuple[float, int]] = {}
    for container in WRITTEN:
        fits = [wishes[media] for media in (MEDIA_TYPES[container], "image/*", "*/*") if media in wishes]
        if fits and fits[0][0] < 0:
            ranks[container] = fits[0]
    if not ranks:
        raise Refusal(406, "not-acceptable", f"{header!r} is asked for; image/tiff and image/png are written.")
    return ranks


def chosen(image: WireImage, ranks: Mapping[Container, tuple[float, int]], *, pages: int) -> Container:
    """Return the container that is liked best of those that can hold an answer of so many pages, its own first.

    Raises
    ------
    Refusal
        406 where none that is accepted can.
    """
    own = output_container(image)
    for container in sorted(ranks, key=lambda each: (*ranks[each], each != own)):
        if can_hold(container, image, pages=pages):
            return container
    raise Refusal(
        406,
        "not-acceptable",
        f"{' and '.join(MEDIA_TYPES[each] for each in ranks)} is asked for; a PNG holds one plane of 8 or 16 bit, "
        f"unsigned, and the answer has {pages} of {image.planes.dtype}. Accept image/tiff.",
    )
