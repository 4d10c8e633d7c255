"""When a request is made again, after how long, and what it fails with in the end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from refocus.errors import ConfigurationError, RequestRefused, ServiceBusy, ServiceError, ServiceFailed
from refocus.wire import headers
from refocus.wire.problem import Problem

#: Answers of a service that is busy, or restarting behind a proxy.
_PASSING = frozenset({429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long in all."""

    retries: int
    patience_s: float
    first_pause_s: float = 0.25

    def __post_init__(self) -> None:
        if self.retries < 0 or not self.patience_s >= 0:
            raise ConfigurationError(
                f"retries is {self.retries} and patience_s {self.patience_s}; expected none below 0. retries=0 asks "
                "once."
            )


def pause_before(number: int, response: httpx.Response | None, policy: RetryPolicy) -> float | None:
    """Return how long to wait before attempt ``number + 1``; None where asking again will not help.

    No answer counts as passing. The service's own wish is honoured; otherwise pauses double, with jitter, so that
    clients that failed together do not come back together.
    """
    if response is not None:
        if response.status_code not in _PASSING:
            return None
        # A failure that is the service's own says so; one from a proxy between does not speak problem+json.
        if response.status_code == 500 and _problem(response) is not None:
            return None
        asked = retry_after_s(response)
        if asked is not None:
            return min(asked, _LONGEST_PAUSE_S) + random.uniform(0.0, 0.25)
    return min(policy.first_pause_s * 2.0**number, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)


def retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, None where there is none that is a number."""
    try:
        return max(0.0, float(response.headers[headers.RETRY_AFTER]))
    except (KeyError, ValueError):
        return None


def error_for(
    response: httpx.Response | None,
    lost: httpx.TransportError | None,
    url: str,
    correlation_id: str,
    *,
    timeout_s: float,
) -> ServiceError:
    """Return the error for an attempt that was the last."""
    if isinstance(lost, httpx.ReadTimeout | httpx.WriteTimeout):
        return ServiceFailed(
            f"{url} took the connection and did not answer within timeout_s={timeout_s:g}. Give the client a longer "
            "timeout_s, or send smaller pieces.",
            correlation_id=correlation_id,
        )
    if response is None:
        return ServiceFailed(
            f"{url} does not answer ({lost or type(lost).__name__}). Is the service running, and the address right?",
            correlation_id=correlation_id,
        )
    problem = _problem(response)
    status = response.status_code
    detail = problem.detail or problem.title if problem else response.text[:300] or response.reason_phrase
    correlation_id = (problem.correlation_id if problem else "") or correlation_id
    message = f"{detail} (HTTP {status}, correlation id {correlation_id})"
    if status in (429, 503):
        return ServiceBusy(message, status=status, correlation_id=correlation_id, retry_after_s=retry_after_s(response))
    if 400 <= status < 500:
        return RequestRefused(message, status=status, correlation_id=correlation_id)
    return ServiceFailed(message, status=status, correlation_id=correlation_id)


def _problem(response: httpx.Response) -> Problem | None:
    if not response.headers.get("content-type", "").startswith(headers.PROBLEM_JSON):
        return None
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None
