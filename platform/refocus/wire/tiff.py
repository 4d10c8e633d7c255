"""TIFF in and out: pixels by tifffile, after `TiffHeader` has checked every claim; metadata carried through."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from refocus.errors import UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, Provenance, Tag, WireImage, check_values, turned
from refocus.wire.ome import UNITS_UM, is_ome, length_said_um, number_said
from refocus.wire.provenance import described
from refocus.wire.tiff_header import COMPRESSIONS, Directory, TiffHeader

# TIFF 6.0, SampleFormat: 1 unsigned, 2 signed, 3 float.
_KINDS = {
    (1, 8): "uint8", (1, 16): "uint16", (1, 32): "uint32",
    (2, 8): "int8", (2, 16): "int16", (2, 32): "int32",
    (3, 32): "float32", (3, 64): "float64",
}  # fmt: skip
_WHITE_IS_ZERO = 0
_GREY = (_WHITE_IS_ZERO, 1)
_RGB = (2, 6)
_PALETTE = 3
# TIFF 6.0, ExtraSamples: associated and unassociated.
_OPACITY = ((1,), (2,))
_RESOLUTION_TAGS = frozenset({282, 283, 296})


def decode_tiff(body: bytes, limits: ImageLimits) -> WireImage:
    """Return the image of a TIFF or OME-TIFF body: every full-size page is a plane."""
    header = TiffHeader(body, limits)
    first = header.pages[0]
    for page in header.pages:
        _check_kind(page)
        if _said_of(page) != _said_of(first):
            raise UnsupportedImage(
                f"Page {page.index} of the TIFF is {_said_of(page)} and the first is {_said_of(first)}; expected pages "
                "of one shape and type. Save them as files of their own."
            )
    description, charset = _text_of(bytes(first.description).rstrip(b"\0"))
    promised = re.search(r"^images=(\d+)", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    if promised and int(promised[1]) > len(header.pages):
        raise UnsupportedImage(
            f"ImageJ's description promises {promised[1]} images and the TIFF has {len(header.pages)} pages; "
            "save it as an ordinary TIFF stack."
        )
    planes, alpha = _read(body, header)
    check_values(planes)
    if first.photometric == _WHITE_IS_ZERO:
        planes = turned(planes)
    ome = description if is_ome(description) else ""
    return WireImage(
        planes,
        container="tiff",
        pixel_size_um=_pixel_size_um(first, description, header.byteorder),
        numerical_aperture=number_said(ome, "LensNA"),
        wavelength_um=length_said_um(ome, "EmissionWavelength", unit="nm"),
        refractive_index=number_said(ome, "RefractiveIndex"),
        alpha=alpha,
        description=description,
        tags=first.tags,
        options={
            "byteorder": header.byteorder,
            "bigtiff": header.is_big,
            "compression": COMPRESSIONS[first.compression] or "zlib",
            "predictor": first.predictor in (2, 3),
            "photometric": first.photometric if first.photometric in _GREY else 1,
            "extra_samples": first.extra_samples,
            "charset": charset,
            "tile_px": first.tile_px,
            "reductions": first.reductions,
            "further_pages": _further_pages(header.pages, most_bytes=len(body)),
        },
    )


def _further_pages(pages: Sequence[Directory], *, most_bytes: int) -> tuple[tuple[bytes, tuple[Tag, ...]], ...]:
    """What pages after the first say for themselves: descriptions and tags; nothing where none says anything new."""
    found = []
    for page in pages[1:]:
        # Any number of pages may point to the same bytes.
        most_bytes -= len(page.description)
        found.append((bytes(page.description).rstrip(b"\0") if most_bytes >= 0 else b"", page.tags))
    usual = [tag for tag in pages[0].tags if tag.code in _RESOLUTION_TAGS]
    return tuple(found) if any(said or any(tag not in usual for tag in tags) for said, tags in found) else ()


def _text_of(description: bytes) -> tuple[str, str]:
    """Return a description as text, and its encoding: TIFF allows ASCII alone, and instruments write their own."""
    try:
        return description.decode(), "utf-8"
    except UnicodeDecodeError:
        return description.decode("latin-1"), "latin-1"


def _bytes_of(description: str, charset: str) -> bytes:
    try:
        return description.encode(charset)
    except UnicodeEncodeError:
        return description.encode()


def _said_of(page: Directory) -> str:
    samples = f", {page.samples} samples a pixel" if page.samples > 1 else ""
    white = ", white is zero" if page.photometric == _WHITE_IS_ZERO else ""
    return f"{page.width_px} x {page.height_px} {_KINDS[page.sample_format, page.bits]}{samples}{white}"


def _check_kind(page: Directory) -> None:
    if page.bits == 1:
        raise UnsupportedImage(
            f"Page {page.index} of the TIFF is black and white (1 bit); there is no blur in it to undo. Send the image "
            "that it was made from."
        )
    if page.photometric == _PALETTE:
        raise UnsupportedImage(
            f"Page {page.index} of the TIFF has a colour map. Send grey levels without it, or convert it to RGB, which "
            "is what would come back."
        )
    if (page.sample_format, page.bits) not in _KINDS:
        kind = {1: "unsigned", 2: "signed", 3: "float"}.get(page.sample_format, f"format {page.sample_format}")
        raise UnsupportedImage(
            f"Page {page.index} of the TIFF holds {page.bits}-bit {kind} samples; expected integers of 8, 16 "
            "or 32 bit, or floats of 32 or 64. Convert it, keeping its intensity scale."
        )
    color = page.photometric in _RGB and page.samples in (3, 4)
    grey = page.photometric in _GREY and page.samples in (1, 2)
    if grey and page.samples == 2 and page.extra_samples[:1] not in _OPACITY:
        raise UnsupportedImage(
            f"Page {page.index} of the TIFF has 2 grey samples a pixel, and ExtraSamples does not call the second "
            "opacity (1 or 2), so it may be a channel. Send channels as pages."
        )
    if not (color or grey):
        raise UnsupportedImage(
            f"Page {page.index} of the TIFF has photometric interpretation {page.photometric} with {page.samples} "
            "samples a pixel; expected grey or RGB. Send channels as pages."
        )


def _read(body: bytes, header: TiffHeader) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    first = header.pages[0]
    colors = 3 if first.samples >= 3 else 1
    if all(page.starts_at is not None for page in header.pages):
        pages = [_raw(body, page, header.byteorder) for page in header.pages]
    else:
        # OME-XML may name other files: this reader is never to open one.
        with tifffile.TiffFile(io.BytesIO(body), _multifile=False) as file:
            pages = [_decoded(file, page) for page in header.pages]
    stack = pages[0][None] if len(pages) == 1 else np.stack(pages)
    alpha = np.ascontiguousarray(stack[..., colors]) if first.samples > colors else None
    return np.ascontiguousarray(stack[..., :3] if colors == 3 else stack[..., 0]), alpha


def _raw(body: bytes, page: Directory, byteorder: str) -> npt.NDArray[Any]:
    shape = (page.height_px, page.width_px, page.samples)
    kind = np.dtype(_KINDS[page.sample_format, page.bits])
    assert page.starts_at is not None
    stored = np.frombuffer(body, kind.newbyteorder(byteorder), math.prod(shape), page.starts_at)  # type: ignore[arg-type]
    return stored.astype(kind, copy=False).reshape(shape)


def _decoded(file: tifffile.TiffFile, page: Directory) -> npt.NDArray[Any]:
    shape = (page.height_px, page.width_px, page.samples)
    pixels = np.asarray(file.pages[page.index].asarray(maxworkers=1))
    if pixels.size != math.prod(shape) or pixels.dtype != _KINDS[page.sample_format, page.bits]:
        raise UnreadableImage(f"Page {page.index} of the TIFF decodes to {pixels.shape}; it is damaged.")
    if page.planar == 2 and page.samples > 1:
        return np.moveaxis(pixels.reshape(page.samples, *shape[:2]), 0, 2)
    return pixels.reshape(shape)


def _pixel_size_um(page: Directory, description: str, byteorder: str) -> float | None:
    if is_ome(description) and number_said(description, "PhysicalSizeX") is not None:
        return _plausible_um(length_said_um(description, "PhysicalSizeX", unit="µm") or 0.0)
    values = {tag.code: tag for tag in page.tags}
    resolution = values.get(282)
    if resolution is None or len(resolution.value) != 8:
        return None
    numerator, denominator = np.frombuffer(resolution.value, byteorder + "u4").tolist()
    if not numerator or not denominator:
        return None
    spacing = denominator / numerator
    if description.startswith("ImageJ="):
        line = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        unit_um = None if line is None else UNITS_UM.get(line[1].strip())
        return None if unit_um is None else _plausible_um(spacing * unit_um)
    units = values.get(296)
    code = int(np.frombuffer(units.value[:2], byteorder + "u2")[0]) if units and len(units.value) >= 2 else 2
    return _plausible_um(spacing * {2: 25_400.0, 3: 10_000.0}[code]) if code in (2, 3) else None


def _plausible_um(pixel_size_um: float) -> float | None:
    # Screens' and printers' 72 to 600 dots an inch (42 to 350 um) are no scale of a specimen.
    return pixel_size_um if 0.001 < pixel_size_um < 40 else None


def encode_tiff(image: WireImage, provenance: Provenance | None) -> bytes:
    """Return `image` as a TIFF written as it was read, provenance added to its description."""
    options = image.options
    byteorder = options.get("byteorder", "<")
    compression = options.get("compression", "none")
    white_is_zero = not image.is_color and options.get("photometric") == _WHITE_IS_ZERO
    planes = turned(image.planes) if white_is_zero else image.planes
    extra: dict[str, Any] = {}
    if image.alpha is not None:
        color = planes if image.is_color else planes[..., None]
        planes = np.concatenate([color, image.alpha[..., None]], axis=3)
        extra = {"extrasamples": [int(kind) for kind in options.get("extra_samples", ())][:1] or [2]}
    description = described(image.description, provenance)
    reductions = options.get("reductions", ())
    laid_out: dict[str, Any] = {
        "photometric": "rgb" if image.is_color else int(options.get("photometric", 1)),
        "planarconfig": "contig" if planes.ndim == 4 else None,
        "compression": None if compression == "none" else compression,
        "predictor": bool(options.get("predictor")) and compression != "none",
        "tile": _tile(options.get("tile_px")),
        **extra,
    }
    said = _bytes_of(description, options.get("charset", "utf-8")), image.tags
    further = options.get("further_pages", ())
    # Planes that were added say nothing.
    each = [said, *further, *[(b"", ())] * (len(planes) - 1 - len(further))] if further else [said]
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, bigtiff=bool(options.get("bigtiff")), byteorder=byteorder) as file:
        for (text, tags), pages in zip(each, np.split(planes, len(each)), strict=True):
            file.write(
                pages,
                subifds=len(reductions),
                description=text or None,
                metadata=None,
                software=False,
                extratags=[
                    (tag.code, tag.dtype, tag.count, tag.value, True)
                    for tag in tags
                    if tag.code not in _RESOLUTION_TAGS
                ],
                **_resolution(image, tags, byteorder),
                **laid_out,
            )
            for reduction in reductions:
                file.write(_reduced(pages, reduction), subfiletype=1, metadata=None, software=False, **laid_out)
    return sink.getvalue()


def _tile(tile_px: tuple[int, int] | None) -> tuple[int, int] | None:
    """Sides that the format allows; others become strips."""
    return None if tile_px is None or any(side % 16 for side in tile_px) else tile_px


def _reduced(planes: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    """Means over squares of so many pixels a side; those at the last rows and columns over what there is of them."""
    means: npt.NDArray[Any] = planes
    for axis in (1, 2):
        starts = np.arange(0, planes.shape[axis], by)
        counts = np.diff(starts, append=planes.shape[axis])
        sums = np.add.reduceat(means, starts, axis=axis, dtype=np.float64)
        means = sums / counts.reshape(-1, *(1,) * (planes.ndim - axis - 1))
    return (np.rint(means) if planes.dtype.kind in "ui" else means).astype(planes.dtype)


def _resolution(image: WireImage, tags: Sequence[Tag], byteorder: str) -> dict[str, Any]:
    """As a page's own tags say it, else those of the first page, else the image's pixel size."""
    own = {tag.code: tag.value for tag in tags if tag.code in _RESOLUTION_TAGS}
    raw = own or {tag.code: tag.value for tag in image.tags if tag.code in _RESOLUTION_TAGS}
    if len(raw.get(282, b"")) == len(raw.get(283, b"")) == 8:
        x, y = (tuple(np.frombuffer(raw[code], byteorder + "u4").tolist()) for code in (282, 283))
        unit = int(np.frombuffer(raw[296][:2], byteorder + "u2")[0]) if len(raw.get(296, b"")) >= 2 else 2
        # A bare ratio says nothing where the size is known; ImageJ's is in the unit of its description.
        in_words = image.description.startswith("ImageJ=")
        says_size = unit in (2, 3) or (unit == 1 and (image.pixel_size_um is None or in_words))
        # Nonsense that was not asked for need not come back.
        if says_size and all(x) and all(y):
            return {"resolution": (x, y), "resolutionunit": unit}
    if image.pixel_size_um is None:
        return {}
    per_cm = 1e4 / image.pixel_size_um
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
