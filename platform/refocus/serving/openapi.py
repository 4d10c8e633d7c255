"""What ``/docs`` says of bodies and answers that are images, which types cannot say."""

from __future__ import annotations

from typing import Any

from refocus.wire import headers
from refocus.wire.problem import Problem

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "description": "A TIFF, OME-TIFF, PNG or JPEG image: grey or RGB, 8 or 16 bit; as TIFF also signed, "
    "32-bit, or float of 32 or 64 bit. "
    "Raw, or as the one file of a form.",
    "content": {
        "image/tiff": _IMAGE,
        "image/png": _IMAGE,
        "image/jpeg": _IMAGE,
        "application/octet-stream": _IMAGE,
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
        },
    },
}
_EXAMPLE = Problem(
    type="urn:refocus:problem:too-large",
    title="The image is over a limit",
    status=413,
    detail="The image claims 100000 x 100000 pixels; the limit is 64000000 pixels a plane. Send it in crops.",
    instance="/v1/refocus",
    correlation_id="3f1c9a0e5d7b4c2f8a6e1b0d9c8f7e6a",
)


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {
            headers.PROBLEM_JSON: {"schema": Problem.model_json_schema(), "example": _EXAMPLE.model_dump(mode="json")}
        },
    }


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The form holds no image"),
    404: _problem("There is no such model"),
    408: _problem("The body came too slowly"),
    413: _problem("Over a limit of bytes, pixels or pages"),
    415: _problem("The body is no image"),
    422: _problem("The image is broken, of a kind that is not handled, or a parameter does not fit"),
    429: _problem("Too many requests wait; Retry-After says when to come back"),
    503: _problem("Busy, or no model to serve; Retry-After says when to come back"),
    504: _problem("It took too long"),
}
_SAID = {
    name: {"description": words, "schema": {"type": "string"}}
    for name, words in (
        (headers.MODEL, "Name of the model"),
        (headers.MODEL_DIGEST, "SHA-256 of the model version"),
        (headers.OUT_OF_RANGE, "Share of the image that is further out of focus than the model was trained for"),
        (headers.DEFOCUS_UM, "Estimated distance from focus, unsigned, where pixel size and aperture are known"),
        (headers.OPTICS, "Objective, light and pixels that the blur was read with, where they were told"),
        (headers.INTERVAL_SCALE, "Level, calibration and pages of the half widths, where they were asked for"),
        (headers.SERVER_TIMING, "Milliseconds for decode, queue, model and encode"),
        (headers.CORRELATION_ID, "What the service's log knows this request by"),
    )
}

REFOCUS_DOCS: dict[str, Any] = {
    "openapi_extra": {"requestBody": _BODY},
    "responses": {
        200: {
            "description": "The image in focus: same format, size, type and metadata, model and digest added",
            "content": {"image/tiff": _IMAGE, "image/png": _IMAGE},
            "headers": _SAID,
        },
        406: _problem("No accepted format is written"),
        **_PROBLEMS,
    },
}
FOCUS_DOCS: dict[str, Any] = {"openapi_extra": {"requestBody": _BODY}, "responses": _PROBLEMS}
