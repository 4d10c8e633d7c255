from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refocus.errors import InputError, UnsupportedImage
from refocus.io.microscopy import open_image
from refocus.io.writers import write_ome_tiff
from refocus.zstack import MODALITIES, Acquisition

lengths = st.none() | st.floats(1e-4, 1e4)
acquisitions = st.builds(
    Acquisition,
    modality=st.none() | st.sampled_from(MODALITIES),
    pixel_size_um=lengths,
    z_step_um=lengths,
    numerical_aperture=st.none() | st.floats(0.01, 1.5),
    wavelength_um=st.none() | st.floats(0.2, 2.0),
    refractive_index=st.none() | st.floats(1.0, 1.6),
)


@st.composite
def stacks(draw):
    axes = draw(st.sampled_from(["YX", "ZYX", "CYX", "TYX", "CZYX", "TZYX", "TCYX", "TCZYX", "YXS", "ZYXS", "TCZYXS"]))
    # Lengths of 1 are left out: OME has all five axes always, and cannot tell 1 from absent.
    sizes = {"S": st.sampled_from([3, 4]), "Y": st.integers(1, 9), "X": st.integers(1, 9)}
    shape = tuple(draw(sizes.get(axis, st.integers(2, 4))) for axis in axes)
    dtype = draw(st.sampled_from(["u1", "i1", "<u2", ">u2", "<i2", "<u4", ">i4", "<f4", ">f4", "<f8"]))
    elements = {"allow_nan": False} if dtype[-2] == "f" else None
    return axes, draw(arrays(dtype, shape, elements=elements))


@given(stack=stacks(), acquisition=acquisitions, compression=st.sampled_from([None, "zlib", "lzw"]))
@settings(deadline=None, max_examples=150)
def test_what_is_written_is_what_is_read(stack, acquisition, compression):
    axes, pixels = stack
    file = io.BytesIO()
    write_ome_tiff(file, pixels, axes, acquisition, compression=compression)
    with open_image(file.getvalue()) as image:
        assert image.axes == axes
        assert image.acquisition == acquisition
        np.testing.assert_array_equal(image.stack().pixels, pixels)


def test_tifffile_reads_the_same_with_axes_and_names():
    pixels = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.uint16).reshape(2, 3, 4, 5, 6)
    file = io.BytesIO()
    write_ome_tiff(file, pixels, "TCZYX", Acquisition(z_step_um=0.5), channel_names=["DAPI", "GFP <α>", "RFP & co"])
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "TCZYX"
        np.testing.assert_array_equal(tiff.asarray(), pixels)
        described = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in described["Channel"]] == ["DAPI", "GFP <α>", "RFP & co"]
    assert (described["PhysicalSizeZ"], described["PhysicalSizeZUnit"]) == (0.5, "µm")


def test_notes_travel_as_a_map_annotation():
    file = io.BytesIO()
    write_ome_tiff(file, np.zeros((4, 5), np.uint8), "YX", notes={"in_focus_plane": "20.5", "seed": "7"})
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        annotation = tifffile.xml2dict(tiff.ome_metadata)["OME"]["StructuredAnnotations"]["MapAnnotation"]
    assert {entry["K"]: str(entry["value"]) for entry in annotation["Value"]["M"]} == {
        "in_focus_plane": "20.5",
        "seed": "7",
    }


def test_an_uncompressed_stack_lies_in_one_piece_for_range_reads():
    file = io.BytesIO()
    write_ome_tiff(file, np.zeros((5, 40, 50), np.uint16), "ZYX")
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        assert tiff.series[0].dataoffset is not None
        assert len(tiff.pages) == 5


def test_a_write_that_fails_leaves_neither_half_a_file_nor_a_lost_old_one(tmp_path):
    target = tmp_path / "stack.ome.tif"
    write_ome_tiff(target, np.ones((4, 5), np.uint8), "YX")
    before = target.read_bytes()
    with pytest.raises(Exception, match=r"(?i)compression"):
        write_ome_tiff(target, np.zeros((4, 5), np.uint8), "YX", compression="no such")
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["stack.ome.tif"]


@pytest.mark.parametrize(("pixels", "axes", "names", "error", "said"), [
    (np.zeros((4, 5)), "ZYX", (), InputError, "2 axes"),
    (np.zeros((4, 5)), "XY", (), InputError, "out of order"),
    (np.zeros((0, 5), np.uint8), "YX", (), InputError, "at least one pixel"),
    (np.zeros((4, 5), bool), "YX", (), UnsupportedImage, "bool"),
    (np.zeros((4, 5), np.complex64), "YX", (), UnsupportedImage, "complex64"),
    (np.zeros((4, 5, 2), np.uint8), "YXS", (), UnsupportedImage, "2 samples"),
    (np.zeros((2, 4, 5), np.uint8), "CYX", ("DAPI",), InputError, "1 channel names came for 2"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(pixels, axes, names, error, said):
    with pytest.raises(error, match=said):
        write_ome_tiff(io.BytesIO(), pixels, axes, channel_names=names)
