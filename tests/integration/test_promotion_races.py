"""Twenty promotions at once on a real store: one winner each time, and a history without gaps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from refocus.errors import AliasMoved
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.registry.catalog import Catalog

pytestmark = pytest.mark.store
RACERS = 20
TINY = NetworkConfig(widths=(4, 4), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)


def package(seed: int) -> ModelPackage:
    torch.manual_seed(seed)
    config = PackageConfig(name="raced", modality="fluorescence", network=TINY, largest_blur_px=8.0)
    return ModelPackage.of(build_network(TINY), config)


def test_twenty_racing_promotions_have_one_winner_each_round(store):
    digests = [Catalog(store).publish(package(seed)).digest for seed in range(RACERS)]

    def race(digest: str, catalog: Catalog, seen, start: threading.Barrier) -> bool:
        start.wait()
        try:
            catalog.move("raced", "champion", digest, seen=seen, kind="promote", why="race")
        except AliasMoved:
            return False
        return True

    # Each racer has connections of its own, made before the first race: making them would string the racers out.
    catalogs = [Catalog(ObjectStore(store.settings)) for _ in range(RACERS)]
    for catalog in catalogs:
        catalog.models()
    with ThreadPoolExecutor(RACERS) as pool:
        for expected_sequence in range(1, 6):
            # All have seen the same champion.
            seen = None if expected_sequence == 1 else catalogs[0].alias("raced", "champion")
            start = threading.Barrier(RACERS)
            wins = list(pool.map(race, digests, catalogs, [seen] * RACERS, [start] * RACERS))
            assert wins.count(True) == 1
            alias, _ = catalogs[0].alias("raced", "champion")
            assert alias.digest == digests[wins.index(True)]
            assert alias.event.sequence == expected_sequence

    events = Catalog(store).events("raced")
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    # Each move starts where the one before ended: nothing is lost between.
    assert [event.from_digest for event in events] == [None, *(event.to_digest for event in events[:-1])]
    assert len(list(store.list("registry/raced/events/champion/"))) == 5


def test_publishing_the_same_version_twenty_times_at_once_makes_one(store):
    start = threading.Barrier(RACERS)
    # Made once: torch's seed is the process's, and threads that seed at the same time make other weights.
    same = package(7)

    def publish(_: int) -> str:
        catalog = Catalog(ObjectStore(store.settings))
        start.wait()
        return catalog.publish(same).digest

    with ThreadPoolExecutor(RACERS) as pool:
        digests = set(pool.map(publish, range(RACERS)))
    assert len(digests) == 1
    assert Catalog(store).verify("raced") == {}
    assert len(Catalog(store).versions("raced")) == 1
