"""TIFF as it comes: from ImageJ, from OME writers, plain, big-endian, compressed, and broken."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile

from refocus.errors import ConfigurationError, InputError, MetadataMissing, UnreadableImage, UnsupportedImage
from refocus.io.microscopy import open_image
from refocus.io.tiff import ome_acquisitions
from refocus.zstack import Acquisition

STACK = np.random.default_rng(0).integers(0, 60_000, (6, 40, 50), np.uint16)
RGB = np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def page_by_page(pixels: np.ndarray, **options) -> bytes:
    """As cameras write: each plane, then its directory, without a word on what the pages mean."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for plane in pixels:
            writer.write(plane, contiguous=False, metadata=None, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 32)}], ids=str)
def test_where_white_is_zero_light_is_read(options) -> None:
    body = tiff(np.invert(STACK), photometric="miniswhite", metadata={"axes": "ZYX"}, **options)
    with open_image(body) as image:
        np.testing.assert_array_equal(image.plane(z=2), STACK[2])
        np.testing.assert_array_equal(image.window(slice(3, 30), slice(8, 41), z=5), STACK[5, 3:30, 8:41])


@pytest.mark.parametrize("options", [
    {}, {"byteorder": ">"}, {"bigtiff": True}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True},
    {"compression": "zstd", "byteorder": ">"}, {"tile": (16, 32)}, {"rowsperstrip": 7},
    {"tile": (16, 16), "compression": "deflate", "bigtiff": True, "byteorder": ">"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_however_it_is_laid_out_a_stack_reads_the_same(options, dtype):
    pixels = STACK.astype(dtype)
    with open_image(tiff(pixels, metadata={"axes": "ZYX"}, **options)) as image:
        assert (image.axes, image.shape, image.dtype) == ("ZYX", (6, 40, 50), np.dtype(dtype))
        assert image.dtype.isnative
        # Out of order, and one alone.
        for z in (5, 0, 3):
            np.testing.assert_array_equal(image.plane(z=z), pixels[z])


@pytest.mark.parametrize("write", [tiff, page_by_page])
def test_pages_without_a_meaning_ask_for_one_and_take_the_answer(write):
    data = write(STACK)
    with pytest.raises(MetadataMissing, match=r"axis of length 6 .* axes: ZYX"):
        open_image(data, name="plain.tif")
    for answer in ("ZYX", "TYX", "CYX"):
        with open_image(data, axes=answer) as image:
            assert image.axes == answer
            np.testing.assert_array_equal(image.plane(**{answer[0].lower(): 4}), STACK[4])


@pytest.mark.parametrize("answer", ["YX", "ZXY", "YXZ", "ZZYX", "PYX", "XYZ", "TZYX", "SYX"])
def test_an_answer_that_the_file_contradicts_is_refused(answer):
    with pytest.raises(ConfigurationError, match="cannot be their meaning"):
        open_image(tiff(STACK), axes=answer)


@pytest.mark.parametrize("answer", ["YXC", "YXZ", "CYX", "SYX"])
def test_colour_within_a_page_cannot_be_declared_something_else(answer):
    with pytest.raises(ConfigurationError, match="cannot be their meaning"):
        open_image(tiff(RGB, photometric="rgb"), axes=answer)


def test_an_imagej_hyperstack_keeps_its_axes_and_lengths():
    pixels = np.random.default_rng(2).integers(0, 255, (2, 5, 3, 20, 30), np.uint16)
    data = tiff(
        pixels, imagej=True, resolution=(1 / 0.325, 1 / 0.325),
        metadata={"axes": "TZCYX", "spacing": 0.5, "unit": "um"},
    )  # fmt: skip
    with open_image(data) as image:
        assert image.axes == "TCZYX"
        assert image.acquisition.pixel_size_um == pytest.approx(0.325)
        assert image.acquisition.z_step_um == 0.5
        np.testing.assert_array_equal(image.stack().pixels, pixels.transpose(0, 2, 1, 3, 4))
        np.testing.assert_array_equal(image.plane(t=1, z=4, c=2), pixels[1, 4, 2])


@pytest.mark.parametrize(("unit", "um"), [("um", 1), ("\\u00B5m", 1), ("micron", 1), ("nm", 1e-3), ("mm", 1e3)])
def test_imagej_lengths_count_in_their_unit(unit, um):
    data = tiff(STACK, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "spacing": -2.0, "unit": unit})
    said = open_image(data).acquisition
    # A negative spacing says that the stage went down.
    assert (said.pixel_size_um, said.z_step_um) == pytest.approx((0.25 * um, 2 * um))


def test_imagej_lengths_in_pixels_are_no_lengths():
    data = tiff(STACK, imagej=True, resolution=(1, 1), metadata={"axes": "ZYX", "spacing": 1.0, "unit": "pixel"})
    assert open_image(data).acquisition == Acquisition()


@pytest.mark.parametrize(("unit", "um"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("m", 1e6), ("Å", 1e-4), ("pm", 1e-6)])
def test_ome_lengths_count_in_their_unit(unit, um):
    data = tiff(STACK, ome=True, metadata={
        "axes": "ZYX", "PhysicalSizeX": 0.65 / um, "PhysicalSizeXUnit": unit,
        "PhysicalSizeZ": 0.3 / um, "PhysicalSizeZUnit": unit,
    })  # fmt: skip
    said = open_image(data).acquisition
    assert (said.pixel_size_um, said.z_step_um) == pytest.approx((0.65, 0.3), rel=1e-9)


def test_ome_lengths_without_a_unit_are_micrometres_and_in_reference_frames_unknown():
    xml = (
        '<OME><Image><Pixels PhysicalSizeX="0.2" PhysicalSizeZ="3" PhysicalSizeZUnit="reference frame"/></Image></OME>'
    )
    assert ome_acquisitions(xml) == (Acquisition(pixel_size_um=0.2),)


def test_ome_says_objective_medium_and_the_light_of_each_channel():
    xml = """<OME><Instrument ID="I"><Objective ID="O" LensNA="1.2"/></Instrument>
    <Image><ObjectiveSettings ID="O" RefractiveIndex="1.33"/><Pixels>
    <Channel EmissionWavelength="525" EmissionWavelengthUnit="nm" ContrastMethod="Fluorescence"/>
    <Channel EmissionWavelength="610" ContrastMethod="Brightfield"/></Pixels></Image></OME>"""
    assert ome_acquisitions(xml) == (
        Acquisition(modality="fluorescence", numerical_aperture=1.2, wavelength_um=0.525, refractive_index=1.33),
        Acquisition(modality="brightfield", numerical_aperture=1.2, wavelength_um=0.61, refractive_index=1.33),
    )


def test_dots_an_inch_of_a_screen_are_no_scale():
    assert open_image(tiff(STACK[0], resolution=(72, 72), resolutionunit="INCH")).acquisition.pixel_size_um is None
    fine = open_image(tiff(STACK[0], resolution=(40_000, 40_000), resolutionunit="CENTIMETER")).acquisition
    assert fine.pixel_size_um == pytest.approx(0.25)


def test_answers_fill_what_the_file_leaves_open_and_overrule_nothing():
    data = tiff(STACK, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "unit": "um"})
    said = open_image(data, answers=Acquisition(pixel_size_um=9.0, z_step_um=0.7, modality="brightfield")).acquisition
    assert said == Acquisition(pixel_size_um=0.25, z_step_um=0.7, modality="brightfield")


