"""What the quality report warns of."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

import pytest

from refocus.data.manifest import DatasetManifest, IngestSettings, SourceSummary
from refocus.data.report import quality_report, said_of_scattered
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
