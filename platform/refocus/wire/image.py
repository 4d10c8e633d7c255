"""An image as it travels: planes of one shape, and everything else that its file said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from refocus.errors import ImageTooLarge, UnsupportedImage

Container = Literal["tiff", "png", "jpeg"]

MEDIA_TYPES: dict[Container, str] = {"tiff": "image/tiff", "png": "image/png", "jpeg": "image/jpeg"}

#: Pixel types that go in and come back.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

#: Of floats: a decimal power inside the ends of single precision, so that sums and differences stay inside too.
LARGEST_VALUE, SMALLEST_RANGE = 1e37, 1e-37


class ImageLimits(BaseModel):
    """How large an image may be; each limit holds before the memory for it is spent.

    Parameters
    ----------
    max_body_bytes : int
        Encoded size.
    max_pixels : int
        Rows times columns of one plane.
    max_pages : int
        Planes in one file.
    max_decoded_bytes : int
        All planes decoded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=256 * 2**20, ge=1)
    max_pixels: int = Field(default=64 * 10**6, ge=1)
    max_pages: int = Field(default=64, ge=1)
    max_decoded_bytes: int = Field(default=512 * 2**20, ge=1)

    def check_body(self, size_bytes: int) -> None:
        """Raise `ImageTooLarge` if a body of this size is over the limit."""
        if size_bytes > self.max_body_bytes:
            raise ImageTooLarge(
                f"The body holds {size_bytes} bytes; the limit is {self.max_body_bytes}. Send a crop, or fewer planes."
            )

    def check_pixels(self, height_px: int, width_px: int) -> None:
        """Raise `ImageTooLarge` if one plane of this shape is over the limit."""
        if height_px * width_px > self.max_pixels:
            raise ImageTooLarge(
                f"The image claims {width_px} x {height_px} pixels; the limit is {self.max_pixels} pixels a plane. "
                "Send it in crops."
            )

    def check_pages(self, pages: int) -> None:
        """Raise `ImageTooLarge` if this many planes are over the limit."""
        if pages > self.max_pages:
            raise ImageTooLarge(f"The file has {pages} or more pages; the limit is {self.max_pages}. Split it.")

    def check_decoded(self, size_bytes: int) -> None:
        """Raise `ImageTooLarge` if this many bytes of pixels are over the limit."""
        if size_bytes > self.max_decoded_bytes:
            raise ImageTooLarge(
                f"Decoded, the image would take {size_bytes} bytes; the limit is {self.max_decoded_bytes}. Split it."
            )


#: On a person's own machine its memory is the limit; a server has limits of its own.
OWN_MACHINE = ImageLimits(max_body_bytes=2**50, max_pixels=2**50, max_pages=2**31, max_decoded_bytes=2**50)


@dataclass(frozen=True, slots=True)
class Tag:
    """One TIFF tag as it was read: code, data type, count and value, handed back untouched."""

    code: int
    dtype: int
    count: int
    value: Any


@dataclass(frozen=True, slots=True)
class WireImage:
    """Planes of one shape and what their file said about them.

    Parameters
    ----------
    planes : ndarray, of one of `DTYPES`
        (P, Y, X) grey, or (P, Y, X, 3) colour, light counted upwards. Every page of a TIFF is a plane, in file order.
    container : {'tiff', 'png', 'jpeg'}
        The format it came in, and goes back in unless something else is asked for.
    pixel_size_um : float or None
        Spacing of pixel centres where the file says it.
    numerical_aperture, wavelength_um, refractive_index : float or None
        Of the objective, of the first channel's emission, and of the immersion, likewise.
    alpha : ndarray or None
        (P, Y, X) opacity, which is carried along and never touched.
    description : str
        OME-XML, ImageJ's lines, or free text.
    tags : tuple of Tag
        TIFF tags that go back as they came (resolution, ImageJ's own, ICC profile ...).
    chunks : tuple of (bytes, bytes)
        PNG chunks that go back as they came.
    options : mapping
        How the container was written: compression, predictor, byteorder, bigtiff, photometric, and what pages of a
        TIFF after the first say for themselves.

    Raises
    ------
    UnsupportedImage
        If the pixel type or the shape is not one that can be restored.
    """

    planes: npt.NDArray[Any]
    container: Container = "tiff"
    pixel_size_um: float | None = None
    alpha: npt.NDArray[Any] | None = None
    description: str = ""
    tags: tuple[Tag, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    numerical_aperture: float | None = None
    wavelength_um: float | None = None
    refractive_index: float | None = None

    def __post_init__(self) -> None:
        check_dtype(self.planes.dtype)
        shape = self.planes.shape
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
            raise UnsupportedImage(
                f"An image of shape {shape} was given; expected (planes, rows, columns) or (planes, rows, columns, 3), "
                "none of them 0."
            )
        if self.alpha is not None:
            assert self.alpha.shape == shape[:3], (self.alpha.shape, shape)

    @property
    def is_color(self) -> bool:
        """Whether each plane is RGB."""
        return self.planes.ndim == 4

    @property
    def height_px(self) -> int:
        """Rows."""
        return int(self.planes.shape[1])

    @property
    def width_px(self) -> int:
        """Columns."""
        return int(self.planes.shape[2])

    @property
    def pixels(self) -> int:
        """Rows times columns times planes."""
        return int(np.prod(self.planes.shape[:3]))


def check_dtype(dtype: np.dtype) -> None:
    """Raise `UnsupportedImage` unless pixels of `dtype` go in and come back."""
    if dtype.name not in DTYPES:
        raise UnsupportedImage(
            f"Pixels are {dtype.name}; expected {', '.join(DTYPES)}. Convert the image, keeping its intensity scale."
        )


def check_values(planes: npt.NDArray[Any]) -> None:
    """Raise `UnsupportedImage` unless floats are finite and keep clear of the ends of single precision's range."""
    if planes.dtype.kind != "f":
        return
    lowest, highest = float(planes.min()), float(planes.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        bad = ~np.isfinite(planes)
        plane, row, column = (int(place) for place in np.unravel_index(int(bad.argmax()), bad.shape)[:3])
        raise UnsupportedImage(
            f"{np.count_nonzero(bad)} of {bad.size} values of the image are NaN or infinite, the first in plane "
            f"{plane}, row {row}, column {column}, counted from 0; replace them first."
        )
    if max(-lowest, highest) > LARGEST_VALUE or 0 < highest - lowest < SMALLEST_RANGE:
        raise UnsupportedImage(
            f"The image's values go from {lowest:g} to {highest:g}; they are computed in single precision, which needs "
            f"them within +-{LARGEST_VALUE:g} and spread over {SMALLEST_RANGE:g} or more. Multiply them by a constant."
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is added to an image that comes back: which model made it.

    Parameters
    ----------
    model : str
    digest : str
        Of the model version.
    notes : mapping
        Further facts as short strings, such as the share out of range.
    """

    model: str
    digest: str
    notes: Mapping[str, str] = field(default_factory=dict)

    def items(self) -> dict[str, str]:
        """All facts, as short keys and values."""
        return {"model": self.model, "digest": self.digest, **self.notes}


def turned(planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make light of an image whose zero is white: exchange zero and the type's largest value; of floats, the sign."""
    return np.invert(planes) if planes.dtype.kind in "ui" else -planes
