"""May a candidate become champion? A pure function of two evaluation reports and a policy."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refocus.errors import ConfigurationError, InputError, in_one_line, not_fitting
from refocus.model.calibration import FEWEST_SPECIMENS
from refocus.model.evaluation import INPUT, MORE_IS_BETTER, EvaluationReport, Metric, paired_difference
from refocus.registry.records import Decision, Failure


class GatePolicy(BaseModel):
    """What a candidate must hold; every bound is stated here and nowhere else.

    Parameters
    ----------
    metric : str
        By which the candidate must be better overall: the low end of the bootstrap interval over specimens of the
        paired difference is above `minimum_gain`.
    level : float
        Of that interval.
    minimum_gain : float
        In the metric's unit.
    band_tolerance : mapping of metric to float
        By how much the candidate may be worse in any band of defocus, in the metric's unit.
    coverage : (low, high) or None
        Where the share of pixels inside the 90% interval must lie, over all depths; None asks for none.
    band_coverage : (low, high) or None
        Where it must lie in every band of simulated defocus by itself: wider, since fewer images know it less well.
    slowest_ms_per_megapixel : float or None
        The speed budget, on the machine of the report.
    golden : bool
        Whether the golden image must be reproduced on the machine that promotes.
    minimum_specimens : int
        Fewer say nothing about images to come.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric = "psnr_db"
    level: float = Field(default=0.95, gt=0, lt=1)
    minimum_gain: float = 0.0
    band_tolerance: dict[Metric, float] = Field(default={"psnr_db": 0.1, "ssim": 0.005})
    coverage: tuple[float, float] | None = (0.88, 0.92)
    band_coverage: tuple[float, float] | None = (0.80, 0.98)
    slowest_ms_per_megapixel: float | None = Field(default=None, gt=0)
    golden: bool = True
    minimum_specimens: int = Field(default=3, ge=1)

    @property
    def asks_for_intervals(self) -> bool:
        """Whether a candidate needs calibrated intervals."""
        return self.coverage is not None or self.band_coverage is not None

    @classmethod
    def load(cls, policy: str | Path) -> GatePolicy:
        """Read a policy file, or one that ships with Refocus, by name: ``default``, ``quickstart``.

        Raises
        ------
        ConfigurationError
        """
        shipped = {path.stem: path for path in sorted((Path(__file__).parent / "policies").glob("*.yaml"))}
        path = shipped.get(str(policy), Path(policy))
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()) or {})
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no gate policy {policy}; expected a YAML file or one of {', '.join(shipped)}."
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the gate policy {path} is no YAML: {in_one_line(error)}.") from error
        except ValidationError as error:
            raise not_fitting(error, f"the gate policy {path} does not fit:") from error


_UNCALIBRATED = (
    f"not measured: the candidate's intervals were never fitted, for which the dataset's calibration split must have "
    f"sharp images of {FEWEST_SPECIMENS} specimens. Ingest more and promote again, or promote under a policy that asks "
    "for no coverage (--policy quickstart): its intervals are then a guess."
)


def decide(
    candidate: EvaluationReport,
    champion: EvaluationReport | None,
    policy: GatePolicy,
    *,
    calibrated: bool = True,
    golden_difference: float | None = None,
    golden_tolerance: float = 0.0,
) -> Decision:
    """Judge a candidate.

    Parameters
    ----------
    candidate : EvaluationReport
    champion : EvaluationReport or None
        Of the present champion, on the same images. Without one the candidate must beat the images as they came.
    policy : GatePolicy
    calibrated : bool
        Whether the candidate's intervals were fitted; what others happen to cover is no promise.
    golden_difference : float or None
        How far the promoting machine is from the candidate's golden output; None where it was not tried.
    golden_tolerance : float

    Returns
    -------
    Decision
        With every condition that failed, not only the first.
    """
    if candidate.model is None:
        return refusal("input", "report", "it judges no model; evaluate the candidate.")
    reference = candidate if champion is None else champion
    method = INPUT if champion is None else champion.model
    against = "the input" if champion is None else f"champion {(champion.digest or 'without digest')[:12]}"
    failures: list[Failure] = []
    observations: list[str] = []
    _judge_overall(candidate, reference, method, policy, against, failures, observations)
    for metric in dict.fromkeys((policy.metric, *policy.band_tolerance)):
        _judge_lost(candidate, reference, method, metric, against, failures)
    for metric, tolerance in policy.band_tolerance.items():
        _judge_bands(candidate, reference, method, metric, tolerance, against, failures)
    if calibrated:
        _judge_coverage(candidate, policy, failures, observations)
        _judge_band_coverage(candidate, policy, failures)
    elif policy.asks_for_intervals:
        failures.append(Failure(condition="coverage", detail=_UNCALIBRATED))
    _judge_speed(candidate, policy, failures, observations)
    if policy.golden and golden_difference is None:
        failures.append(Failure(condition="golden image", detail="it was not tried on this machine."))
    elif policy.golden and golden_difference is not None and golden_difference > golden_tolerance:
        failures.append(
            Failure(
                condition="golden image",
                detail=f"off by {golden_difference:.3g} on this machine; {golden_tolerance:.3g} is allowed.",
            )
        )
    return Decision(against=against, passed=not failures, failures=tuple(failures), observations=tuple(observations))


def refusal(against: str, condition: str, detail: str) -> Decision:
    """Refuse for one condition, without which nothing else can be judged."""
    return Decision(against=against, passed=False, failures=(Failure(condition=condition, detail=detail),))


