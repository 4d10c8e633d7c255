"""From a trained package to champion, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refocus.errors import AliasMoved, ConfigurationError, ModelMissing, ModelUnfit, PromotionRefused
from refocus.model.checkpoint import ModelPackage
from refocus.model.evaluation import EvaluationReport
from refocus.model.golden import TOLERANCE, golden_output, largest_difference
from refocus.registry.catalog import Catalog
from refocus.registry.gates import GatePolicy, decide, refusal
from refocus.registry.records import Alias, AliasName, Decision, Event, VersionRecord


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of promoting."""

    version: VersionRecord
    decision: Decision
    alias: Alias


def promote(
    catalog: Catalog,
    package: ModelPackage,
    *,
    why: str,
    model: str | None = None,
    policy: GatePolicy | None = None,
    champion_report: EvaluationReport | None = None,
    alias: AliasName = "champion",
    force: bool = False,
    who: str | None = None,
) -> Promotion:
    """Publish `package`, ask the gate, and move the alias.

    Parameters
    ----------
    catalog : Catalog
    package : ModelPackage
        With its evaluation.
    why : str
        For the record; needed.
    model : str, optional
        The package's own name where not given.
    policy : GatePolicy, optional
    champion_report : EvaluationReport, optional
        Of the present champion on the candidate's images; the one it was published with where not given.
    alias : {'champion', 'challenger'}
        A challenger is judged against the champion too, and moves whatever the gate says: that is its use.
    force : bool
        Move although the gate refuses; written down with `why`.
    who : str, optional

    Raises
    ------
    PromotionRefused
        With every condition that failed. The version stays published. Also, forced or not, if the alias names it
        already: there is nothing to move.
    AliasMoved
        If another promotion won the race: `champion_report` is of a version that is champion no more, or the alias
        moved meanwhile.
    ConfigurationError
        If `why` says nothing.
    """
    if not why.strip():
        raise ConfigurationError("a promotion needs a reason; say why in a few words (--reason).")
    version = catalog.publish(package, model=model, who=who)
    seen = seen_alias(catalog, version.model, alias)
    if seen is not None and seen[0].digest == version.digest:
        raise PromotionRefused(
            f"{alias} of {version.model!r} stays where it is.", [f"new: {version.digest[:12]} is the {alias} already."]
        )
    decision = judge(catalog, package, version, policy or GatePolicy.load("default"), champion_report)
    if not decision.passed and not force and alias == "champion":
        raise PromotionRefused(
            f"{version.model} {version.digest[:12]} is published but not promoted. Against {decision.against}:",
            [str(failure) for failure in decision.failures],
        )
    moved = catalog.move(
        version.model,
        alias,
        version.digest,
        seen=seen,
        kind="promote",
        why=why,
        who=who,
        forced=force and not decision.passed,
        decision=decision,
    )
    return Promotion(version, decision, moved)


def judge(
    catalog: Catalog,
    package: ModelPackage,
    version: VersionRecord,
    policy: GatePolicy,
    champion_report: EvaluationReport | None = None,
) -> Decision:
    """Ask the gate, with the golden image tried on this machine."""
    candidate_report = catalog.report(package)
    against, champion_digest = "the input", None
    champion = seen_alias(catalog, version.model, "champion")
    if champion is not None:
        champion_digest = champion[0].digest
        against = f"champion {champion_digest[:12]}"
        if champion_digest == version.digest:
            return refusal(against, "new", "it is the champion already.")
        if champion_report is None:
            champion_report = catalog.report(catalog.load(version.model, champion_digest))
        elif champion_report.digest != champion_digest:
            compared = (champion_report.digest or "nothing")[:12]
            raise AliasMoved(
                f"{version.model} {version.digest[:12]} was compared with {compared}, and the champion is "
                f"{champion_digest[:12]} now: another promotion came between. Promote again to compare them."
            )
    if candidate_report is None:
        return refusal(against, "evaluation", "the candidate has none; evaluate it first.")
    if champion is not None and champion_report is None:
        return refusal(against, "evaluation", "the champion has none; evaluate it on the same images.")
    try:
        difference = largest_difference(golden_output(package), version.golden)
    except ModelUnfit:
        difference = float("inf")
    return decide(
        candidate_report,
        champion_report,
        policy,
        calibrated=package.config.calibration.fitted,
        golden_difference=difference,
        golden_tolerance=TOLERANCE,
    )


def rollback(
    catalog: Catalog,
    model: str,
    *,
    why: str,
    to: str | None = None,
    alias: AliasName = "champion",
    who: str | None = None,
) -> Alias:
    """Move an alias back to the version before, or to one that it once named: one write.

    Raises
    ------
    ModelMissing
        If there is nothing to go back to, or the alias has never named `to`.
    ConfigurationError
        If it names `to` now.
    AliasMoved
    """
    if not why.strip():
        raise ConfigurationError("a rollback needs a reason; say why in a few words (--reason).")
    seen = catalog.alias(model, alias)
    moves = [event for event in catalog.events(model, alias) if event.from_digest != event.to_digest]
    target = _before(seen[0].digest, moves) if to is None else _once_named(catalog.resolve(model, to), seen[0], moves)
    if target is None:
        named = ", ".join(each[:12] for each in _others_named(seen[0].digest, moves))
        raise ModelMissing(
            f"{alias} of {model!r} is {seen[0].digest[:12]}, and there is nothing before it"
            + (f"; it has been {named} since, which --to names." if named else ".")
        )
    return catalog.move(model, alias, target, seen=seen, kind="rollback", why=why, who=who)


def _before(digest: str, moves: Sequence[Event]) -> str | None:
    arrivals = [event for event in moves if event.to_digest == digest]
    # A version that was rolled back from is not what "before" means: follow promotions alone.
    promotions = [event for event in arrivals if event.kind == "promote"]
    return (promotions or arrivals)[-1].from_digest if arrivals else None


def _once_named(digest: str, now: Alias, moves: Sequence[Event]) -> str:
    model, alias = now.event.model, now.event.alias
    if digest == now.digest:
        raise ConfigurationError(f"{alias} of {model!r} is {digest[:12]} already; name the version to go back to.")
    before = _others_named(now.digest, moves)
    if digest not in before:
        there = ", ".join(each[:12] for each in before) or "no other"
        raise ModelMissing(
            f"{alias} of {model!r} has never been {digest[:12]}; it was {there}. "
            "A version that no gate has seen is promoted, not gone back to ('refocus models promote')."
        )
    return digest


def _others_named(digest: str, moves: Sequence[Event]) -> list[str]:
    """The other versions that an alias has named, the last first."""
    return list(dict.fromkeys(event.to_digest for event in reversed(moves) if event.to_digest != digest))


def seen_alias(catalog: Catalog, model: str, alias: AliasName) -> tuple[Alias, str] | None:
    """Return an alias and its ETag, None where it has never been set."""
    try:
        return catalog.alias(model, alias)
    except ModelMissing:
        return None
