from __future__ import annotations

import pytest

from refocus.errors import AliasMoved, ConfigurationError, ModelMissing, PromotionRefused
from refocus.registry import promotion
from refocus.registry.gates import GatePolicy
from refocus.registry.promotion import promote, rollback

from .conftest import package, report


def champion(catalog) -> str:
    return catalog.alias("tiny", "champion")[0].digest


def test_a_candidate_that_beats_the_input_becomes_the_first_champion(catalog):
    made = promote(catalog, package(1, report(2.0)), why="first light", who="ada")
    assert champion(catalog) == made.version.digest
    event = made.alias.event
    assert (event.who, event.why, event.from_digest, event.forced) == ("ada", "first light", None, False)
    assert event.decision is not None
    assert event.decision.passed


def test_a_refusal_names_its_reasons_and_moves_nothing(catalog):
    first = promote(catalog, package(1, report(2.0)), why="first light")
    with pytest.raises(PromotionRefused, match="better overall") as refusal:
        promote(catalog, package(2, report(1.0)), why="hope")
    assert any("better overall" in reason for reason in refusal.value.reasons)
    assert champion(catalog) == first.version.digest
    assert len(catalog.events("tiny")) == 1


def test_what_a_promotion_was_decided_by_is_what_the_version_is_known_by(catalog):
    with pytest.raises(PromotionRefused):
        promote(catalog, package(1, report(-1.0)), why="a quick look")
    made = promote(catalog, package(1, report(2.0)), why="a long one")
    assert catalog.report(catalog.load("tiny", made.version.digest)) == report(2.0)


def test_force_moves_and_is_written_down(catalog):
    promote(catalog, package(1, report(2.0)), why="first light")
    made = promote(catalog, package(2, report(1.0)), why="the old one leaks", force=True)
    assert champion(catalog) == made.version.digest
    event = catalog.events("tiny")[-1]
    assert event.forced
    assert event.decision is not None
    assert not event.decision.passed


@pytest.mark.parametrize("force", [False, True])
def test_nothing_moves_without_a_reason(catalog, force):
    with pytest.raises(ConfigurationError, match="needs a reason"):
        promote(catalog, package(1, report(2.0)), why=" ", force=force)


def test_a_candidate_without_an_evaluation_is_refused(catalog):
    with pytest.raises(PromotionRefused, match="evaluate it first"):
        promote(catalog, package(1), why="hope")


def test_intervals_that_were_never_fitted_pass_only_where_none_are_asked_for(catalog):
    guess = package(1, report(2.0, coverage=0.9), calibrated=False)
    with pytest.raises(PromotionRefused, match=r"coverage: not measured: .* never fitted.*--policy quickstart"):
        promote(catalog, guess, why="hope")
    made = promote(catalog, guess, why="no interval is shown", policy=GatePolicy.load("quickstart"))
    assert champion(catalog) == made.version.digest


@pytest.mark.parametrize("force", [False, True])
def test_the_champion_cannot_succeed_itself(catalog, force):
    promote(catalog, package(1, report(2.0)), why="first light")
    with pytest.raises(PromotionRefused, match="champion already"):
        promote(catalog, package(1, report(2.0)), why="again", force=force)
    assert len(catalog.events("tiny")) == 1


def test_a_challenger_needs_no_victory(catalog):
    promote(catalog, package(1, report(2.0)), why="first light")
    made = promote(catalog, package(2, report(1.0)), why="watch it", alias="challenger")
    assert catalog.alias("tiny", "challenger")[0].digest == made.version.digest


def test_who_loses_the_race_is_told_so(catalog, monkeypatch):
    promote(catalog, package(1, report(1.0)), why="first light")
    other = promotion.judge

    def judge_slowly(*arguments):
        decision = other(*arguments)
        monkeypatch.setattr(promotion, "judge", other)
        promote(catalog, package(2, report(2.0)), why="faster")
        return decision

    monkeypatch.setattr(promotion, "judge", judge_slowly)
    with pytest.raises(AliasMoved):
        promote(catalog, package(3, report(3.0)), why="slower")


def test_who_was_compared_with_a_champion_of_yesterday_is_told_so(catalog):
    first = promote(catalog, package(1, report(1.0)), why="first light").version.digest
    of_first = report(1.0).model_copy(update={"digest": first})
    second = promote(catalog, package(2, report(4.0)), why="faster", champion_report=of_first).version.digest
    # Better than the first, worse than the second.
    for force in (False, True):
        with pytest.raises(AliasMoved, match=f"{first[:12]}, and the champion is {second[:12]} now"):
            promote(catalog, package(3, report(2.0)), why="slower", champion_report=of_first, force=force)
    assert champion(catalog) == second


def test_rolling_back_returns_to_the_version_before(catalog):
    digests = [promote(catalog, package(seed, report(float(seed))), why="better").version.digest for seed in (1, 2, 3)]
    assert rollback(catalog, "tiny", why="seams").digest == digests[1]
    # Again: not forward to what was just left, but further back.
    assert rollback(catalog, "tiny", why="still seams").digest == digests[0]
    with pytest.raises(
        ModelMissing, match=f"nothing before it; it has been {digests[1][:12]}, {digests[2][:12]} since"
    ):
        rollback(catalog, "tiny", why="and again")
    assert rollback(catalog, "tiny", why="it was the lamp", to=digests[2]).digest == digests[2]
    assert [event.kind for event in catalog.events("tiny")] == ["promote"] * 3 + ["rollback"] * 3


def test_rolling_back_passes_over_moves_that_moved_nothing(catalog):
    digests = [promote(catalog, package(seed, report(float(seed))), why="better").version.digest for seed in (1, 2)]
    # As forced promotions of the champion once wrote them.
    seen = catalog.alias("tiny", "champion")
    catalog.move("tiny", "champion", digests[1], seen=seen, kind="promote", why="again", forced=True)
    assert rollback(catalog, "tiny", why="seams").digest == digests[0]


def test_rolling_back_goes_only_where_the_alias_has_been(catalog):
    first = promote(catalog, package(1, report(1.0)), why="first light").version.digest
    second = promote(catalog, package(2, report(2.0)), why="better").version.digest
    with pytest.raises(PromotionRefused):
        promote(catalog, package(3, report(0.5)), why="hope")
    refused = package(3).digest
    with pytest.raises(ModelMissing, match=f"never been {refused[:12]}; it was {first[:12]}"):
        rollback(catalog, "tiny", why="hope", to=refused)
    with pytest.raises(ConfigurationError, match="already"):
        rollback(catalog, "tiny", why="hope", to=second)
    assert champion(catalog) == second
    assert rollback(catalog, "tiny", why="seams", to=first[:8]).digest == first
