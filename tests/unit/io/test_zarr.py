from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from refocus.errors import ConfigurationError, MetadataMissing, UnreadableImage, UnsupportedImage
from refocus.io.microscopy import open_image
from refocus.io.zarr import zarr_roots
from refocus.zstack import Acquisition

TYPES = {"T": "time", "C": "channel"}
STACK = np.random.default_rng(0).integers(0, 60_000, (7, 20, 30), np.uint16)


def described(axes: str, *, unit: str | None, scale: list[float]) -> dict:
    return {
        "axes": [
            {"name": axis.lower(), "type": TYPES.get(axis, "space")}
            | ({"unit": unit} if unit and axis in "ZYX" else {})
            for axis in axes
        ],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }


def ome_zarr(
    folder: Path, pixels: np.ndarray, axes: str, *, version: str, unit: str | None = "micrometer",
    scale: list[float] | None = None, chunks: tuple[int, ...] | None = None, shards: tuple[int, ...] | None = None,
) -> Path:  # fmt: skip
    image = described(axes, unit=unit, scale=scale or [1.0] * len(axes))
    attributes = {"multiscales": [{**image, "version": "0.4"}]}
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
    group = zarr.create_group(folder, zarr_format=2 if version == "0.4" else 3, attributes=attributes)
    array = group.create_array(
        "0", shape=pixels.shape, dtype=pixels.dtype, chunks=chunks or tuple(min(8, n) for n in pixels.shape),
        shards=shards,
    )  # fmt: skip
    array[...] = pixels
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape"), [("TCZYX", (2, 3, 4, 9, 11)), ("ZYX", (5, 9, 11)), ("CYX", (2, 9, 11)), ("YX", (9, 11))]
)
def test_both_versions_read_as_they_were_written(tmp_path, version, axes, shape):
    pixels = np.random.default_rng(1).integers(0, 60_000, shape, np.uint16)
    scale = [1.0, 1.0, 0.5, 0.2, 0.2][-len(axes) :]
    with open_image(ome_zarr(tmp_path / "a.zarr", pixels, axes, version=version, scale=scale)) as image:
        assert (image.axes, image.shape, image.dtype) == (axes, shape, np.dtype("uint16"))
        assert image.acquisition == Acquisition(pixel_size_um=0.2, z_step_um=0.5 if "Z" in axes else None)
        np.testing.assert_array_equal(image.stack().pixels, pixels)
        assert "datasets" in image.metadata["multiscales"]


def test_sharded_and_big_endian_arrays_read_natively(tmp_path):
    folder = ome_zarr(
        tmp_path / "a.zarr", STACK.astype(">u2"), "ZYX", version="0.5", chunks=(1, 10, 10), shards=(2, 20, 30)
    )
    with open_image(folder) as image:
        assert image.dtype.isnative
        np.testing.assert_array_equal(image.plane(z=6), STACK[6])


def test_axes_may_come_in_any_order(tmp_path):
    with open_image(ome_zarr(tmp_path / "a.zarr", STACK.transpose(1, 2, 0), "YXZ", version="0.5")) as image:
        assert image.axes == "ZYX"
        np.testing.assert_array_equal(image.stack().pixels, STACK)


@pytest.mark.parametrize(
    ("unit", "um"), [("micrometer", 1), ("nanometer", 1e-3), ("millimeter", 1e3), ("angstrom", 1e-4)]
)
def test_lengths_count_in_their_unit(tmp_path, unit, um):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.4", unit=unit, scale=[2.0, 0.5, 0.5])
    said = open_image(folder).acquisition
    assert (said.z_step_um, said.pixel_size_um) == pytest.approx((2 * um, 0.5 * um))


