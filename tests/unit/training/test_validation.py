import tracemalloc

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from skimage import data

from refocus.data.splits import split_of
from refocus.data.tiles import Tile
from refocus.io.writers import write_ome_tiff
from refocus.training.validation import evenly, measured_tiles, sharp_images_in, sharp_tiles
from refocus.zstack import Acquisition


def tile(specimen, pixels, target=None, **more):
    return Tile(
        source=f"raw/{specimen}.tif",
        specimen=specimen,
        modality=more.pop("modality", "fluorescence"),
        kind="sharp" if target is None else "pair",
        pixels=pixels[None],
        target=None if target is None else target[None],
        offset=0.0,
        scale=200.0,
        y_px=more.pop("y_px", 0),
        x_px=0,
        **more,
    )


@pytest.fixture(scope="module")
def picture():
    return data.camera()[:200, 100:300]


def test_each_specimen_gives_its_liveliest_tile(picture):
    faint = (picture // 4).astype(np.uint8)
    empty = np.full_like(picture, 9)
    found = sharp_tiles([tile("a", faint), tile("a", picture, y_px=200), tile("b", empty), tile("c", picture)], most=9)
    assert [(i.specimen, i.source) for i in found] == [("a", "raw/a.tif@200,0"), ("c", "raw/c.tif@0,0")]


def test_tiles_that_are_too_small_for_the_blur_are_left_out(picture):
    assert sharp_tiles([tile("a", picture[:100, :100])], most=9) == []


def test_measured_tiles_meet_their_in_focus_targets(picture):
    blurred = tile("a", picture // 2, picture, planes_from_focus=-3.0, defocus_um=-1.5)
    empty = tile("a", picture, np.full_like(picture, 5), planes_from_focus=1.0)
    itself = tile("a", picture, picture.copy(), planes_from_focus=0.3)
    (found,) = measured_tiles([itself, blurred, empty, tile("b", picture)], most=9)
    assert (found.band, found.defocus_um) == ("3 planes", 1.5)
    np.testing.assert_array_equal(found.truth[0], picture)


def stack_tiles(picture):
    """Three specimens of four places and eleven planes, as a split's shards hold them: by place, then by plane."""
    for specimen in "abc":
        for place in range(4):
            for plane in range(11):
                blurred = picture // (1 + abs(plane - 5))
                yield tile(specimen, blurred, picture, y_px=200 * place, plane=plane, planes_from_focus=plane - 5.0)


def test_a_few_measured_tiles_are_of_several_depths_and_specimens_and_always_the_same(picture):
    few = measured_tiles(stack_tiles(picture), most=12)
    assert len(few) == 12
    # Twelve of 132 are every eleventh: taken at that stride, all would be of one plane.
    assert len({plane.band for plane in few}) >= 4
    assert {plane.specimen for plane in few} == set("abc")
    again = measured_tiles(reversed(list(stack_tiles(picture))), most=12)
    assert [(p.specimen, p.planes_from_focus) for p in again] == [(p.specimen, p.planes_from_focus) for p in few]


def test_a_split_is_read_without_being_held(picture):
    tracemalloc.start()
    try:
        measured_tiles(stack_tiles(picture), most=4)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The four as they are kept, two float32 images each, and as much again for tiles at hand. All 120 that are out of
    # focus would be fifteen times that.
    assert peak_bytes < 2 * 4 * 2 * 4 * picture.size


def test_a_modality_that_is_not_known_is_not_taken_for_fluorescence(picture):
    later = {"modality": "light_sheet"}
    (sharp,) = sharp_tiles([tile("a", picture, **later)], most=9)
    (measured,) = measured_tiles([tile("a", picture // 2, picture, **later)], most=9)
    assert sharp.modality == measured.modality == "light_sheet"


def test_a_few_are_taken_evenly_and_all_where_they_are_few():
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 4) == [1, 2]
    assert evenly([], 4) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture):
    root = tmp_path_factory.mktemp("images")
    for number in range(60):
        name = f"cell{number}"
        if split_of(name) != "train":
            (root / f"{name}.png").write_bytes(imagecodecs.png_encode(np.roll(picture, 9 * number, 0)))
    return root


def test_a_folder_gives_what_ingest_takes_and_nothing_else(tmp_path, picture, caplog):
    focal_series = np.stack([picture, np.roll(picture, 9), picture])
    for name, pixels, axes in (
        ("stack.ome.tif", focal_series, "ZYX"),
        ("two.ome.tif", focal_series[:2], "CYX"),
        ("series.truth.ome.tif", picture, "YX"),
    ):
        tifffile.imwrite(tmp_path / name, pixels, metadata={"axes": axes})
    (tmp_path / "photo.jpg").write_bytes(imagecodecs.jpeg8_encode(picture))
    said = Acquisition(pixel_size_um=0.25, modality="brightfield")
    write_ome_tiff(tmp_path / "section.ome.tif", picture, "YX", said)
    found = {image.source: image for image in sharp_images_in(tmp_path, None)}
    assert set(found) == {"two.ome.tif#c=0", "two.ome.tif#c=1", "photo.jpg", "section.ome.tif"}
    for channel in (0, 1):
        np.testing.assert_array_equal(found[f"two.ome.tif#c={channel}"].pixels, focal_series[[channel]])
    assert {image.source for image in found.values() if image.modality == "brightfield"} == {"section.ome.tif"}
    (record,) = caplog.records
    assert "1 images" in record.message
    assert "stack.ome.tif" in record.message


def test_a_folder_is_split_as_ingest_splits_it(folder):
    for split in ("validation", "calibration"):
        images = sharp_images_in(folder, split)
        assert images
        assert {split_of(i.specimen) for i in images} == {split}
    assert len(sharp_images_in(folder, None)) == len(list(folder.iterdir()))


def test_a_sidecar_says_in_evaluation_what_it_says_in_ingest(tmp_path, picture):
    for name in ("slide1_a", "slide1_b", "slide2_a", "overview"):
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(picture))
    rules = "rules: [{match: 'over*', ignore: true}, {specimen: '(slide\\d+)_.*', modality: phase_contrast}]"
    (tmp_path / "acquisition.yaml").write_text(rules)
    found = sharp_images_in(tmp_path, None)
    assert [(image.source, image.specimen) for image in found] == [
        ("slide1_a.png", "slide1"), ("slide1_b.png", "slide1"), ("slide2_a.png", "slide2")
    ]  # fmt: skip
    assert {image.modality for image in found} == {"phase_contrast"}
    assert {i.specimen for i in sharp_images_in(tmp_path, split_of("slide1"))} >= {"slide1"}


def test_ome_zarr_is_read_as_ingest_reads_it(tmp_path, picture):
    (tmp_path / "sound.png").write_bytes(imagecodecs.png_encode(picture))
    image = zarr.open_group(tmp_path / "day1" / "cell.ome.zarr", mode="w", zarr_format=3)
    image.create_array("0", data=np.ascontiguousarray(picture), chunks=(64, 64))
    axes = [{"name": name, "type": "space"} for name in "yx"]
    whole = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}]
    image.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": whole}]}
    found = {image.source: image for image in sharp_images_in(tmp_path, None)}
    assert set(found) == {"sound.png", "day1/cell.ome.zarr"}
    np.testing.assert_array_equal(found["day1/cell.ome.zarr"].pixels, picture[None])
    (alone,) = sharp_images_in(tmp_path / "day1" / "cell.ome.zarr", None)
    assert alone.source == "cell.ome.zarr"