@pytest.mark.parametrize("options", [
    {"photometric": "rgb"}, {"photometric": "rgb", "compression": "zlib"},
    {"photometric": "rgb", "planarconfig": "separate"},
], ids=str)  # fmt: skip
def test_colour_comes_last_however_it_is_stored(options):
    stored = np.moveaxis(RGB, -1, 0).copy() if "planarconfig" in options else RGB
    with open_image(tiff(stored, **options)) as image:
        assert (image.axes, image.shape) == ("YXS", (40, 50, 3))
        np.testing.assert_array_equal(image.plane(), RGB)


def test_a_series_of_colour_planes():
    pixels = np.stack([RGB, 255 - RGB, RGB // 2, RGB // 3])
    with open_image(tiff(pixels, photometric="rgb", metadata={"axes": "ZYXS"})) as image:
        assert image.axes == "ZYXS"
        np.testing.assert_array_equal(image.plane(z=2), pixels[2])


def test_a_position_beyond_the_axis_is_named():
    with (
        open_image(tiff(STACK, metadata={"axes": "ZYX"})) as image,
        pytest.raises(ConfigurationError, match="6 positions along Z; asked for number 6"),
    ):
        image.plane(z=6)


@pytest.mark.parametrize("axis", ["c", "t"])
def test_an_axis_that_is_not_there_has_one_position(axis):
    with open_image(tiff(STACK, metadata={"axes": "ZYX"})) as image:
        np.testing.assert_array_equal(image.plane(z=1, **{axis: 0}), STACK[1])
        with pytest.raises(ConfigurationError, match=f"1 position along {axis.upper()}"):
            image.plane(z=1, **{axis: 1})


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.97, 0.999])
@pytest.mark.parametrize("write", [
    lambda: tiff(STACK, metadata={"axes": "ZYX"}),
    lambda: tiff(STACK, metadata={"axes": "ZYX"}, compression="zlib"),
    lambda: tiff(STACK, imagej=True, metadata={"axes": "ZYX"}),
    lambda: tiff(STACK, ome=True, metadata={"axes": "ZYX"}, compression="zlib"),
    lambda: page_by_page(STACK),
    lambda: page_by_page(STACK, compression="zlib"),
], ids=["plain", "compressed", "imagej", "ome", "pages", "compressed pages"])  # fmt: skip
def test_a_truncated_stack_is_never_a_shorter_stack(write, share):
    data = write()
    with pytest.raises(UnreadableImage, match=r"truncated|complete|missing|without an image"):
        open_image(data[: int(len(data) * share)], name="cut.tif", axes=None).stack()