def test_a_scale_without_a_unit_is_no_length_and_the_answer_fills_it(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.4", unit=None)
    assert open_image(folder).acquisition == Acquisition()
    assert open_image(folder, answers=Acquisition(z_step_um=0.3)).acquisition.z_step_um == 0.3


def test_a_scale_of_the_whole_image_multiplies_that_of_the_resolution(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.5", scale=[1.0, 0.5, 0.5])
    group = zarr.open_group(folder, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [3.0, 0.1, 0.1]}]
    group.attrs["ome"] = ome
    said = open_image(folder).acquisition
    assert (said.z_step_um, said.pixel_size_um) == pytest.approx((3.0, 0.05))


def test_chunks_of_several_planes_are_read_once_for_all_of_them(tmp_path, monkeypatch):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.5", chunks=(4, 20, 30))
    image = open_image(folder)
    reads = []
    read = image._read
    monkeypatch.setattr(image, "_read", lambda where: reads.append(where) or read(where))
    for z in range(7):
        np.testing.assert_array_equal(image.plane(z=z), STACK[z])
    assert [where[0] for where in reads] == [slice(0, 4), slice(4, 7)]


def test_a_single_image_in_bioformats2raw_layout_is_found(tmp_path):
    ome_zarr(tmp_path / "a.zarr" / "0", STACK, "ZYX", version="0.4")
    zarr.create_group(tmp_path / "a.zarr", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    np.testing.assert_array_equal(open_image(tmp_path / "a.zarr").plane(z=3), STACK[3])
    ome_zarr(tmp_path / "a.zarr" / "1", STACK, "ZYX", version="0.4")
    with pytest.raises(UnsupportedImage, match="2 images; name one"):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("key", ["plate", "well"])
def test_a_plate_asks_for_one_of_its_fields(tmp_path, key):
    zarr.create_group(tmp_path / "p.zarr", attributes={"ome": {"version": "0.5", key: {}}})
    with pytest.raises(UnsupportedImage, match="one of its fields"):
        open_image(tmp_path / "p.zarr")


def test_an_image_that_does_not_name_its_axes_asks_for_them(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.4")
    group = zarr.open_group(folder, mode="r+")
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}], "version": "0.1"}]
    with pytest.raises(MetadataMissing, match="answer with axes, such as ZYX"):
        open_image(folder)
    assert open_image(folder, axes="ZYX").axes == "ZYX"
    with pytest.raises(ConfigurationError, match="cannot be their meaning"):
        open_image(folder, axes="TCZYX")


@pytest.mark.parametrize(("answer", "z_step_um"), [("ZYX", 0.5), ("TYX", None)])
def test_an_answer_leaves_lengths_along_the_axes_that_it_confirms(tmp_path, answer, z_step_um):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.5", scale=[0.5, 0.25, 0.25])
    assert open_image(folder, axes=answer).acquisition == Acquisition(pixel_size_um=0.25, z_step_um=z_step_um)


def test_an_axis_that_is_none_of_ours_is_named(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.4")
    group = zarr.open_group(folder, mode="r+")
    image = described("ZYX", unit=None, scale=[1.0] * 3)
    image["axes"][0] = {"name": "lifetime"}
    group.attrs["multiscales"] = [image]
    with pytest.raises(UnsupportedImage, match="'lifetime'"):
        open_image(folder)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_broken_chunk_is_unreadable(tmp_path, version):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version=version)
    chunk = next(path for path in sorted((folder / "0").rglob("*")) if path.is_file() and path.name[0] not in ".z")
    chunk.write_bytes(chunk.read_bytes()[:5])
    with open_image(folder) as image, pytest.raises(UnreadableImage, match="chunk cannot be decoded"):
        image.stack()


def test_a_folder_that_lost_its_array_or_its_metadata_is_unreadable(tmp_path):
    folder = ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.5")
    shutil.rmtree(folder / "0")
    with pytest.raises(UnreadableImage, match="complete"):
        open_image(folder)
    (folder / "zarr.json").write_text("{ no json")
    with pytest.raises(UnreadableImage):
        open_image(folder)
    zarr.create_group(tmp_path / "b.zarr").create_array("raw", shape=(3, 4), dtype="u1")
    with pytest.raises(UnreadableImage, match=r"without OME metadata.*raw"):
        open_image(tmp_path / "b.zarr")


def test_a_folder_that_is_no_zarr_is_unreadable(tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(UnreadableImage, match=r"a folder and no OME-Zarr.*zarr\.json or \.zgroup"):
        open_image(tmp_path)


def test_positions_beyond_an_axis_are_named(tmp_path):
    with (
        open_image(ome_zarr(tmp_path / "a.zarr", STACK, "ZYX", version="0.5")) as image,
        pytest.raises(ConfigurationError, match="7 positions along Z"),
    ):
        image.plane(z=7)


def test_outermost_groups_are_found_among_keys():
    keys = [
        "raw/a.zarr/zarr.json", "raw/a.zarr/0/zarr.json", "raw/a.zarr/0/c/0/0",
        "raw/b.zarr/.zgroup", "raw/b.zarr/.zattrs", "raw/b.zarr/0/.zarray", "raw/c.tif", "raw/a.zarr.bak/zarr.json",
    ]  # fmt: skip
    assert zarr_roots(keys) == ["raw/a.zarr", "raw/a.zarr.bak", "raw/b.zarr"]