def test_an_image_that_is_no_truth_is_left_out_and_named(tmp_path, picture, caplog):
    for name, pixels in {"sound": picture, "black": np.zeros_like(picture), "icon": picture[:16, :16]}.items():
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    assert [image.source for image in sharp_images_in(tmp_path, None)] == ["sound.png"]
    said = [record.message for record in caplog.records]
    assert said == [
        "left out: black.png is constant; it says nothing.",
        "left out: icon.png has shape (1, 16, 16); expected [C, Y, X] of 32 px and more.",
    ]


def test_an_image_with_padding_is_taken_and_named(tmp_path, picture, caplog):
    padded = np.pad(picture, ((40, 0), (0, 0)))
    for name, pixels in {"sound": picture, "padded": padded}.items():
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    assert len(sharp_images_in(tmp_path, None)) == 2
    (said,) = [record.message for record in caplog.records]
    assert "1 of 2 images" in said
    assert "padded.png" in said


def test_a_file_that_cannot_be_read_is_left_out_and_named(tmp_path, picture, caplog):
    (tmp_path / "sound.png").write_bytes(imagecodecs.png_encode(picture))
    (tmp_path / "broken.png").write_bytes(imagecodecs.png_encode(picture)[:999])
    (tmp_path / "empty.tif").touch()
    assert [image.source for image in sharp_images_in(tmp_path, None)] == ["sound.png"]
    for record, name in zip(caplog.records, ("broken.png", "empty.tif"), strict=True):
        assert record.message.startswith(f"left out: {tmp_path / name}")
