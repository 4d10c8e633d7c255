"""What comes back from a service, held against what was asked: not every 200 is a Refocus service's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np
import numpy.typing as npt

from refocus.errors import InputError, ServiceFailed
from refocus.wire import headers
from refocus.wire.codec import decode, sniff
from refocus.wire.image import Container, ImageLimits

# What comes back was asked for: the limits guard against garbage, not against size.
_ANSWER_LIMITS = ImageLimits(max_body_bytes=2**34, max_pixels=2**32, max_pages=2**16, max_decoded_bytes=2**34)

Document = TypeVar("Document", dict[str, Any], list[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the service says of an image that it restored.

    Parameters
    ----------
    model, digest : str
        What made it.
    out_of_range_share : float
        Of the image that is further out of focus than the model was trained for.
    blanks : str
        What was taken for padding, overlays, hot and dead pixels, and left as it was; empty where nothing was.
    calibrated : bool or None
        Whether that interval was calibrated on measured errors; None where it was not asked for.
    optics : mapping or None
        What the blur was read with (``na``, ``wavelength_um``, ``pixel_size_um``); None where nobody told.
    defocus_um : float or None
        Estimated distance from focus, unsigned, where `optics` are known.
    timings_ms : mapping
        The service's own: decode, queue, model, encode.
    correlation_id : str
    """

    model: str
    digest: str
    out_of_range_share: float
    blanks: str
    calibrated: bool | None
    optics: Mapping[str, float] | None
    defocus_um: float | None
    timings_ms: Mapping[str, float]
    correlation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refocused(Answered):
    """An image that came back, and what is said of it as in `Answered`.

    Parameters
    ----------
    pixels : ndarray
        Shape and dtype of what was sent, in this machine's byte order; yours to write to.
    half_width : ndarray or None
        Of the 90% interval, where it was asked for; dtype of the image.
    """

    pixels: npt.NDArray[Any]
    half_width: npt.NDArray[Any] | None


def refocused(response: httpx.Response, image: npt.NDArray[Any], *, uncertainty: bool) -> Refocused:
    """Return the answer to `image`.

    Raises
    ------
    ServiceFailed
        If it is not one: another shape or type, another service, or a page of whoever stands between.
    """
    body = image_body(response, "tiff")
    try:
        planes = decode(body, _ANSWER_LIMITS).planes
        said = _said_in(response)
    except ValueError as error:
        raise _foreign(response, f"an image that cannot be read ({error})") from error
    parts = 2 if uncertainty else 1
    if planes.size != parts * image.size or planes.dtype != image.dtype or len(planes) % parts:
        raise _foreign(response, f"{planes.shape} of {planes.dtype} for {image.shape} of {image.dtype}")
    # Pixels that lie in the body cannot be written to.
    restored, *widths = (np.require(part, requirements="W") for part in np.split(planes, parts))
    half_width = widths[0].reshape(image.shape) if widths else None
    return Refocused(pixels=restored.reshape(image.shape), half_width=half_width, **said)


def answered(response: httpx.Response) -> Answered:
    """Return what an answer says of its image; raises as `refocused`."""
    try:
        return Answered(**_said_in(response))
    except ValueError as error:
        raise _foreign(response, f"headers that cannot be read ({error})") from error


def image_body(response: httpx.Response, container: Container) -> bytes:
    """Return an answer's bytes, which must be an image of `container` that names its model; raises as `refocused`."""
    try:
        found = sniff(response.content)
    except InputError:
        raise _foreign(response, "no image") from None
    if found != container:
        raise _foreign(response, f"a {found.upper()} where a {container.upper()} was asked for")
    if headers.MODEL_DIGEST not in response.headers:
        raise _foreign(response, f"an image without {headers.MODEL_DIGEST}")
    return response.content


def _said_in(response: httpx.Response) -> dict[str, Any]:
    """Fields of `Answered`."""
    said = response.headers
    return {
        "model": said.get(headers.MODEL, ""),
        "digest": said[headers.MODEL_DIGEST],
        "out_of_range_share": float(said.get(headers.OUT_OF_RANGE, 0.0)),
        "blanks": said.get(headers.BLANKS, ""),
        "calibrated": headers.parse_calibrated(said.get(headers.INTERVAL_SCALE, "")),
        "optics": headers.parse_optics(said.get(headers.OPTICS, "")),
        "defocus_um": float(said[headers.DEFOCUS_UM]) if headers.DEFOCUS_UM in said else None,
        "timings_ms": headers.parse_server_timing(said.get(headers.SERVER_TIMING, "")),
        "correlation_id": said.get(headers.CORRELATION_ID, ""),
    }


def document(response: httpx.Response, kind: type[Document]) -> Document:
    """Return an answer's JSON, which must be of `kind`; raises as `refocused`."""
    try:
        found = response.json()
    except ValueError:
        raise _foreign(response, "no JSON") from None
    if not isinstance(found, kind):
        raise _foreign(response, f"JSON of another kind ({type(found).__name__}, expected {kind.__name__})")
    return found


def _foreign(response: httpx.Response, what: str) -> ServiceFailed:
    media = response.headers.get("content-type", "no content type")
    return ServiceFailed(
        f"{response.request.url} answered {response.status_code} with {what} ({media}, beginning "
        f"{response.content[:60]!r}). Is this a Refocus service of this version, and is no login page in between?",
        status=response.status_code,
        correlation_id=response.headers.get(headers.CORRELATION_ID),
    )
