"""Errors as answers: problem+json that says what arrived, what was expected, and what there is."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from refocus.errors import RefocusError
from refocus.serving.config import ServingConfig
from refocus.serving.parameters import misfit
from refocus.serving.status import RETRY_AFTER_STATUSES, Refusal, problem_for
from refocus.wire import headers

_log = logging.getLogger("refocus.serving")


def add_error_handlers(app: FastAPI, config: ServingConfig) -> None:
    """Answer every error that is foreseen; what is not goes up to whoever called the application."""

    async def handle(request: Request, error: Exception) -> Response:
        return problem_response(error, request.scope, config)

    for kind in (RequestValidationError, HTTPException, Refusal, RefocusError, TimeoutError):
        app.add_exception_handler(kind, handle)


def problem_response(error: Exception, scope: Scope, config: ServingConfig) -> Response:
    """Return an error as problem+json, and leave the problem in the request's state for its line in the log."""
    state = scope.setdefault("state", {})
    correlation_id = state.get("correlation_id", "")
    extra: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        error = Refusal(422, "bad-request", " ".join(misfit(each) for each in error.errors()))
    elif isinstance(error, HTTPException):
        extra = _methods(error.headers or {})
        error = Refusal(error.status_code, "http", _in_words(error, scope, extra))
    problem = problem_for(error, instance=scope.get("path", ""), correlation_id=correlation_id)
    state["problem"] = problem
    if problem.status == 500:
        _log.error("request failed", exc_info=error, extra={"correlation_id": correlation_id})
    if problem.status in RETRY_AFTER_STATUSES:
        retry_after_s = getattr(error, "retry_after_s", None) or config.retry_after_s
        extra[headers.RETRY_AFTER] = str(math.ceil(retry_after_s))
    return Response(
        problem.model_dump_json(),
        status_code=problem.status,
        media_type=headers.PROBLEM_JSON,
        headers={**extra, headers.CORRELATION_ID: correlation_id},
    )


def _methods(said: Mapping[str, str]) -> dict[str, str]:
    """Return the Allow header of a 405, which knows that HEAD is answered wherever GET is."""
    allowed = {method.strip() for method in said.get("Allow", "").split(",") if method.strip()}
    return {"Allow": ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))} if allowed else {}


def _in_words(error: HTTPException, scope: Scope, extra: Mapping[str, str]) -> str:
    path, method = scope.get("path", ""), scope.get("method", "")
    if error.status_code == 404:
        there = sorted(route.path for route in scope["app"].routes if getattr(route, "include_in_schema", False))
        return f"There is nothing at {path[:200]}; there are {', '.join(there)}, and /docs describes them."
    if error.status_code == 405 and extra:
        return f"{method} is not answered at {path}; {extra['Allow']} is."
    return str(error.detail)
