"""Bytes to `WireImage` and back, whatever the container."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import ConfigurationError, InputError, UnreadableImage, UnsupportedImage
from refocus.wire.image import Container, ImageLimits, Provenance, WireImage
from refocus.wire.jpeg import decode_jpeg
from refocus.wire.png import decode_png, encode_png, png_holds
from refocus.wire.tiff import decode_tiff, encode_tiff

_SIGNATURES: tuple[tuple[bytes, Container], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)


#: Containers that answers come in; JPEG loses detail and is never written.
WRITTEN: tuple[Container, ...] = ("tiff", "png")
#: The same by the ends of files' names, and all ends that name an image.
CONTAINER_OF: dict[str, Container] = {".tif": "tiff", ".tiff": "tiff", ".png": "png"}
JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (*CONTAINER_OF, *JPEG_SUFFIXES)


def sniff(body: bytes) -> Container:
    """Return the container that the first bytes announce; what a sender calls it is not asked.

    Raises
    ------
    UnreadableImage
        If they announce none that is read here.
    """
    for signature, container in _SIGNATURES:
        if body.startswith(signature):
            return container
    if not body:
        raise UnreadableImage("The file is empty; expected a TIFF, PNG or JPEG image.")
    raise UnreadableImage(
        f"The file begins with {body[:8]!r}, which is no image that is read here; expected TIFF, PNG or JPEG."
    )


def decode(body: bytes, limits: ImageLimits | None = None) -> WireImage:
    """Return the image that `body` holds.

    Raises
    ------
    UnreadableImage
        If the bytes are broken, truncated, or no image.
    UnsupportedImage
        If the image is sound but of a kind that is not restored.
    ImageTooLarge
        If it is over a limit; found from its headers, before memory is spent.
    """
    limits = limits or ImageLimits()
    limits.check_body(len(body))
    container = sniff(body)
    decoder = {"tiff": decode_tiff, "png": decode_png, "jpeg": decode_jpeg}[container]
    try:
        return decoder(body, limits)
    except InputError:
        raise
    except Exception as error:
        raise UnreadableImage(
            f"The {container.upper()} image cannot be decoded ({type(error).__name__}: {str(error)[:200]}). "
            "Is the file complete?"
        ) from error


def encode(image: WireImage, container: Container | None = None, provenance: Provenance | None = None) -> bytes:
    """Return `image` as bytes of `container`, by default the one it came in (PNG for a JPEG).

    Raises
    ------
    UnsupportedImage
        If the container cannot hold this image without loss: a float or many-page image in a PNG.
    """
    container = output_container(image, container)
    return encode_png(image, provenance) if container == "png" else encode_tiff(image, provenance)


def output_container(image: WireImage, wanted: Container | None = None) -> Container:
    """Return the container an answer takes: the one that is wanted, else the image's own (PNG for a JPEG)."""
    if wanted is None:
        wanted = "png" if image.container == "jpeg" else image.container
    if wanted not in WRITTEN:
        raise UnsupportedImage(f"{wanted!r} is not written; expected 'tiff' or 'png'.")
    return wanted


def can_hold(container: Container, image: WireImage, *, pages: int | None = None) -> bool:
    """Whether a container that is written holds an image without loss, if it had so many pages."""
    return container != "png" or png_holds(image.planes.dtype, len(image.planes) if pages is None else pages)


def from_array(pixels: npt.NDArray[Any], *, pixel_size_um: float | None = None) -> WireImage:
    """Return an array as a `WireImage`.

    Parameters
    ----------
    pixels : ndarray, of one of `refocus.wire.image.DTYPES`
        (Y, X), (Y, X, 3), (..., Y, X) or (..., Y, X, 3): a last axis of length 3 is colour.
    pixel_size_um : float or None

    Raises
    ------
    UnsupportedImage
        If the array is no image that is restored.
    ConfigurationError
        If the pixel size is no length.
    """
    pixels = np.asarray(pixels)
    if pixel_size_um is not None and not 0 < pixel_size_um < math.inf:
        raise ConfigurationError(f"pixel_size_um is {pixel_size_um}; expected micrometres above 0, such as 0.325.")
    if pixels.ndim < 2 or pixels.size == 0:
        raise UnsupportedImage(
            f"An array of shape {pixels.shape} is no image; expected at least rows and columns of pixels."
        )
    if pixels.ndim >= 3 and pixels.shape[-1] == 4:
        raise UnsupportedImage(
            f"An array of shape {pixels.shape} ends in an axis of 4: opacity or a fourth channel, not 4 columns. Send "
            "RGB as image[..., :3], and channels first: np.moveaxis(image, -1, 0)."
        )
    kept = 3 if pixels.ndim >= 3 and pixels.shape[-1] == 3 else 2
    shape: Sequence[int] = pixels.shape[-kept:]
    return WireImage(np.ascontiguousarray(pixels).reshape(-1, *shape), pixel_size_um=pixel_size_um)
