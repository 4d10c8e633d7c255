"""What every object store must keep to, on a real SeaweedFS."""

from __future__ import annotations

import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest

from refocus.errors import (
    BucketMissing,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreAccessDenied,
    StoreError,
    StoreUnreachable,
)
from refocus.io.store import ObjectStore

pytestmark = pytest.mark.store


def changed(store: ObjectStore, **update) -> ObjectStore:
    return ObjectStore(store.settings.model_copy(update={"attempts": 2, **update}))


def test_what_was_put_comes_back_with_its_size_and_etag(store):
    etag = store.put("raw/a b+ü/slide.tif", b"12345")
    assert store.get("raw/a b+ü/slide.tif") == b"12345"
    info = store.head("raw/a b+ü/slide.tif")
    assert (info.size_bytes, info.etag) == (5, etag)
    assert store.exists("raw/a b+ü/slide.tif")


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").size_bytes == 0


def test_a_missing_object_is_named(store):
    for ask in (store.get, store.head, lambda key: store.get_range(key, 0, 10)):
        with pytest.raises(ObjectMissing, match=r"no/such\.tif"):
            ask("no/such.tif")
    assert not store.exists("no/such.tif")


def test_a_missing_object_is_a_missing_file_to_those_who_do_not_know_us(store):
    with pytest.raises(FileNotFoundError):
        store.get("no/such.tif")


def test_deleting_is_final_and_deleting_again_is_no_error(store):
    store.put("key", b"x")
    store.delete("key")
    store.delete("key")
    assert not store.exists("key")


def test_uploads_that_nobody_finishes_are_abandoned_below_a_prefix_alone(store):
    client, bucket = store.settings.client(), store.settings.bucket
    for key in ("runs/a/step-1/state.json", "runs/ab/step-1/state.json"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    assert store.abandon_uploads("runs/a/") == ("runs/a/step-1/state.json",)
    assert store.abandon_uploads("runs/a/") == ()
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    assert [entry["Key"] for entry in left] == ["runs/ab/step-1/state.json"]
    assert store.abandon_uploads("") == ("runs/ab/step-1/state.json",)


def test_listing_goes_past_one_page_in_order_of_keys_and_keeps_to_the_prefix(store):
    # S3 lists at most 1000 a page.
    keys = [f"many/{number:04d}" for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    store.put("many-others/0", b"x")
    assert [entry.key for entry in store.list("many/")] == keys
    assert list(store.list("nothing/")) == []


def test_ranges_are_half_open_and_end_where_the_object_ends(store):
    store.put("digits", b"0123456789")
    assert store.get_range("digits", 2, 5) == b"234"
    assert store.get_range("digits", 8, 100) == b"89"
    assert store.get_range("digits", 4, 4) == b""
    with pytest.raises(StoreError):
        store.get_range("digits", 10, 12)
    with pytest.raises(ValueError, match="no range"):
        store.get_range("digits", 5, 2)


def test_a_range_of_an_object_that_was_replaced_is_refused(store):
    etag = store.put("stack.tif", b"first version")
    store.put("stack.tif", b"other version")
    with pytest.raises(ObjectChanged, match="changed by somebody else"):
        store.get_range("stack.tif", 0, 5, etag=etag)


def test_create_writes_once_and_never_again(store):
    store.create("version", b"one")
    with pytest.raises(ObjectExists, match="never overwritten"):
        store.create("version", b"two")
    assert store.get("version") == b"one"


def test_of_eight_that_create_at_once_exactly_one_wins(store):
    def attempt(number: int) -> bool:
        try:
            store.create("race", str(number).encode())
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert store.get("race") == str(won.index(True)).encode()


def test_replace_needs_the_present_etag(store):
    first = store.put("alias", b"a")
    second = store.replace("alias", b"b", first)
    with pytest.raises(ObjectChanged):
        store.replace("alias", b"c", first)
    assert store.get("alias") == b"b"
    assert store.replace("alias", b"c", second) != second


def test_replacing_what_is_not_there_fails(store):
    with pytest.raises((ObjectMissing, ObjectChanged)):
        store.replace("gone", b"x", '"0123456789abcdef0123456789abcdef"')
    assert not store.exists("gone")


def test_eight_counters_that_compare_and_swap_lose_no_count(store):
    store.put("counter", b"0")

    def count_up(_: int) -> None:
        while True:
            data, etag = store.get_with_etag("counter")
            try:
                store.replace("counter", str(int(data) + 1).encode(), etag)
            except ObjectChanged:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count_up, range(24)))
    assert store.get("counter") == b"24"


def test_an_unchanged_object_is_not_sent_again(store):
    etag = store.put("alias", b"a")
    assert store.get_if_changed("alias", etag) is None
    assert store.get_if_changed("alias", None) == (b"a", etag)
    newer = store.put("alias", b"b")
    assert store.get_if_changed("alias", etag) == (b"b", newer)
    with pytest.raises(ObjectMissing):
        store.get_if_changed("gone", etag)


def test_a_missing_bucket_says_so_and_how_to_name_another(store):
    elsewhere = changed(store, bucket=f"none-{uuid.uuid4().hex[:8]}")
    for ask in (elsewhere.check_bucket, lambda: elsewhere.put("k", b"x"), lambda: list(elsewhere.list())):
        with pytest.raises(BucketMissing, match="REFOCUS_BUCKET"):
            ask()


def test_a_bucket_can_be_made_twice(store):
    fresh = changed(store, bucket=f"made-{uuid.uuid4().hex[:8]}")
    fresh.create_bucket()
    fresh.create_bucket()
    fresh.check_bucket()


@pytest.mark.parametrize("wrong", [{"secret_key": "wrong"}, {"access_key": "nobody"}])
def test_wrong_credentials_say_which_variables_to_check(store, wrong):
    store.put("key", b"x")
    settings = type(store.settings).model_validate({**store.settings.model_dump(), **wrong})
    stranger = ObjectStore(settings)
    for ask in (stranger.check_bucket, lambda: stranger.get("key"), lambda: list(stranger.list())):
        with pytest.raises(StoreAccessDenied, match="AWS_ACCESS_KEY_ID"):
            ask()
    with pytest.raises(PermissionError):
        stranger.get("key")


def test_an_endpoint_where_nobody_listens_says_what_to_try(store):
    # Port 1 is reserved and never listens.
    nowhere = changed(store, endpoint_url="http://127.0.0.1:1", connect_timeout_s=1.0)
    with pytest.raises(StoreUnreachable, match="is the store running"):
        nowhere.get("key")


def test_a_store_travels_to_a_worker_as_its_settings(store):
    store.put("key", b"x")
    assert pickle.loads(pickle.dumps(store)).get("key") == b"x"


def test_pyarrow_reads_and_writes_the_same_objects(store):
    table = pyarrow.table({"a": [1, 2, 3]})
    filesystem = store.settings.pyarrow_filesystem()
    pyarrow.parquet.write_table(table, f"{store.settings.bucket}/t.parquet", filesystem=filesystem)
    assert store.exists("t.parquet")
    assert pyarrow.parquet.read_table(f"{store.settings.bucket}/t.parquet", filesystem=filesystem).equals(table)
