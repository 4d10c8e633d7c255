"""A store on its bad days: what is tried again, and what is reported, seen through a real proxy."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest

from refocus.errors import ObjectChanged, ObjectExists, StoreUnreachable
from refocus.io.ranged import RangedObject
from refocus.io.store import ObjectStore
from refocus.testing.faulty_store import INTERNAL_ERROR, LOST_ANSWER, SLOW_DOWN, Fault, FaultyStore

pytestmark = pytest.mark.store

CUT_MIDWAY = Fault(cut_after_bytes=1000)


@pytest.fixture
def faulty(store):
    with FaultyStore(store.settings.model_copy(update={"attempts": 4, "read_timeout_s": 2.0})) as proxy:
        yield proxy


@pytest.fixture
def shaky(faulty):
    return ObjectStore(faulty.settings)


def test_without_faults_the_proxy_is_as_good_as_the_store(store, shaky):
    etag = shaky.create("a/b c", b"x" * 100_000)
    assert shaky.get("a/b c") == store.get("a/b c")
    assert shaky.head("a/b c") == store.head("a/b c")
    assert list(shaky.list("a/")) == list(store.list("a/"))
    shaky.replace("a/b c", b"new", etag)
    assert store.get("a/b c") == b"new"


def test_what_pyarrow_sends_in_chunks_passes_the_proxy_whole(store, faulty):
    pixels = os.urandom(6_000_000)
    with faulty.settings.pyarrow_filesystem().open_output_stream(f"{faulty.settings.bucket}/streamed") as stream:
        stream.write(pixels)
    assert store.get("streamed") == pixels


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR], ids=["slow-down", "internal-error"])
def test_a_refusal_that_passes_is_tried_again(store, faulty, shaky, fault):
    faulty.inject(fault, times=2)
    shaky.put("key", b"x")
    faulty.inject(fault, times=2)
    assert shaky.get("key") == b"x"
    faulty.inject(fault, times=2)
    assert [entry.key for entry in shaky.list()] == ["key"]
    assert faulty.count(fault) == 6


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR], ids=["slow-down", "internal-error"])
def test_a_refusal_that_stays_is_reported_after_the_attempts(store, faulty, shaky, fault):
    store.put("key", b"x")
    faulty.inject(fault, times=None)
    with pytest.raises(StoreUnreachable, match=f"{fault.status} {fault.code} after 4 attempts"):
        shaky.get("key")
    assert faulty.count(fault) == 4


def test_a_body_that_breaks_off_is_fetched_again(store, faulty, shaky):
    data = os.urandom(200_000)
    etag = store.put("key", data)
    faulty.inject(CUT_MIDWAY, times=2)
    assert shaky.get("key") == data
    faulty.inject(CUT_MIDWAY, times=2)
    assert shaky.get_range("key", 50, 150_000, etag=etag) == data[50:150_000]
    faulty.inject(CUT_MIDWAY, times=2)
    assert shaky.get_if_changed("key", '"another"') == (data, etag)
    assert faulty.count(CUT_MIDWAY) == 6


def test_a_body_that_always_breaks_off_is_reported_and_never_half_returned(store, faulty, shaky):
    store.put("key", os.urandom(200_000))
    faulty.inject(CUT_MIDWAY, times=None)
    with pytest.raises(StoreUnreachable, match="broke off midway 4 times"):
        shaky.get("key")


def test_an_object_replaced_between_two_tries_is_not_mixed(store, faulty, shaky):
    etag = store.put("key", b"a" * 200_000)
    faulty.inject(Fault(cut_after_bytes=1000, delay_s=0.0), times=1)

    def replace_after_the_first_try() -> None:
        while not faulty.seen:
            time.sleep(0.001)
        store.put("key", b"b" * 200_000)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(replace_after_the_first_try)
        try:
            data = shaky.get_range("key", 0, 200_000, etag=etag)
        except ObjectChanged:
            return
    # Whoever was faster: never some of each.
    assert data == b"a" * 200_000


def test_a_connection_that_closes_without_an_answer_is_tried_again(store, faulty, shaky):
    store.put("key", b"x")
    faulty.inject(LOST_ANSWER, times=2)
    assert shaky.get("key") == b"x"
    assert faulty.count(LOST_ANSWER) == 2


def test_a_create_whose_answer_was_lost_knows_its_own_object(store, faulty, shaky):
    faulty.inject(LOST_ANSWER, methods=("PUT",))
    etag = shaky.create("version", b"ours")
    assert store.head("version").etag == etag
    assert faulty.count(LOST_ANSWER) == 1


def test_a_create_that_lost_to_another_is_not_taken_for_its_own(store, faulty, shaky):
    store.put("version", b"theirs")
    faulty.inject(LOST_ANSWER, methods=("PUT",))
    with pytest.raises(ObjectExists):
        shaky.create("version", b"ours")
    assert store.get("version") == b"theirs"


def test_a_replace_whose_answer_was_lost_knows_its_own_object(store, faulty, shaky):
    before = store.put("alias", b"a")
    faulty.inject(LOST_ANSWER, methods=("PUT",))
    assert shaky.replace("alias", b"b", before) == store.head("alias").etag
    faulty.inject(LOST_ANSWER, methods=("PUT",))
    with pytest.raises(ObjectChanged):
        shaky.replace("alias", b"c", before)
    assert store.get("alias") == b"b"


def test_an_answer_slower_than_the_limit_is_asked_for_again(store, faulty, shaky):
    store.put("key", b"x")
    slow = Fault(delay_s=3.0)  # the limit of this test's settings is 2 s
    faulty.inject(slow, times=1)
    assert shaky.get("key") == b"x"
    assert faulty.count(slow) == 1


def test_a_large_object_read_in_ranges_survives_a_storm(store, faulty):
    data = os.urandom(3_000_000)
    store.put("stack.tif", data)
    patient = ObjectStore(faulty.settings.model_copy(update={"attempts": 12}))
    # One request in six, each kind: with twelve attempts the chance of failing is below one in 10^5 for a request.
    for seed, fault in enumerate((SLOW_DOWN, CUT_MIDWAY, LOST_ANSWER)):
        faulty.inject(fault, times=20, share=1 / 6, seed=seed, methods=("GET",))
    file = RangedObject.open(patient, "stack.tif")
    pieces = []
    while piece := file.read(100_000):
        pieces.append(piece)
    assert b"".join(pieces) == data
    assert any(request.fault for request in faulty.seen)


def test_pyarrow_tries_again_too(store, faulty):
    table = pyarrow.table({"a": list(range(100_000))})
    pyarrow.parquet.write_table(
        table, f"{store.settings.bucket}/t.parquet", filesystem=store.settings.pyarrow_filesystem()
    )
    faulty.inject(SLOW_DOWN, times=2, methods=("GET",))
    filesystem = faulty.settings.pyarrow_filesystem()
    assert pyarrow.parquet.read_table(f"{store.settings.bucket}/t.parquet", filesystem=filesystem).equals(table)
    assert faulty.count(SLOW_DOWN) == 2


def test_pyarrow_insists_as_often_after_a_journey_to_another_process(store, faulty):
    store.put("key", b"x")
    path = f"{store.settings.bucket}/key"
    travelled = pickle.loads(pickle.dumps(faulty.settings.pyarrow_filesystem()))
    faulty.inject(SLOW_DOWN, times=3)
    # pyarrow's own filesystem forgets what it was told when it is pickled, and then tries three times in all.
    assert travelled.open_input_stream(path).read() == b"x"
    assert faulty.count(SLOW_DOWN) == 3
