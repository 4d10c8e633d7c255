"""What an ingest plans to read."""

from __future__ import annotations

import pytest

from refocus.data.ingest import plan_digest, plan_ingest
from refocus.errors import ConfigurationError, DatasetIncomplete
from refocus.io.store import ObjectStore


@pytest.fixture
def plates(store: ObjectStore) -> ObjectStore:
    for key in ("raw/plate1/a.tif", "raw/plate1/day2/b.tif", "raw/plate10/c.tif", "raw/plate1-old/d.tif", "e.tif"):
        store.put(key, key.encode())
    return store


def planned(store: ObjectStore, raw_prefix: str) -> set[str]:
    return {source.key for unit in plan_ingest(store, raw_prefix).units for source in unit.sources}


@pytest.mark.parametrize("written", ["raw/plate1", "raw/plate1/", "s3://{bucket}/raw/plate1"])
def test_a_folder_is_ingested_without_neighbours_whose_names_begin_alike(plates, written):
    folder = written.format(bucket=plates.settings.bucket)
    assert planned(plates, folder) == {"raw/plate1/a.tif", "raw/plate1/day2/b.tif"}
    assert plan_digest(plan_ingest(plates, folder)) == plan_digest(plan_ingest(plates, "raw/plate1/"))


def test_one_object_and_the_whole_bucket_may_be_named(plates):
    assert planned(plates, "raw/plate10/c.tif") == {"raw/plate10/c.tif"}
    assert len(planned(plates, "")) == 5


def test_a_folder_of_another_bucket_is_no_folder_of_ours(plates):
    with pytest.raises(ConfigurationError, match="is in bucket 'theirs'"):
        plan_ingest(plates, "s3://theirs/raw/plate1")


def test_the_beginning_of_names_is_no_folder(plates):
    with pytest.raises(DatasetIncomplete, match="raw/plate/ holds 0 objects"):
        plan_ingest(plates, "raw/plate")
