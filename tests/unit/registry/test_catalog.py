from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from refocus.errors import AliasMoved, ConfigurationError, ModelCorrupt, ModelMissing
from refocus.registry.catalog import Catalog

from .conftest import package, report


def move(catalog, digest, seen=None, kind="promote"):
    return catalog.move("tiny", "champion", digest, seen=seen, kind=kind, why="test")


def test_a_version_comes_back_as_it_was_published(catalog):
    published = package(1)
    record = catalog.publish(published, who="ada")
    loaded = catalog.load("tiny", record.digest)
    assert loaded.digest == published.digest == record.digest
    assert (record.run, record.dataset, record.created_by) == ("run-1", "plates/v1", "ada")
    assert record.signature.channels == 1
    assert catalog.models() == ["tiny"]


def test_publishing_twice_makes_one_version(catalog):
    first = catalog.publish(package(1), who="ada")
    assert catalog.publish(package(1), who="bob") == first
    assert catalog.versions("tiny") == [first]


def test_the_last_evaluation_counts_and_the_weights_stay_as_they_were(catalog, store):
    record = catalog.publish(package(1, report(1.0)))
    for gain_db in (2.0, 2.0, 3.0):
        assert catalog.publish(package(1, report(gain_db))) == record
        assert catalog.report(catalog.load("tiny", record.digest)) == report(gain_db)
    # A publisher without one, or with the same once more, adds nothing.
    catalog.publish(package(1))
    catalog.publish(package(1, report(3.0)))
    keys = [entry.key for entry in store.list(f"registry/tiny/versions/{record.digest}/evaluations/")]
    assert [key.rpartition("/")[2][:5] for key in keys] == ["0001-", "0002-"]
    # What has been measured before may be what is decided by next.
    catalog.publish(package(1, report(1.0)))
    assert catalog.report(catalog.load("tiny", record.digest)) == report(1.0)
    assert catalog.verify("tiny") == {}


def test_an_added_evaluation_is_checked_as_all_files_are(catalog, store):
    record = catalog.publish(package(1, report(1.0)))
    catalog.publish(package(1, report(2.0)))
    (added,) = store.list(f"registry/tiny/versions/{record.digest}/evaluations/")
    store.put(added.key, store.get(added.key).replace(b"26", b"62"))
    with pytest.raises(ModelCorrupt, match="not what its name says"):
        catalog.load("tiny", record.digest)


def test_what_a_crash_left_unsealed_is_no_version_until_it_is_published_again(catalog, store):
    made = package(1)
    store.create(f"registry/tiny/versions/{made.digest}/weights.safetensors", made.files()["weights.safetensors"])
    with pytest.raises(ModelMissing):
        catalog.version("tiny", made.digest)
    assert catalog.versions("tiny") == []
    assert catalog.publish(made).digest == made.digest


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "card.json", "evaluation.json"])
def test_one_changed_byte_is_found_at_the_next_load(catalog, store, name):
    record = catalog.publish(package(1))
    key = f"registry/tiny/versions/{record.digest}/{name}"
    data = bytearray(store.get(key))
    data[-3] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(ModelCorrupt, match=name):
        catalog.load("tiny", record.digest)
    assert list(catalog.verify("tiny")) == [record.digest]


def test_a_file_that_is_gone_is_found_at_the_next_load(catalog, store):
    record = catalog.publish(package(1))
    store.delete(f"registry/tiny/versions/{record.digest}/weights.safetensors")
    with pytest.raises(ModelCorrupt, match="gone"):
        catalog.load("tiny", record.digest)


def test_an_alias_moves_only_from_what_was_seen(catalog):
    one, two, three = (catalog.publish(package(seed)).digest for seed in (1, 2, 3))
    move(catalog, one)
    seen = catalog.alias("tiny", "champion")
    move(catalog, two, seen)
    for stale in (None, seen):
        with pytest.raises(AliasMoved, match="meanwhile"):
            move(catalog, three, stale)
    assert catalog.alias("tiny", "champion")[0].digest == two
    assert [(e.sequence, e.from_digest, e.to_digest) for e in catalog.events("tiny")] == [(1, None, one), (2, one, two)]


def test_an_alias_never_names_what_is_not_there(catalog):
    with pytest.raises(ModelMissing, match="no version"):
        move(catalog, "0" * 64)
    with pytest.raises(ModelMissing, match="promote a version first"):
        catalog.alias("tiny", "champion")


def test_history_is_whole_though_a_mover_died_before_it_wrote_its_event(catalog, store):
    one, two = (catalog.publish(package(seed)).digest for seed in (1, 2))
    move(catalog, one)
    store.delete("registry/tiny/events/champion/00000001.json")
    assert [event.to_digest for event in catalog.events("tiny")] == [one]
    move(catalog, two, catalog.alias("tiny", "champion"))
    store.delete("registry/tiny/events/champion/00000002.json")
    assert [event.to_digest for event in catalog.events("tiny")] == [one, two]


def test_following_an_alias_costs_a_conditional_read(catalog):
    digest = catalog.publish(package(1)).digest
    move(catalog, digest)
    alias, etag = catalog.alias_if_changed("tiny", "champion", None)
    assert alias.digest == digest
    assert catalog.alias_if_changed("tiny", "champion", etag) is None


def test_references_are_aliases_digests_or_their_beginnings(catalog):
    digest = catalog.publish(package(1)).digest
    move(catalog, digest)
    for reference in ("champion", digest, digest[:6]):
        assert catalog.resolve("tiny", reference) == digest
    for reference in ("challenger", digest[:5], "f" * 64, ""):
        with pytest.raises(ModelMissing):
            catalog.resolve("tiny", reference)
    with pytest.raises(ConfigurationError, match="does not fit"):
        catalog.version("../raw", digest)


def test_collecting_spares_aliases_recent_events_and_the_young(store):
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    catalog = Catalog(store, now=lambda: clock[0])
    digests = [catalog.publish(package(seed)).digest for seed in range(4)]
    catalog.publish(package(0, report(1.0)))
    for digest in digests[:3]:
        clock[0] += timedelta(minutes=1)
        move(catalog, digest, None if digest == digests[0] else catalog.alias("tiny", "champion"))
    assert list(catalog.collect("tiny", keep_events=1)) == []
    clock[0] += timedelta(days=2)
    young = catalog.publish(package(9)).digest
    assert [r.digest for r in catalog.collect("tiny", keep_events=1, dry_run=True)] != []
    gone = {record.digest for record in catalog.collect("tiny", keep_events=1)}
    # The last event names the second and third; the fourth was never promoted.
    assert gone == {digests[0], digests[3]}
    assert {record.digest for record in catalog.versions("tiny")} == {digests[1], digests[2], young}
    assert not [entry for entry in store.list("registry/tiny/versions/") if digests[0] in entry.key]
