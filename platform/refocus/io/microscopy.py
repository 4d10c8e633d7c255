"""Any microscopy file as one thing: what its axes mean, how it was taken, and its planes one by one."""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refocus.errors import ConfigurationError, InputError, UnreadableImage
from refocus.wire.codec import decode, sniff
from refocus.wire.image import OWN_MACHINE, WireImage
from refocus.zstack import Acquisition, ZStack


class ImageSource(ABC):
    """A file that has been opened but not read: metadata at once, planes on demand.

    Attributes
    ----------
    name : str
        For messages.
    axes : str
        Letters of ``"TCZYXS"``, in that order.
    shape : tuple of int
        One length an axis.
    dtype : numpy.dtype
    acquisition : Acquisition
        What the file says, completed by what the caller answered; of its first channel, where channels differ.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    acquisition: Acquisition

    def acquisition_of(self, c: int) -> Acquisition:
        """What the file says of one channel, completed likewise: light and contrast are each channel's own."""
        return self.acquisition

    @abstractmethod
    def plane(self, *, z: int = 0, c: int = 0, t: int = 0) -> npt.NDArray[Any]:
        """Read one plane, shape (Y, X) or (Y, X, S), in the dtype of the file and native byte order.

        Raises
        ------
        ConfigurationError
            If there is no such position.
        UnreadableImage
            If its bytes are broken or missing.
        """

    def window(self, rows: slice, columns: slice, *, z: int = 0, c: int = 0, t: int = 0) -> npt.NDArray[Any]:
        """Read a part of one plane, shape (rows, columns) or (rows, columns, S).

        What need not be fetched or decoded for it is left alone where the file is laid out so: rows of uncompressed
        planes, strips and tiles of compressed ones, chunks of OME-Zarr.

        Parameters
        ----------
        rows, columns : slice
            As for an array; steps other than 1 are refused.

        Raises
        ------
        ConfigurationError
            If there is no such position, or the window is empty or has steps.
        UnreadableImage
            If its bytes are broken or missing.
        """
        self._check_position(Z=z, C=c, T=t)
        within = self._within(rows, "Y"), self._within(columns, "X")
        return self._read_window(*within, z=z, c=c, t=t)

    def _read_window(self, rows: slice, columns: slice, *, z: int, c: int, t: int) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self.plane(z=z, c=c, t=t)[rows, columns])

    def _within(self, wanted: slice, axis: str) -> slice:
        start, stop, step = wanted.indices(self.size(axis))
        if step != 1 or stop <= start:
            raise ConfigurationError(
                f"{self.name}: a window of {wanted} along {axis} of length {self.size(axis)} is empty or has steps."
            )
        return slice(start, stop)

    @property
    def metadata(self) -> dict[str, Any]:
        """What else the file says."""
        return {}

    def size(self, axis: str) -> int:
        """Length along `axis`, 1 where there is no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def _check_position(self, **positions: int) -> None:
        for axis, position in positions.items():
            if not 0 <= position < self.size(axis):
                raise ConfigurationError(
                    f"{self.name} has {self.size(axis)} position{'s' if self.size(axis) > 1 else ''} along {axis}; "
                    f"asked for number {position}, counted from 0."
                )

    def close(self) -> None:  # noqa: B027 (what lies in memory has nothing to release)
        """Release the file; safe to call twice."""

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stack(self, *, specimen: str = "") -> ZStack:
        """Read everything into memory."""
        pixels = np.empty(self.shape, self.dtype)
        leading = [axis for axis in self.axes if axis in "TCZ"]
        for position in np.ndindex(*(self.size(axis) for axis in leading)):
            pixels[position] = self.plane(**{a.lower(): i for a, i in zip(leading, position, strict=True)})
        return ZStack(pixels, self.axes, self.acquisition, source=self.name, specimen=specimen, metadata=self.metadata)


def open_image(
    source: Path | bytes | BinaryIO, *, name: str = "", answers: Acquisition | None = None, axes: str | None = None
) -> ImageSource:
    """Open a TIFF, OME-TIFF, ImageJ hyperstack, PNG, JPEG or the folder of an OME-Zarr.

    Parameters
    ----------
    source : path, bytes or seekable binary file
    name : str
        For messages; the path's where not given.
    answers : Acquisition or None
        Fills what the file leaves open.
    axes : str or None
        What the file's axes mean, slowest first, where the file does not say: ``"ZYX"``, ``"ZCYX"``, ``"TYX"``.

    Raises
    ------
    UnreadableImage
        If the bytes are broken, truncated, empty, or no image.
    UnsupportedImage
        If it is an image of a kind that is not handled.
    MetadataMissing
        If the meaning of an axis is open and `axes` does not say it.
    """
    from refocus.io.tiff import TiffSource

    if isinstance(source, Path):
        name = name or str(source)
        if source.is_dir():
            from refocus.io.zarr import ZarrSource

            return ZarrSource(source, name=name, answers=answers, axes=axes)
        try:
            file: BinaryIO = source.open("rb")
        except OSError as error:
            raise UnreadableImage(f"{name}: {error.strerror or error}.") from error
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or getattr(file, "name", "image")
    answers = answers or Acquisition()
    try:
        with contextlib.ExitStack() as closing:
            closing.callback(file.close)
            container = sniff(file.read(16))
            file.seek(0)
            if container != "tiff":
                return RasterSource(decode(file.read(), OWN_MACHINE), name=name, answers=answers)
            opened = TiffSource(file, name=name, answers=answers, axes=axes)
            closing.pop_all()
        return opened
    except InputError as error:
        message = str(error)
        raise error if message.startswith(name) else type(error)(f"{name}: {message}") from error


class RasterSource(ImageSource):
    """A PNG or JPEG, in memory."""

    def __init__(self, image: WireImage, *, name: str, answers: Acquisition) -> None:
        self._pixels = image.planes[0]
        self.name = name
        self.axes = "YXS" if image.is_color else "YX"
        self.shape = self._pixels.shape
        self.dtype = self._pixels.dtype
        self.acquisition = Acquisition(pixel_size_um=image.pixel_size_um).filled_from(answers)

    def plane(self, *, z: int = 0, c: int = 0, t: int = 0) -> npt.NDArray[Any]:
        """Return the image."""
        self._check_position(Z=z, C=c, T=t)
        return self._pixels


def check_finite(plane: npt.NDArray[Any], name: str) -> None:
    """Raise `UnreadableImage` if a plane of floats holds NaN or infinity."""
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        bad = int(np.count_nonzero(~np.isfinite(plane)))
        raise UnreadableImage(
            f"{name} has {bad} pixels of {plane.size} that are NaN or infinite; expected finite intensities. "
            "Replace them, or export the image again."
        )
