from __future__ import annotations

import threading
import time

import pytest

from refocus.errors import ModelMissing, ModelUnfit
from refocus.serving.batching import BatchingModel
from refocus.serving.models import ModelSet
from refocus.testing.service import TINY_RGB, crown, tiny_package


def load(made):
    return BatchingModel(made, device="cpu", precision="fp32")


@pytest.fixture
def swaps() -> list:
    return []


@pytest.fixture
def models(catalog, swaps) -> ModelSet:
    return ModelSet(catalog, load, bundled=False, on_swap=lambda *said: swaps.append(said))


def digest(models: ModelSet) -> str:
    return models.pick(None, None, 1, None).package.digest


def test_a_new_champion_takes_over_without_a_restart(catalog, models):
    first = crown(catalog, tiny_package(1, name="tiny"))
    models.start()
    assert digest(models) == first
    second = crown(catalog, tiny_package(2, name="tiny"))
    assert digest(models) == first
    models.follow()
    assert digest(models) == second


def test_who_began_with_the_old_model_finishes_with_it(catalog, models):
    crown(catalog, tiny_package(1, name="tiny"))
    models.start()
    held = models.pick(None, None, 1, None)
    crown(catalog, tiny_package(2, name="tiny"))
    models.follow()
    import numpy as np

    image = np.random.default_rng(0).integers(0, 4000, (1, 40, 40)).astype(np.uint16)
    assert held.runner.restore(image, axes="ZYX").digest == held.package.digest


class Meanwhile:
    """What is asked for; the question lets something happen first, as another thread may at any time."""

    def __init__(self, happens) -> None:
        self.happens = happens

    def __eq__(self, other: object) -> bool:
        self.happens()
        return True

    __hash__ = None  # type: ignore[assignment]


def test_a_first_champion_may_begin_to_serve_while_a_request_looks_for_its_model(catalog, models):
    first = crown(catalog, tiny_package(1, name="tiny"))
    models.start()
    crown(catalog, tiny_package(2, name="another"))
    assert models.pick(None, Meanwhile(models.follow), 1, None).package.digest == first
    assert {state.name for state in models.states()} == {"tiny", "another"}


def test_a_champion_with_a_changed_byte_leaves_the_old_one_serving_and_says_why(catalog, store, models, swaps):
    first = crown(catalog, tiny_package(1, name="tiny"))
    models.start()
    second = crown(catalog, tiny_package(2, name="tiny"))
    key = f"registry/tiny/versions/{second}/weights.safetensors"
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    models.follow()
    assert digest(models) == first
    (state,) = models.states()
    assert (state.digest, state.wanted_digest) == (first, second)
    assert "not what it was sealed with" in (state.problem or "")
    assert swaps[-1][1] == second
    # Not tried again at every turn, but at once when the alias moves on.
    models.follow()
    assert len(swaps) == 2
    third = crown(catalog, tiny_package(3, name="tiny"))
    models.follow()
    assert digest(models) == third
    assert models.states()[0].problem is None


def test_a_champion_that_fails_its_golden_image_is_not_served(catalog, store, models):
    first = crown(catalog, tiny_package(1, name="tiny"))
    models.start()
    second = crown(catalog, tiny_package(2, name="tiny"))
    key = f"registry/tiny/versions/{second}/version.json"
    record = catalog.version("tiny", second)
    wrong = record.golden.model_copy(update={"spread": record.golden.spread + 1.0})
    store.put(key, record.model_copy(update={"golden": wrong}).model_dump_json().encode())
    threads = set(threading.enumerate())
    models.follow()
    assert digest(models) == first
    assert "golden image" in (models.states()[0].problem or "")
    # A thread that waited for requests for ever would hold its weights in the device's memory as long.
    deadline = time.monotonic() + 30.0
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_is_gone_leaves_everything_serving(catalog, models, monkeypatch):
    from refocus.errors import StoreUnreachable

    first = crown(catalog, tiny_package(1, name="tiny"))
    models.start()

    def unreachable(*_):
        raise StoreUnreachable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "models", unreachable)
        models.follow()
        assert digest(models) == first
        assert models.all_problems() == ("store: no answer",)
    second = crown(catalog, tiny_package(2, name="tiny"))
    models.follow()
    assert digest(models) == second
    assert models.all_problems() == ()


def test_versions_can_be_pinned_and_the_cache_stays_small(catalog, models):
    digests = [crown(catalog, tiny_package(seed, name="tiny")) for seed in (1, 2, 3, 4)]
    models.start()
    for wanted in digests[:3]:
        assert models.pick(f"tiny@{wanted[:8]}", None, 1, None).package.digest == wanted
    assert [pinned for _, pinned in models._pinned] == digests[1:3]
    assert models.pick("tiny@champion", None, 1, None).package.digest == digests[3]
    with pytest.raises(ModelMissing, match="fits 0 versions"):
        models.pick("tiny@ffffffff", None, 1, None)
    with pytest.raises(ModelMissing, match="no champion"):
        models.pick("other", None, 1, None)


def test_a_version_that_was_published_under_two_names_answers_to_each(catalog, models):
    package = tiny_package(1, name="tiny")
    for name in ("tiny", "twin"):
        catalog.publish(package, model=name)
    models.start()
    for name in ("tiny", "twin"):
        assert models.pick(f"{name}@{package.digest}", None, 1, None).name == name


def test_the_image_chooses_its_model_by_colours_and_modality(catalog, models):
    grey, tinted = (
        crown(catalog, tiny_package(1, name="tiny")),
        crown(catalog, tiny_package(2, name="tinted", network=TINY_RGB)),
    )
    models.start()
    assert models.pick(None, None, 1, None).package.digest == grey
    assert models.pick(None, None, 3, None).package.digest == tinted
    assert models.pick(None, "brightfield", 1, None).package.digest == tinted
    assert models.pick(None, None, 1, "tinted").package.digest == tinted
    with pytest.raises(ModelUnfit, match="phase_contrast"):
        models.pick(None, "phase_contrast", 1, None)


def test_without_any_model_the_reason_says_what_to_do(models):
    models.start()
    with pytest.raises(ModelMissing, match=r"no champion that loads.*jobs/promote.py"):
        models.pick(None, None, 1, None)
