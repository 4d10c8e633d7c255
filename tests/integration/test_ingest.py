"""Ingest against a real store: what is good becomes tiles, what is bad is named, nothing is lost."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile

from refocus.data.dataset import DatasetVersion, version_prefix
from refocus.data.ingest import QUARANTINE, REPORT, adopt_plan, ingest_unit, plan_digest, plan_ingest, run_units, seal
from refocus.data.report import warnings_of
from refocus.data.sidecar import Rule
from refocus.data.splits import SPLITS, split_of
from refocus.errors import (
    BucketMissing,
    DatasetExists,
    DatasetIncomplete,
    DatasetMissing,
    ObjectChanged,
    ObjectMissing,
    StoreAccessDenied,
)
from refocus.io.store import ObjectStore
from refocus.testing.faulty_store import INTERNAL_ERROR, SLOW_DOWN, Fault, FaultyStore
from samples import focal_series, sharp_image, tiff

pytestmark = pytest.mark.store


def ingest_here(store: ObjectStore, *, version: str = "v1", fallback: Rule | None = None) -> DatasetVersion:
    """The whole ingest in this process: the same units, without Ray."""
    plan = adopt_plan(store, "cells", version, plan_ingest(store, "raw/", fallback=fallback))
    prefix = version_prefix("cells", version)
    return seal(store, "cells", version, plan, [ingest_unit(store, prefix, plan, unit) for unit in plan.units])


def quarantine(store: ObjectStore, version: str = "v1") -> dict[str, dict]:
    lines = store.get(version_prefix("cells", version) + QUARANTINE).decode().splitlines()
    return {item["source"]: item for item in map(json.loads, lines)}


def test_a_z_stack_becomes_pairs_with_its_in_focus_plane(store):
    store.put("raw/stack.tif", tiff(focal_series(best=4)))
    rule = Rule(z_step_um=0.5, pixel_size_um=0.325, numerical_aperture=0.75)
    dataset = ingest_here(store, fallback=rule)
    (source,) = dataset.manifest.sources
    assert source.in_focus_plane == pytest.approx(4, abs=0.5)
    tiles = list(dataset.tiles(split_of("stack")))
    assert len(tiles) == 9
    for tile in tiles:
        assert tile.defocus_um == pytest.approx((tile.plane - source.in_focus_plane) * 0.5)
        np.testing.assert_array_equal(tile.target[0], focal_series(best=4)[4])
    in_focus = next(tile for tile in tiles if tile.plane == 4)
    np.testing.assert_array_equal(in_focus.pixels, in_focus.target)


def test_sharp_images_become_tiles_that_hold_the_very_pixels(store):
    image = sharp_image(3)
    store.put("raw/sharp.tif", tiff(image))
    (tile,) = ingest_here(store).tiles(split_of("sharp"))
    assert tile.kind == "sharp"
    np.testing.assert_array_equal(tile.pixels[0], image)


def of_unequal_planes() -> bytes:
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        for side in (96, 96, 80):
            file.write(sharp_image(side=side), metadata=None)
    return sink.getvalue()


def of_a_compression_nobody_knows() -> bytes:
    data = bytearray(tiff(focal_series(), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offsets = [page.tags["Compression"].valueoffset for page in file.pages]
    for offset in offsets:
        data[offset : offset + 2] = (34712 + 1).to_bytes(2, "little")
    return bytes(data)


BAD = {
    "raw/truncated.tif": (tiff(focal_series())[:9000], "truncated"),
    "raw/text.tif": (b"these are my notes, not an image", "no image"),
    "raw/empty.tif": (b"", "empty"),
    "raw/one_plane.tif": (tiff(focal_series()[:1]), "1 z-plane"),
    "raw/nan.tif": (tiff(np.where(np.eye(96) > 0, np.nan, 1.0).astype(np.float32)), "NaN"),
    "raw/ambiguous.tif": (tiff(focal_series(), metadata=None), "does not say"),
    "raw/edge.tif": (tiff(focal_series(best=0)), "edge"),
    "raw/saturated.tif": (tiff(np.full((5, 96, 96), 65535, np.uint16)), "saturation"),
    "raw/unequal.tif": (of_unequal_planes(), "planes of one shape"),
    "raw/compression.tif": (of_a_compression_nobody_knows(), "compressed by method"),
    "raw/broken.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "PNG"),
}


def test_bad_sources_are_quarantined_with_their_reason_and_the_good_ones_go_on(store):
    store.put("raw/good.tif", tiff(sharp_image()))
    for key, (data, _) in BAD.items():
        store.put(key, data)
    dataset = ingest_here(store)
    found = quarantine(store)
    assert [source.source for source in dataset.manifest.sources] == ["raw/good.tif"]
    assert set(found) == set(BAD)
    assert dataset.manifest.quarantined == len(BAD)
    for key, (_, expected) in BAD.items():
        assert expected in found[key]["reason"], found[key]["reason"]
        assert key in found[key]["reason"]


def test_padding_and_scale_bars_reach_no_tile_and_are_told(store):
    y, x = np.mgrid[:192, :192]
    # Rings, as sharp as a lens shows them, brighter towards the middle.
    image = (600 + 400 * np.sin(np.hypot(y - 80, x - 90) / 2)).astype(np.uint16)
    framed, barred, covered = image.copy(), image.copy(), image.copy()
    framed[:, :40] = 0
    barred[-20:-12, -100:-20] = 65535
    covered[60:, 60:] = 0
    for name, pixels in {"framed": framed, "barred": barred, "covered": covered}.items():
        store.put(f"raw/{name}.tif", tiff(pixels))
    dataset = ingest_here(store)
    tiles = {tile.source: tile for split in SPLITS for tile in dataset.tiles(split)}
    assert set(tiles) == {"raw/framed.tif", "raw/barred.tif"}
    assert (tiles["raw/framed.tif"].x_px, tiles["raw/framed.tif"].pixels.shape) == (42, (1, 192, 150))
    np.testing.assert_array_equal(tiles["raw/framed.tif"].pixels[0], image[:, 42:])
    assert tiles["raw/barred.tif"].pixels.max() <= 1000
    said = quarantine(store)["raw/covered.tif"]
    assert "more than 10% of 1 tile shows no specimen" in said["reason"]
    framed_source = next(source for source in dataset.manifest.sources if source.source == "raw/framed.tif")
    assert (framed_source.blanks, framed_source.inside_px) == ("level 0", (0, 42, 192, 150))
    (warning,) = (said for said in warnings_of(dataset.manifest, []) if "padding" in said)
    assert "2 images hold padding" in warning
    assert "(1 image)" in warning


def test_duplicated_planes_are_counted_and_left_out(store):
    stack = focal_series()
    stack[7] = stack[6]
    store.put("raw/stack.tif", tiff(stack))
    dataset = ingest_here(store)
    assert "raw/stack.tif#z=7" in quarantine(store)
    assert len(list(dataset.tiles(split_of("stack")))) == 8


def test_big_endian_and_little_endian_give_the_same_tiles(store):
    store.put("raw/stack_c0.tif", tiff(focal_series(), byteorder="<"))
    store.put("raw/stack_c1.tif", tiff(focal_series(), byteorder=">", compression="zlib"))
    tiles = list(ingest_here(store).tiles(split_of("stack")))
    little, big = ({t.plane: t for t in tiles if t.source == f"raw/stack_c{n}.tif"} for n in (0, 1))
    assert len(little) == len(big) == 9
    for plane, tile in little.items():
        np.testing.assert_array_equal(tile.pixels, big[plane].pixels)


def test_two_stacks_of_one_name_are_one_specimen_and_stay_apart_as_sources(store):
    store.put("raw/monday/s1.tif", tiff(focal_series(best=3)))
    store.put("raw/tuesday/s1.tif", tiff(focal_series(best=5, seed=8)))
    dataset = ingest_here(store)
    assert {source.source for source in dataset.manifest.sources} == {"raw/monday/s1.tif", "raw/tuesday/s1.tif"}
    assert {source.specimen for source in dataset.manifest.sources} == {"s1"}
    tiles = list(dataset.tiles(split_of("s1")))
    assert len({tile.index for tile in tiles}) == len(tiles) == 18


def test_the_same_bytes_under_two_names_are_used_once(store):
    store.put("raw/a.tif", tiff(focal_series()))
    store.put("raw/copy_of_a.tif", tiff(focal_series()))
    dataset = ingest_here(store)
    assert [source.source for source in dataset.manifest.sources] == ["raw/a.tif"]
    assert "raw/a.tif" in quarantine(store)["raw/copy_of_a.tif"]["reason"]


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR, Fault(cut_after_bytes=2000)])
def test_a_store_on_a_bad_day_gives_the_same_dataset(store, fault):
    store.put("raw/stack.tif", tiff(focal_series(), compression="zlib"))
    expected = list(ingest_here(store).tiles(split_of("stack")))
    with FaultyStore(store.settings) as faulty:
        faulty.inject(fault, times=3, methods=("GET",), path_contains="stack.tif")
        faulty.inject(SLOW_DOWN, times=3, methods=("PUT",))
        dataset = ingest_here(ObjectStore(faulty.settings), version="v2")
        assert faulty.count(fault) == (6 if fault is SLOW_DOWN else 3)
    for tile, same in zip(dataset.tiles(split_of("stack")), expected, strict=True):
        np.testing.assert_array_equal(tile.pixels, same.pixels)
        np.testing.assert_array_equal(tile.target, same.target)


def test_one_channel_that_cannot_be_used_does_not_spoil_the_others(store):
    both = np.stack([focal_series(best=4), focal_series(best=0)], axis=1)
    store.put("raw/stack.tif", tiff(both, metadata={"axes": "ZCYX"}))
    (source,) = ingest_here(store).manifest.sources
    assert source.source == "raw/stack.tif#c=0"
    assert "edge" in quarantine(store)["raw/stack.tif#c=1"]["reason"]


def test_each_channel_is_of_its_own_modality_and_light(store):
    both = np.stack([focal_series(best=4), focal_series(best=4)], axis=1)
    channels = {"EmissionWavelength": [460, 600], "ContrastMethod": ["Fluorescence", "Brightfield"]}
    store.put("raw/stack.ome.tif", tiff(both, ome=True, metadata={"axes": "ZCYX", "Channel": channels}))
    dataset = ingest_here(store)
    assert [source.modality for source in dataset.manifest.sources] == ["fluorescence", "brightfield"]
    light = {tile.source: tile.wavelength_um for tile in dataset.tiles(split_of("stack"))}
    # As float32, which tiles are stored in.
    assert light == pytest.approx({"raw/stack.ome.tif#c=0": 0.46, "raw/stack.ome.tif#c=1": 0.6}, rel=1e-6)


def test_an_answer_for_axes_is_for_files_with_as_many(store):
    store.put("raw/unnamed.tif", tiff(focal_series(best=4), metadata=None))
    store.put("raw/flat.tif", tiff(sharp_image()))
    store.put("raw/named.tif", tiff(np.stack([focal_series(best=4)] * 2, axis=1), metadata={"axes": "ZCYX"}))
    sources = ingest_here(store, fallback=Rule(axes="ZYX")).manifest.sources
    found = {(source.source.removeprefix("raw/"), source.kind, source.axes) for source in sources}
    assert found == {
        ("unnamed.tif", "pair", "ZYX"), ("flat.tif", "sharp", "YX"), ("named.tif#c=0", "pair", "CZYX"),
        ("named.tif#c=1", "pair", "CZYX"),
    }  # fmt: skip
    assert not quarantine(store)


def test_a_reversed_stack_finds_the_same_plane(store):
    store.put("raw/stack.tif", tiff(focal_series(best=3)[::-1]))
    (source,) = ingest_here(store).manifest.sources
    assert source.in_focus_plane == pytest.approx(5, abs=0.5)


def test_a_complete_version_never_changes(store):
    store.put("raw/a.tif", tiff(sharp_image()))
    ingest_here(store)
    with pytest.raises(DatasetExists, match="complete"):
        ingest_here(store)


def test_a_version_that_was_begun_from_other_images_is_not_taken_over(store):
    store.put("raw/a.tif", tiff(sharp_image()))
    adopt_plan(store, "cells", "v1", plan_ingest(store, "raw/"))
    store.put("raw/b.tif", tiff(sharp_image(1)))
    with pytest.raises(DatasetExists, match="other images"):
        ingest_here(store)


def test_an_interrupted_ingest_leaves_no_half_version_and_goes_on(store):
    store.put("raw/a.tif", tiff(sharp_image()))
    plan = adopt_plan(store, "cells", "v1", plan_ingest(store, "raw/"))
    ingest_unit(store, version_prefix("cells", "v1"), plan, plan.units[0])
    with pytest.raises(DatasetIncomplete, match="not finished"):
        DatasetVersion.open(store, "cells/v1")
    assert ingest_here(store).manifest.rows(split_of("a")) == 1
    assert DatasetVersion.open(store, "cells").manifest.version == "v1"


def test_the_quality_report_shows_what_was_used_and_what_was_not(store):
    store.put("raw/stack.tif", tiff(focal_series()))
    store.put("raw/text.tif", b"these are my notes")
    ingest_here(store)
    page = store.get(version_prefix("cells", "v1") + REPORT).decode()
    assert "1 images used, 1 quarantined" in page
    assert "raw/text.tif" in page
    assert page.count("data:image/png;base64,") == 2
    assert "No fluorescence tile is in validation or calibration" in page


def test_the_quality_report_keeps_names_that_its_figures_cannot_letter(store, recwarn):
    store.put("raw/細胞.tif", tiff(focal_series()))
    ingest_here(store)
    page = store.get(version_prefix("cells", "v1") + REPORT).decode()
    assert page.count("<p>raw/細胞.tif</p>") == 2
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_an_ingest_of_nothing_usable_leaves_its_reasons_and_frees_its_name(store):
    store.put("raw/text.tif", b"these are my notes")
    with pytest.raises(DatasetIncomplete, match=r"none of 1 sources .*quarantine\.jsonl:\n  raw/text\.tif"):
        ingest_here(store)
    left = {entry.key.rpartition("/")[2] for entry in store.list(version_prefix("cells", "v1"))}
    assert left == {QUARANTINE, REPORT}
    store.put("raw/a.tif", tiff(sharp_image()))
    assert ingest_here(store).manifest.version == "v1"


@pytest.mark.ray
def test_what_the_store_says_to_a_worker_is_the_error_of_the_ingest(store, ray_session):
    store.put("raw/a.tif", tiff(sharp_image()))
    plan = adopt_plan(store, "cells", "v1", plan_ingest(store, "raw/"))
    store.delete("raw/a.tif")
    with pytest.raises(ObjectMissing, match=r"^s3://\S+/raw/a\.tif at \S+: there is no such object\.$"):
        run_units(store, version_prefix("cells", "v1"), plan)


@pytest.mark.parametrize("version", [2, 3])
def test_an_ome_zarr_folder_is_one_source(store, tmp_path, version):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(tmp_path / "stack.zarr", mode="w", zarr_format=version)
    scales = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.325, 0.325]}]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    multiscales = [{"version": "0.4" if version == 2 else "0.5", "axes": axes, "datasets": scales}]
    root.attrs.update(
        {"multiscales": multiscales} if version == 2 else {"ome": {"version": "0.5", "multiscales": multiscales}}
    )
    root.create_array("0", data=focal_series(best=4), chunks=(1, 48, 48))
    for path in sorted((tmp_path / "stack.zarr").rglob("*")):
        if path.is_file():
            store.put(f"raw/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    (source,) = ingest_here(store).manifest.sources
    assert source.source == "raw/stack.zarr"
    assert source.specimen == "stack"
    assert source.in_focus_plane == pytest.approx(4, abs=0.5)


def test_a_plan_is_named_after_its_content_not_its_time(store):
    store.put("raw/a.tif", tiff(sharp_image()))
    first = plan_digest(plan_ingest(store, "raw/"))
    assert first == plan_digest(plan_ingest(store, "raw/"))
    store.put("raw/b.tif", tiff(sharp_image(1)))
    assert first != plan_digest(plan_ingest(store, "raw/"))


def test_an_object_that_changes_between_plan_and_reading_is_noticed(store):
    store.put("raw/stack.tif", tiff(focal_series()))
    plan = plan_ingest(store, "raw/")
    store.put("raw/stack.tif", tiff(focal_series(seed=5)))
    with pytest.raises(ObjectChanged):
        ingest_unit(store, "datasets/cells/v1/", plan, plan.units[0])


def test_an_empty_prefix_and_a_missing_dataset_say_what_to_do(store):
    with pytest.raises(DatasetIncomplete, match="no image to ingest"):
        plan_ingest(store, "raw/")
    with pytest.raises(DatasetMissing, match=r"jobs/ingest\.py"):
        DatasetVersion.open(store, "nothing/v1")


def test_a_missing_bucket_and_wrong_credentials_are_told_apart(store):
    elsewhere = ObjectStore(store.settings.model_copy(update={"bucket": "no-such-bucket-here"}))
    with pytest.raises(BucketMissing, match="no-such-bucket-here"):
        plan_ingest(elsewhere, "raw/")
    stranger = ObjectStore(store.settings.model_copy(update={"access_key": "somebody"}))
    with pytest.raises(StoreAccessDenied, match="credentials"):
        plan_ingest(stranger, "raw/")


def test_the_real_focal_series_are_in_focus_where_people_see_it(store, real_data):
    for name in ("mitochondria_lightsheet", "neurons_phase_contrast"):
        store.put(f"raw/{name}.ome.tif", (real_data / "stacks" / f"{name}.ome.tif").read_bytes())
    found = {source.specimen: source.in_focus_plane for source in ingest_here(store).manifest.sources}
    assert found["mitochondria_lightsheet"] == pytest.approx(18, abs=2)
    assert found["neurons_phase_contrast"] == pytest.approx(11, abs=1)
