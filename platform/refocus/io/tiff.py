"""TIFF, OME-TIFF and ImageJ hyperstacks, plane by plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from refocus.errors import (
    ConfigurationError,
    InputError,
    MetadataMissing,
    StoreError,
    UnreadableImage,
    UnsupportedImage,
)
from refocus.io.microscopy import ImageSource
from refocus.io.tiff_chain import check_chain
from refocus.io.tiff_window import read_rows, read_segments
from refocus.wire.image import turned
from refocus.wire.ome import UNITS_UM
from refocus.zstack import AXES, Acquisition, Modality

_CONTRAST: Mapping[str, Modality] = {
    "Fluorescence": "fluorescence",
    "Brightfield": "brightfield",
    "Phase": "phase_contrast",
}
_COARSEST_PIXEL_UM = 25.0
# What an empty plane shrinks to: none, LZW, deflate by its two numbers, PackBits; newer codecs go further.
_TIGHTEST_PACKING = {1: 1, 5: 1500, 8: 1100, 32946: 1100, 32773: 64}
_TIGHTEST_PACKING_OF_ALL = 50_000
_ALWAYS_PLAUSIBLE_BYTES = 64 * 2**20


class TiffSource(ImageSource):
    """The first image series of a TIFF file."""

    def __init__(self, file: BinaryIO, *, name: str, answers: Acquisition, axes: str | None) -> None:
        self.name = name
        self._file = file
        self._length = file.seek(0, 2)
        file.seek(0)
        try:
            # What NDPI writes has offsets of its own kind.
            self._tiff = tifffile.TiffFile(file)
            if not self._tiff.is_ndpi:
                check_chain(file, self._length, name)
            self._series = series = _only_series(self._tiff, name)
            self._check_complete()
            _check_readable(series, name)
            said = _acquisitions(self._tiff)
        except (InputError, StoreError):
            # A store that does not answer says nothing about the image.
            raise
        except Exception as error:
            raise UnreadableImage(
                f"{name} cannot be read as TIFF ({type(error).__name__}: {error}). Is the file complete?"
            ) from error
        self._file_axes = _meaning_of(series, axes, name)
        sizes = dict(zip(self._file_axes, series.shape, strict=True))
        self.axes = "".join(axis for axis in AXES if axis in sizes)
        self.shape = tuple(sizes[axis] for axis in self.axes)
        self.dtype = series.dtype.newbyteorder("=")
        self._channels = tuple(each.filled_from(answers) for each in said)
        self.acquisition = self._channels[0]

    def acquisition_of(self, c: int) -> Acquisition:
        """What OME-XML says of one channel; the first one's where it does not tell them apart."""
        return self._channels[c] if c < len(self._channels) else self.acquisition

    @property
    def metadata(self) -> dict[str, Any]:
        """The OME-XML where there is one."""
        return {"ome_xml": self._tiff.ome_metadata} if self._tiff.is_ome else {}

    def plane(self, *, z: int = 0, c: int = 0, t: int = 0) -> npt.NDArray[Any]:
        """Read one plane; of a file that lies contiguous, only its own bytes are fetched."""
        self._check_position(Z=z, C=c, T=t)
        return self._decoded(self._page, {"T": t, "C": c, "Z": z})

    def _read_window(self, rows: slice, columns: slice, *, z: int, c: int, t: int) -> npt.NDArray[Any]:
        def cut(number: int) -> npt.NDArray[Any]:
            lies = "".join(axis for axis in self._file_axes if axis in "YXS")
            if lies not in ("YX", "YXS"):
                parts = {"Y": rows, "X": columns, "S": slice(None)}
                return self._page(number)[tuple(parts[axis] for axis in lies)]
            offset = self._offset_of(number)
            if offset is None:
                return read_segments(self._page_of(number), rows, columns)
            return read_rows(self._file, offset, self._page_shape, self._stored_dtype, rows, self.name)[:, columns]

        return self._decoded(cut, {"T": t, "C": c, "Z": z})

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        self._file.close()

    def _decoded(self, read: Callable[[int], npt.NDArray[Any]], position: Mapping[str, int]) -> npt.NDArray[Any]:
        leading = [axis for axis in self._file_axes if axis in position]
        lengths = [self.size(axis) for axis in leading]
        number = int(np.ravel_multi_index([position[axis] for axis in leading], lengths)) if leading else 0
        try:
            pixels = read(number)
        except (InputError, StoreError):
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UnreadableImage(f"{self.name}: plane {number} cannot be decoded: {reason}.") from error
        trailing = [axis for axis in self._file_axes if axis in "YXS"]
        if trailing != sorted(trailing, key="YXS".index):
            pixels = np.moveaxis(pixels, trailing.index("S"), -1)
        pixels = np.ascontiguousarray(pixels).astype(self.dtype, copy=False)
        return turned(pixels) if self._series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE else pixels

    @property
    def _page_shape(self) -> tuple[int, ...]:
        return tuple(n for a, n in zip(self._file_axes, self._series.shape, strict=True) if a in "YXS")

    @property
    def _stored_dtype(self) -> np.dtype:
        return self._series.dtype.newbyteorder(self._tiff.byteorder)

    def _offset_of(self, number: int) -> int | None:
        """Return where a plane begins that lies uncompressed and in one piece."""
        if self._series.dataoffset is not None:
            return self._series.dataoffset + number * math.prod(self._page_shape) * self._series.dtype.itemsize
        page = self._page_of(number)
        return page.dataoffsets[0] if page.is_contiguous else None

    def _page_of(self, number: int) -> tifffile.TiffPage | tifffile.TiffFrame:
        page = self._series.pages[number]
        if page is None:
            raise UnreadableImage(
                f"{self.name}: plane {number} is missing in the file. Of an OME-TIFF in several files, make one."
            )
        return page

    def _page(self, number: int) -> npt.NDArray[Any]:
        shape, offset = self._page_shape, self._offset_of(number)
        if offset is None:
            return self._page_of(number).asarray().reshape(shape)
        return read_rows(self._file, offset, shape, self._stored_dtype, slice(0, shape[0]), self.name)

    def _check_complete(self) -> None:
        # A header that promises more than the file holds: found now, before planes have been used.
        if self._series.dataoffset is not None:
            ends = [self._series.dataoffset + self._series.nbytes]
        else:
            pages = [page for page in self._series.pages if page is not None]
            self._check_plausible(pages)
            ends = [
                offset + count
                for page in pages
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
        if ends and max(ends) > self._length:
            raise UnreadableImage(
                f"{self.name} is truncated: its header promises {max(ends)} bytes and the file has {self._length}. "
                "Copy it again from the microscope."
            )

    def _check_plausible(self, pages: list[Any]) -> None:
        # A flipped bit in a length must not take the machine's memory: no codec packs that tight.
        lengths = [n for axis, n in zip(self._series.axes, self._series.shape, strict=True) if axis in "YXS"]
        promised = math.prod(lengths) * self._series.dtype.itemsize
        packing = _TIGHTEST_PACKING.get(int(self._series.keyframe.compression), _TIGHTEST_PACKING_OF_ALL)
        for page in pages:
            stored = min(sum(page.databytecounts), self._length)
            if promised > max(_ALWAYS_PLAUSIBLE_BYTES, packing * stored):
                raise UnreadableImage(
                    f"{self.name}: its header promises {promised} bytes a plane, lengths {lengths}, out of {stored}; "
                    "the header is damaged."
                )


def _only_series(tiff: tifffile.TiffFile, name: str) -> tifffile.TiffPageSeries:
    if not tiff.series or 0 in tiff.series[0].shape:
        raise UnreadableImage(f"{name} is a TIFF without an image.")
    kinds = [f"{series.shape} {series.dtype}" for series in tiff.series]
    if len(kinds) > 1:
        raise UnsupportedImage(
            f"{name} holds {len(kinds)} images, {', '.join(kinds[:4])}; expected planes of one shape and type. "
            "Save each image as a file of its own."
        )
    pages = tiff.series[0].pages if tiff.is_ome else ()
    # tifffile opens what lies beside the file; planes are read from this one alone, and their offsets are of another.
    elsewhere = [page.parent.filename for page in pages if page is not None and page.parent is not tiff]
    if elsewhere:
        raise UnsupportedImage(
            f"{name} is one of several files of one OME-TIFF: {len(elsewhere)} of its {len(pages)} planes lie in "
            f"others, such as {elsewhere[0]}. Save it as one file."
        )
    return tiff.series[0]


def _check_readable(series: tifffile.TiffPageSeries, name: str) -> None:
    # To NumPy, no type is float64.
    if series.keyframe.dtype is None or series.dtype.kind not in "biuf":
        raise UnsupportedImage(
            f"{name} has pixels of {series.keyframe.dtype or 'a type of its own'}; expected whole or real numbers."
        )
    if series.keyframe.imagedepth > 1:
        raise UnsupportedImage(
            f"{name} holds {series.keyframe.imagedepth} planes a page (SGI's volumetric TIFF); expected one. Save each "
            "plane as a page of its own, as OME-TIFF and ImageJ do."
        )
    compression = series.keyframe.compression
    try:
        tifffile.TIFF.DECOMPRESSORS[compression]
    except KeyError:
        raise UnsupportedImage(
            f"{name} is compressed by method {getattr(compression, 'name', compression)}, which is not read here; "
            "save it uncompressed, or with deflate, LZW or zstd."
        ) from None


def _meaning_of(series: tifffile.TiffPageSeries, answer: str | None, name: str) -> str:
    axes = series.axes
    if answer is not None and answer != axes:
        # What lies within a page is fixed by the page; what pages follow each other for is open to an answer.
        open_axes = [a for a, said in zip(answer, axes, strict=False) if said not in "YXS"]
        within = all(a == said for a, said in zip(answer, axes, strict=False) if said in "YXS")
        if len(answer) != len(axes) or not within or set(open_axes) - set("TCZ") or len(set(answer)) != len(answer):
            raise ConfigurationError(
                f"{name} has axes {axes} of lengths {series.shape}, so axes {answer!r} cannot be their meaning; "
                "T, C and Z, each once, can stand for axes before the rows."
            )
        return answer
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        lengths = ", ".join(str(n) for a, n in zip(axes, series.shape, strict=True) if a not in AXES)
        raise MetadataMissing(
            f"{name} has shape {series.shape} and does not say what its axis of length {lengths} means; "
            f"answer with axes: {'Z' * len(unknown)}{axes.lstrip(''.join(unknown))} (or T, C) in acquisition.yaml "
            "or with --axes."
        )
    return axes


def _acquisitions(tiff: tifffile.TiffFile) -> tuple[Acquisition, ...]:
    if tiff.is_ome and tiff.ome_metadata:
        return ome_acquisitions(tiff.ome_metadata)
    return (_acquisition_of_tags(tiff),)


def _acquisition_of_tags(tiff: tifffile.TiffFile) -> Acquisition:
    pixel_size_um = _resolution_um(tiff)
    if tiff.is_imagej and tiff.imagej_metadata:
        said = tiff.imagej_metadata
        scale = UNITS_UM.get(str(said.get("unit", "")))
        spacing = said.get("spacing")
        x_resolution = tiff.pages.first.tags.get("XResolution")
        per_unit = _ratio(x_resolution.value) if x_resolution is not None else 0.0
        return Acquisition(
            pixel_size_um=scale / per_unit if scale and per_unit > 0 else None,
            z_step_um=abs(float(spacing)) * scale if scale and spacing else None,
        )
    return Acquisition(pixel_size_um=pixel_size_um)


def ome_acquisitions(xml: str) -> tuple[Acquisition, ...]:
    """Read pixel size, z step, aperture, wavelength and contrast from OME-XML, in micrometres whatever its units.

    One for each channel that it describes, but at least one.
    """
    ome = tifffile.xml2dict(xml).get("OME", {})
    image = _first(ome.get("Image", {}))
    pixels = _first(image.get("Pixels", {}))
    channels = pixels.get("Channel", {})
    objective = _first(_first(ome.get("Instrument", {})).get("Objective", {}))

    def length(value: Any, unit: Any, default: str) -> float | None:
        scale = UNITS_UM.get(str(unit or default))
        return abs(float(value)) * scale if value and scale else None

    of_all = Acquisition(
        pixel_size_um=length(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit"), "µm"),
        z_step_um=length(pixels.get("PhysicalSizeZ"), pixels.get("PhysicalSizeZUnit"), "µm"),
        numerical_aperture=_positive(objective.get("LensNA")),
        refractive_index=_positive(_first(image.get("ObjectiveSettings", {})).get("RefractiveIndex")),
    )

    def with_light(channel: Mapping[str, Any]) -> Acquisition:
        wavelength = channel.get("EmissionWavelength") or channel.get("ExcitationWavelength")
        unit = channel.get("EmissionWavelengthUnit") or channel.get("ExcitationWavelengthUnit")
        contrast = _CONTRAST.get(str(channel.get("ContrastMethod", "")))
        return replace(of_all, modality=contrast, wavelength_um=length(wavelength, unit, "nm"))

    return tuple(with_light(_first(channel)) for channel in _listed(channels)) or (of_all,)


def _first(value: Any) -> Any:
    first: Any = next(iter(_listed(value)), {})
    return first if isinstance(first, dict) else {}


def _listed(value: Any) -> Sequence[Any]:
    """What occurs several times in XML is a list, what occurs once stands alone."""
    return value if isinstance(value, (list, tuple)) else [value]


def _positive(value: Any) -> float | None:
    return float(value) if value and float(value) > 0 else None


def _ratio(value: Any) -> float:
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return float(numerator) / float(denominator) if denominator else 0.0


def _resolution_um(tiff: tifffile.TiffFile) -> float | None:
    tags = tiff.pages.first.tags
    unit = {2: 25400.0, 3: 10000.0}.get(int(tags.valueof("ResolutionUnit", 1) or 1))
    per_unit = _ratio(tags.valueof("XResolution", 0) or 0)
    if unit is None or per_unit <= 0:
        return None
    size_um = unit / per_unit
    # Screens' and printers' dots an inch are no scale of a specimen.
    return size_um if size_um < _COARSEST_PIXEL_UM else None
