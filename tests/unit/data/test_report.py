"""What the quality report warns of."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

import pytest

from refocus.data.manifest import DatasetManifest, IngestSettings, SourceSummary
from refocus.data.report import quality_report, said_of_loose_planes, said_of_scattered, warnings_of
from refocus.data.splits import DEFAULT_SPECIMEN_PATTERN, specimen_of, split_of

WELLS = [f"raw/{row}{column:02}/img_{field:03}.tif" for row in "AH" for column in (1, 12) for field in (1, 2)]


def manifest(*keys: str, pattern: str = DEFAULT_SPECIMEN_PATTERN) -> DatasetManifest:
    sources = [
        SourceSummary(
            source=key, specimen=specimen, split=split_of(specimen), kind="sharp", modality="fluorescence",
            shape=(96, 96), axes="YX", tiles=1,
        )
        for key in keys
        for specimen in [specimen_of(key.partition("#")[0], pattern)]
    ]  # fmt: skip
    return DatasetManifest(
        name="cells", version="v1", raw_prefix="raw/", created=datetime(2026, 1, 1, tzinfo=UTC),
        settings=IngestSettings(), shards=(), sources=tuple(sources), quarantined=0,
    )  # fmt: skip


def test_a_specimen_from_several_folders_is_named_with_its_folders_and_the_remedy(store):
    said = said_of_scattered(manifest(*WELLS))
    assert said is not None
    assert "2 specimens" in said
    assert "img_001 from raw/A01, raw/A12, raw/H01 and 1 more" in said
    assert "specimen: '.*/(.+)/.+'" in said
    assert escape(said) in quality_report(store, manifest(*WELLS), [])


def test_the_remedy_makes_each_well_a_specimen():
    remedied = manifest(*WELLS, pattern=".*/(.+)/.+")
    assert {source.specimen for source in remedied.sources} == {"A01", "A12", "H01", "H12"}
    assert said_of_scattered(remedied) is None


@pytest.mark.parametrize(
    "keys", [["raw/a_c0.tif", "raw/a_c1.tif"], ["raw/a.tif#c=0", "raw/a.tif#c=1"], ["a.tif", "raw/b.tif"]]
)
def test_specimens_of_one_folder_each_are_nothing_to_warn_of(keys):
    assert said_of_scattered(manifest(*keys)) is None


@pytest.mark.parametrize(
    "keys",
    [
        ["raw/s1_z00.png", "raw/s1_z01.png", "raw/s2_z00.png"],
        ["raw/img_z3_c0.tif", "raw/img_z4_c0.tif", "raw/img_z4_c1.tif"],
        ["raw/z_00/a01.tif", "raw/z_16/a01.tif", "raw/z_16/b01.tif"],
    ],
)
def test_planes_of_a_series_in_files_of_their_own_are_not_taken_for_sharp_without_a_word(keys):
    said = said_of_loose_planes(manifest(*keys))
    assert said is not None
    assert said.startswith(f"2 images are named like planes of focal series, such as {keys[0]} and {keys[1]}:")
    assert said in warnings_of(manifest(*keys), [])


@pytest.mark.parametrize(
    "keys", [["raw/a_z05.png", "raw/b_z05.png"], ["raw/viz1.tif", "raw/viz2.tif"], ["raw/fz_3a.tif"]]
)
def test_one_plane_of_each_series_is_nothing_to_warn_of(keys):
    assert said_of_loose_planes(manifest(*keys)) is None


def test_a_split_without_tiles_is_named_with_what_it_is_needed_for():
    said = " ".join(warnings_of(manifest("raw/a.tif"), []))
    assert "No fluorescence tile is in train or validation or calibration: " in said
    assert "no training starts without it; intervals cannot be fitted without it. " in said