def test_a_flipped_bit_in_compressed_data_is_unreadable():
    data = bytearray(tiff(STACK[0], compression="zlib"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        open_image(bytes(data)).plane()


def test_damage_anywhere_in_the_directories_is_an_input_error_or_harmless():
    rng = np.random.default_rng(3)
    whole = [
        tiff(STACK, metadata={"axes": "ZYX"}),
        tiff(STACK, imagej=True, metadata={"axes": "ZYX", "spacing": 0.5, "unit": "um"}, resolution=(3, 3)),
        tiff(STACK, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}, tile=(16, 16), compression="lzw"),
    ]
    refused = 0
    for number in range(300):
        data = bytearray(whole[number % 3])
        for at in rng.integers(0, 400, 2):
            data[at] = rng.integers(0, 256)
        try:
            with open_image(bytes(data)) as image:
                image.plane()
        except InputError:
            refused += 1
    assert refused > 100


def test_a_codec_that_is_not_read_is_named_when_opening():
    data = bytearray(tiff(STACK[0], compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags["Compression"].valueoffset
    data[at : at + 2] = (61234).to_bytes(2, "little")
    with pytest.raises(UnsupportedImage, match=r"61234.*save it"):
        open_image(bytes(data))


def test_planes_of_unequal_shape_or_type_are_refused_with_their_shapes():
    for second in (STACK[1, :20], STACK[1].astype(np.uint8)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(STACK[0], metadata=None)
            writer.write(second, metadata=None)
        with pytest.raises(UnsupportedImage, match=r"2 images, \(40, 50\) uint16, \((20|40), 50\)"):
            open_image(file.getvalue())


def test_complex_pixels_are_refused():
    with pytest.raises(UnsupportedImage, match="complex64"):
        open_image(tiff(STACK[0].astype(np.complex64)))


def test_an_ome_file_that_lost_planes_does_not_give_black_ones():
    data = tiff(STACK, ome=True, metadata={"axes": "ZYX"}).replace(b'SizeZ="6"', b'SizeZ="9"')
    with open_image(data) as image, pytest.raises(UnreadableImage, match="plane 6 is missing"):
        image.stack()


def ome_in_files(folder: Path) -> list[Path]:
    """One plane of STACK in each of two files that name one another, as Bio-Formats and Micro-Manager write series."""
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(2)
    )
    pixels = '<Pixels DimensionOrder="XYZCT" Type="uint16" SizeX="50" SizeY="40" SizeZ="2" SizeC="1" SizeT="1">'
    files = [folder / f"{z}.ome.tif" for z in range(2)]
    for z, file in enumerate(files):
        xml = f'<OME UUID="urn:uuid:{z}"><Image>{pixels}{planes}</Pixels></Image></OME>'
        tifffile.imwrite(file, STACK[z], description=xml, metadata=None)
    return files


def test_planes_in_other_files_are_never_read_from_this_one(tmp_path):
    files = ome_in_files(tmp_path)
    for file in files:
        with pytest.raises(UnsupportedImage, match=r"one of several files .* 1 of its 2 planes"):
            open_image(file)
    # In an object store nothing lies beside a file.
    with open_image(files[0].read_bytes()) as image:
        np.testing.assert_array_equal(image.plane(z=0), STACK[0])
        with pytest.raises(UnreadableImage, match="plane 1 is missing"):
            image.plane(z=1)


@pytest.mark.parametrize(
    "tail", [b"", bytes(range(200)), b"\x08\x00\x00\x00\x00\x00"], ids=["nothing", "noise", "no tags"]
)
def test_a_signature_without_an_image_is_unreadable(tail):
    with pytest.raises(UnreadableImage):
        open_image(b"II*\0" + tail)


def test_broken_xml_is_unreadable():
    data = tiff(STACK, ome=True, metadata={"axes": "ZYX"}).replace(b"<Pixels", b"<Pixe>>")
    with pytest.raises(InputError, match=r"cannot be read|does not say"):
        open_image(data)
