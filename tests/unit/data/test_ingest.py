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


def test_what_lies_there_and_is_not_taken_is_counted_by_kind(plates):
    for key in (
        "raw/plate1/s.czi",
        "raw/plate1/x.CZI",
        "raw/plate1/notes",
        "raw/plate1/a.truth.ome.tif",
        "raw/plate1/",
    ):
        plates.put(key, b"")
    plan = plan_ingest(plates, "raw/plate1")
    assert plan.left_out == ("4 other files left out: 2 .czi, 1 .truth.tif, 1 no suffix.",)
    with pytest.raises(DatasetIncomplete, match=r"holds no image.* 1 other file left out: 1 \.czi\."):
        plan_ingest(plates, "raw/plate1/s.czi")


def test_rules_that_leave_images_out_or_fit_none_are_told(plates):
    rules = "rules: [{match: 'day2/*', ignore: true}, {match: 'Day3/*', modality: brightfield}]"
    plates.put("raw/plate1/acquisition.yaml", rules.encode())
    ignored, idle = plan_ingest(plates, "raw/plate1").left_out
    assert ignored == "1 image left out: a rule says ignore."
    assert idle.startswith("raw/plate1/acquisition.yaml")
    assert "'Day3/*'" in idle


def test_what_is_left_out_is_no_part_of_what_a_version_is(plates):
    before = plan_digest(plan_ingest(plates, "raw/plate1"))
    plates.put("raw/plate1/notes.txt", b"")
    assert plan_digest(plan_ingest(plates, "raw/plate1")) == before


def test_a_sidecar_in_an_old_encoding_is_refused_for_its_names_would_match_nothing(plates):
    plates.put("raw/plate1/acquisition.yaml", "rules: [{match: 'Prøve/*'}]".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"raw/plate1/acquisition\.yaml is not UTF-8"):
        plan_ingest(plates, "raw/plate1")


def test_the_beginning_of_names_is_no_folder(plates):
    with pytest.raises(DatasetIncomplete, match=r"raw/plate/ holds no image.*There is nothing at all"):
        plan_ingest(plates, "raw/plate")