def _judge_overall(
    candidate: EvaluationReport,
    reference: EvaluationReport,
    method: str | None,
    policy: GatePolicy,
    against: str,
    failures: list[Failure],
    observations: list[str],
) -> None:
    name = policy.metric
    try:
        found = paired_difference(candidate.by_specimen(name), reference.by_specimen(name, method), level=policy.level)
    except InputError as error:
        failures.append(Failure(condition="same images", detail=str(error)))
        return
    sign = 1 if MORE_IS_BETTER.get(name, True) else -1
    low, high = sorted((sign * found.low, sign * found.high))
    said = (
        f"{name} {_number(candidate.mean(name))} against {_number(reference.mean(name, method))} of {against}: "
        f"better by {sign * found.mean:.4g}, {policy.level:.0%} interval {low:.4g} to {high:.4g} "
        f"over {found.specimens} specimens"
    )
    observations.append(said)
    if found.specimens < policy.minimum_specimens:
        failures.append(
            Failure(
                condition="specimens", detail=f"{found.specimens} are shared; {policy.minimum_specimens} are needed."
            )
        )
    if not low > policy.minimum_gain:
        failures.append(
            Failure(condition="better overall", detail=f"{said}; the low end must exceed {policy.minimum_gain:g}.")
        )


def _judge_lost(
    candidate: EvaluationReport,
    reference: EvaluationReport,
    method: str | None,
    metric: Metric,
    against: str,
    failures: list[Failure],
) -> None:
    """Means leave out what has no value, as an image of which nothing is resolved: that must not pass for better."""
    for modality in reference.modalities:
        for band in reference.bands:
            theirs = reference.by_specimen(metric, method, band=band, modality=modality)
            ours = candidate.by_specimen(metric, band=band, modality=modality)
            lost = candidate.without_value(metric, band=band, modality=modality)
            known = reference.without_value(metric, method, band=band, modality=modality)
            worse = [specimen for specimen in theirs if lost.get(specimen, 0) > known.get(specimen, 0)]
            if worse:
                named = ", ".join(worse[:3]) + (" ..." if len(worse) > 3 else "")
                detail = f"no value for images of {len(worse)} specimens of {modality} ({named}); {against} has one."
            elif theirs and not ours.keys() & theirs.keys():
                detail = f"not measured on {modality}; {against} was."
            else:
                continue
            failures.append(Failure(condition=f"{metric} at {band}", detail=detail))


def _judge_bands(
    candidate: EvaluationReport,
    reference: EvaluationReport,
    method: str | None,
    metric: Metric,
    tolerance: float,
    against: str,
    failures: list[Failure],
) -> None:
    sign = 1 if MORE_IS_BETTER.get(metric, True) else -1
    for modality in reference.modalities:
        for band in reference.bands:
            theirs = reference.by_specimen(metric, method, band=band, modality=modality)
            ours = candidate.by_specimen(metric, band=band, modality=modality)
            shared = ours.keys() & theirs.keys()
            if not shared:
                continue
            mine, other = (sum(values[s] for s in shared) / len(shared) for values in (ours, theirs))
            if sign * (other - mine) > tolerance:
                failures.append(
                    Failure(
                        condition=f"no worse at {band} ({modality})",
                        detail=f"{metric} {mine:.4g} against {other:.4g} of {against}; {tolerance:g} worse is allowed.",
                    )
                )


def _judge_coverage(
    candidate: EvaluationReport, policy: GatePolicy, failures: list[Failure], observations: list[str]
) -> None:
    if policy.coverage is None:
        return
    low, high = policy.coverage
    covered = candidate.mean_of(lambda measurement: measurement.coverage)
    if covered is None:
        failures.append(
            Failure(condition="coverage", detail=f"not measured; {low:.0%} to {high:.0%} is expected. Calibrate first.")
        )
        return
    observations.append(f"coverage {covered:.3f}")
    if not low <= covered <= high:
        failures.append(Failure(condition="coverage", detail=f"{covered:.3f}; {low} to {high} is expected."))


def _judge_band_coverage(candidate: EvaluationReport, policy: GatePolicy, failures: list[Failure]) -> None:
    """Depths that are covered too well do not make up for one that is not."""
    if policy.band_coverage is None:
        return
    low, high = policy.band_coverage
    simulated = dict.fromkeys((m.modality, m.band) for m in candidate.select() if m.kind == "simulated")
    for modality, band in simulated:
        covered = candidate.mean_of(lambda measurement: measurement.coverage, band=band, modality=modality)
        if covered is not None and not low <= covered <= high:
            failures.append(
                Failure(
                    condition=f"coverage at {band} ({modality})",
                    detail=f"{covered:.3f}; {low:g} to {high:g} is expected at every depth.",
                )
            )


def _judge_speed(
    candidate: EvaluationReport, policy: GatePolicy, failures: list[Failure], observations: list[str]
) -> None:
    budget = policy.slowest_ms_per_megapixel
    spent = candidate.ms_per_megapixel
    if spent is not None:
        observations.append(f"{spent:.4g} ms per megapixel")
    if budget is None:
        return
    if spent is None:
        failures.append(Failure(condition="speed", detail=f"not measured; the budget is {budget:g} ms per megapixel."))
    elif spent > budget:
        failures.append(Failure(condition="speed", detail=f"{spent:.4g} ms per megapixel; the budget is {budget:g}."))


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"
