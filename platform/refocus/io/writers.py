"""OME-TIFF: pixels and how they were taken, for everybody's software to read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree as ET

import numpy.typing as npt
import tifffile

from refocus.errors import InputError, UnsupportedImage
from refocus.wire.files import whole_file
from refocus.zstack import Acquisition, Modality, ZStack

_NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_OME_TYPES: Mapping[str, str] = {
    "int8": "int8", "int16": "int16", "int32": "int32", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32",
    "float32": "float", "float64": "double",
}  # fmt: skip
_CONTRAST: Mapping[Modality, str] = {
    "fluorescence": "Fluorescence",
    "brightfield": "Brightfield",
    "phase_contrast": "Phase",
}
# Classic TIFF counts bytes in 32 bits; some room for its directories.
_CLASSIC_BYTES = 2**32 - 2**25


def write_ome_tiff(
    target: Path | BinaryIO,
    pixels: npt.NDArray[Any],
    axes: str,
    acquisition: Acquisition | None = None,
    *,
    channel_names: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
    compression: str | None = None,
) -> None:
    """Write pixels as one OME-TIFF, a page a plane, as the OME schema of 2016-06 says.

    A file that is named by its path is there complete or not at all. What :func:`refocus.io.microscopy.open_image`
    reads back is what was written: pixels bit by bit, lengths to the last digit. Axes of length 1 are not told
    apart from axes that are not there: OME always has all five.

    Parameters
    ----------
    target : path or writable, seekable binary file
    pixels : ndarray
        (u)int of 8 to 32 bits, float32 or float64.
    axes : str
        Letters of ``"TCZYXS"`` in that order, one an axis.
    acquisition : Acquisition or None
    channel_names : sequence of str
        One a channel, or none.
    notes : mapping of str to str
        Written as a map annotation of the image.
    compression : str or None
        ``"zlib"``, ``"zstd"``, ``"lzw"``. Without, the file can be read by byte ranges.

    Raises
    ------
    InputError
        If axes, shape and channel names do not fit together.
    UnsupportedImage
        If OME has no such pixel type, or colour is not of 3 or 4 samples.
    """
    stack = ZStack(pixels, axes, acquisition or Acquisition())
    if pixels.size == 0:
        raise InputError(f"pixels of shape {pixels.shape} came; an image has at least one pixel.")
    if pixels.dtype.name not in _OME_TYPES:
        raise UnsupportedImage(f"pixels are {pixels.dtype}; OME-TIFF holds {', '.join(_OME_TYPES)}. Convert them.")
    if "S" in axes and stack.size("S") not in (3, 4):
        raise UnsupportedImage(f"colour of {stack.size('S')} samples came; expected 3 (RGB) or 4 (RGBA).")
    if channel_names and len(channel_names) != stack.size("C"):
        raise InputError(f"{len(channel_names)} channel names came for {stack.size('C')} channels; expected one each.")
    xml = _ome_xml(stack, tuple(channel_names), dict(notes or {}))
    plane = 3 if "S" in axes else 2
    pages = pixels.reshape(-1, *pixels.shape[-plane:])
    if not isinstance(target, Path):
        _write(target, pages, xml, is_rgb="S" in axes, compression=compression)
        return
    with whole_file(target) as unfinished, unfinished.open("wb") as file:
        _write(file, pages, xml, is_rgb="S" in axes, compression=compression)


def _write(file: BinaryIO, pages: npt.NDArray[Any], xml: bytes, *, is_rgb: bool, compression: str | None) -> None:
    samples = pages.shape[-1] if is_rgb else 1
    with tifffile.TiffWriter(file, bigtiff=pages.nbytes > _CLASSIC_BYTES) as tiff:
        tiff.write(
            pages,
            photometric="rgb" if is_rgb else "minisblack",
            planarconfig="contig" if is_rgb else None,
            extrasamples=["unassalpha"] if samples == 4 else None,
            description=xml,
            metadata=None,
            compression=compression,
            software=False,
        )


def _ome_xml(stack: ZStack, channel_names: tuple[str, ...], notes: dict[str, str]) -> bytes:
    acquisition, samples = stack.acquisition, stack.size("S")
    root = ET.Element(
        "OME",
        {
            "xmlns": _NAMESPACE,
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": f"{_NAMESPACE} {_NAMESPACE}/ome.xsd",
        },
    )
    has_objective = acquisition.numerical_aperture is not None or acquisition.refractive_index is not None
    if has_objective:
        instrument = ET.SubElement(root, "Instrument", ID="Instrument:0")
        ET.SubElement(instrument, "Objective", {"ID": "Objective:0", **_said("LensNA", acquisition.numerical_aperture)})
    image = ET.SubElement(root, "Image", ID="Image:0", Name=stack.source)
    if has_objective:
        ET.SubElement(image, "InstrumentRef", ID="Instrument:0")
        index = _said("RefractiveIndex", acquisition.refractive_index)
        ET.SubElement(image, "ObjectiveSettings", {"ID": "Objective:0", **index})
    sizes = {f"Size{axis}": str(stack.size(axis)) for axis in "XYZCT"}
    sizes["SizeC"] = str(stack.size("C") * samples)
    pixels = ET.SubElement(
        image,
        "Pixels",
        {
            "ID": "Pixels:0",
            "DimensionOrder": "XYZCT",
            "Type": _OME_TYPES[stack.pixels.dtype.name],
            **sizes,
            **_length("PhysicalSizeX", acquisition.pixel_size_um),
            **_length("PhysicalSizeY", acquisition.pixel_size_um),
            **_length("PhysicalSizeZ", acquisition.z_step_um),
        },
    )
    for number in range(stack.size("C")):
        channel = {"ID": f"Channel:0:{number}", "SamplesPerPixel": str(samples)}
        if channel_names:
            channel["Name"] = channel_names[number]
        ET.SubElement(pixels, "Channel", channel | _light(acquisition))
    planes = math.prod(stack.size(axis) for axis in "TCZ")
    ET.SubElement(pixels, "TiffData", IFD="0", PlaneCount=str(planes))
    if notes:
        ET.SubElement(image, "AnnotationRef", ID="Annotation:0")
        annotation = ET.SubElement(ET.SubElement(root, "StructuredAnnotations"), "MapAnnotation", ID="Annotation:0")
        value = ET.SubElement(annotation, "Value")
        for key, text in notes.items():
            ET.SubElement(value, "M", K=key).text = text
    # TIFF's description is ASCII: the micro sign travels as a character reference.
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ET.tostring(root, encoding="us-ascii", xml_declaration=False)


def _light(acquisition: Acquisition) -> dict[str, str]:
    said = {}
    if acquisition.modality is not None:
        said["ContrastMethod"] = _CONTRAST[acquisition.modality]
    if acquisition.wavelength_um is not None:
        kind = "ExcitationWavelength" if acquisition.modality == "brightfield" else "EmissionWavelength"
        said |= _length(kind, acquisition.wavelength_um)
    return said


def _length(name: str, value_um: float | None) -> dict[str, str]:
    return {} if value_um is None else {name: repr(float(value_um)), f"{name}Unit": "µm"}


def _said(name: str, value: float | None) -> dict[str, str]:
    return {} if value is None else {name: repr(float(value))}
