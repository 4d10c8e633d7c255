from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile

from refocus.wire.codec import decode, encode, from_array
from refocus.wire.image import Provenance

from .conftest import tiff_bytes

PROVENANCE = Provenance("deep_r", "sha256:abc", {"note": "a < b"})
OME = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


def test_ome_metadata_come_back_with_one_annotation_more(grey16):
    body = tiff_bytes(
        np.stack([grey16, grey16]), ome=True,
        metadata={"axes": "CYX", "PhysicalSizeX": 0.325, "PhysicalSizeXUnit": "µm",
                  "Channel": {"Name": ["DAPI", "TuJ1"]}},
    )  # fmt: skip
    image = decode(body)
    assert image.pixel_size_um == 0.325
    answer = encode(decode(encode(image, None, PROVENANCE)), None, PROVENANCE)
    with tifffile.TiffFile(io.BytesIO(answer)) as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        root = ElementTree.fromstring(file.ome_metadata)
    assert [c.get("Name") for c in root.findall(".//o:Channel", OME)] == ["DAPI", "TuJ1"]
    notes = root.findall(".//o:StructuredAnnotations/o:MapAnnotation/o:Value", OME)
    # Refocused twice, annotated once.
    assert len(notes) == 1
    assert {m.get("K"): m.text for m in notes[0]} == {"model": "deep_r", "digest": "sha256:abc", "note": "a < b"}


def test_ome_says_the_optics_in_any_unit(grey16):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="I:0"><Objective ID="O:0" '
        'LensNA="1.3"/></Instrument><Image ID="Image:0"><ObjectiveSettings ID="O:0" RefractiveIndex="1.515"/>'
        '<Pixels PhysicalSizeX="108" PhysicalSizeXUnit="nm"><Channel EmissionWavelength="5.25E2"/>'
        '<Channel EmissionWavelength="0.6" EmissionWavelengthUnit="µm"/></Pixels></Image></OME>'
    )
    image = decode(tiff_bytes(grey16, description=xml.encode(), metadata=None))
    assert image.numerical_aperture == 1.3
    assert image.refractive_index == 1.515
    assert image.wavelength_um == pytest.approx(0.525)
    assert image.pixel_size_um == pytest.approx(0.108)
    ascii_only = xml.replace('"108" PhysicalSizeXUnit="nm"', '"0.108" PhysicalSizeXUnit="&#181;m"')
    assert decode(tiff_bytes(grey16, description=ascii_only.encode(), metadata=None)).pixel_size_um == 0.108
    nonsense = xml.replace('LensNA="1.3"', 'LensNA="NaN"').replace("5.25E2", "1e999")
    image = decode(tiff_bytes(grey16, description=nonsense.encode(), metadata=None))
    assert image.numerical_aperture is None
    assert image.wavelength_um is None
    assert decode(tiff_bytes(grey16, description='LensNA="0.5"', metadata=None)).numerical_aperture is None


def test_ome_is_known_by_its_root_however_its_names_begin(grey16):
    xml = (
        '<o:OME xmlns:o="http://www.openmicroscopy.org/Schemas/OME/2016-06"><o:Image><o:Pixels PhysicalSizeX="1080" '
        'PhysicalSizeXUnit="Å"/></o:Image></o:OME>'
    )
    image = decode(tiff_bytes(grey16, description=xml.encode(), metadata=None))
    assert image.pixel_size_um == pytest.approx(0.108)
    assert decode(encode(image, None, PROVENANCE)).description.count("<o:MapAnnotation") == 1


@pytest.mark.parametrize(("unit", "um"), [("micron", 0.25), ("nm", 0.25), ("pixel", None)])
def test_imagej_lengths_count_in_their_unit(grey16, unit, um):
    per_unit = 4 if unit != "nm" else 0.004
    body = tiff_bytes(grey16, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    assert decode(body).pixel_size_um == (um if um is None else pytest.approx(um))


def test_imagej_metadata_come_back(grey16):
    body = tiff_bytes(
        np.stack([grey16, grey16]), imagej=True, resolution=(1 / 0.5, 1 / 0.5),
        metadata={"axes": "CYX", "unit": "um", "Labels": ["first", "second"], "Ranges": (0.0, 9.0, 1.0, 5.0)},
    )  # fmt: skip
    image = decode(body)
    # The resolution tag is a ratio of 32-bit integers.
    assert image.pixel_size_um is not None
    assert abs(image.pixel_size_um - 0.5) < 1e-6
    with tifffile.TiffFile(io.BytesIO(encode(image, None, PROVENANCE))) as file:
        assert file.is_imagej
        assert file.imagej_metadata["Labels"] == ["first", "second"]
        assert tuple(file.imagej_metadata["Ranges"]) == (0.0, 9.0, 1.0, 5.0)
        assert file.imagej_metadata["refocus_digest"] == "sha256:abc"
        assert file.series[0].shape == (2, 37, 53)


def test_resolution_tags_and_free_text_come_back(rgb8):
    body = tiff_bytes(
        rgb8, photometric="rgb", description="slide 7", resolution=(40_000, 40_000), resolutionunit="CENTIMETER",
        software="MicroManager", datetime="2026:01:02 03:04:05", metadata=None,
    )  # fmt: skip
    image = decode(body)
    assert image.pixel_size_um == 0.25
    with tifffile.TiffFile(io.BytesIO(encode(image, None, PROVENANCE))) as file:
        page = file.pages[0]
        assert page.tags["XResolution"].value == (40_000, 1)
        assert page.tags["Software"].value == "MicroManager"
        assert page.tags["DateTime"].value == "2026:01:02 03:04:05"
        assert page.description == "slide 7\nRefocus: model=deep_r; digest=sha256:abc; note=a < b"


def test_a_pixel_size_is_written_where_the_resolution_has_no_unit(grey16):
    image = decode(tiff_bytes(grey16))
    assert image.pixel_size_um is None
    told = encode(replace(image, pixel_size_um=0.25), None, PROVENANCE)
    assert decode(told).pixel_size_um == pytest.approx(0.25)


def test_screen_resolutions_are_no_pixel_size(rgb8):
    assert decode(tiff_bytes(rgb8, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")).pixel_size_um is None


def test_png_text_and_scale_come_back(grey16):
    first = encode(from_array(grey16, pixel_size_um=0.25), "png", Provenance("a", "1"))
    image = decode(first)
    assert image.pixel_size_um == 0.25
    answer = encode(image, None, PROVENANCE)
    names = [name for name, _ in decode(answer).chunks]
    assert names.count(b"pHYs") == 1
    assert b"digest=sha256:abc" in answer
    np.testing.assert_array_equal(imagecodecs.png_decode(answer), grey16)


def test_a_tiff_answer_to_a_png_keeps_the_pixel_size(grey16):
    image = decode(encode(from_array(grey16, pixel_size_um=0.25), "png"))
    assert decode(encode(image, "tiff", PROVENANCE)).pixel_size_um == 0.25
