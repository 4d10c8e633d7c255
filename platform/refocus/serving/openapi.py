"""What ``/docs`` says of bodies and answers that are images, which types cannot say."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from refocus.errors import ImageTooLarge, ModelMissing, ServiceBusy
from refocus.serving.status import RETRY_AFTER_STATUSES, Refusal, problem_for
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


def _header(words: str) -> dict[str, Any]:
    return {"description": words, "schema": {"type": "string"}}


_CORRELATED = {headers.CORRELATION_ID: _header("What the service's log knows this request by")}


def _problem(description: str, error: Exception) -> dict[str, Any]:
    """Return one answer of the documentation; its example is what the service makes of `error`."""
    example = problem_for(error, instance="/v1/refocus", correlation_id="3f1c9a0e5d7b4c2f8a6e1b0d9c8f7e6a")
    said = dict(_CORRELATED)
    if example.status in RETRY_AFTER_STATUSES:
        said[headers.RETRY_AFTER] = _header("Seconds after which to ask again")
    if example.status == 405:
        said["Allow"] = _header("The methods that are answered")
    return {
        "description": description,
        "headers": said,
        "content": {
            headers.PROBLEM_JSON: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "example": example.model_dump(mode="json"),
            }
        },
    }


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The form is not one image", Refusal(400, "bad-form", "The form holds 2 files; expected one.")),
    404: _problem("There is no such model", ModelMissing("model 'nobody' has no champion that serves.")),
    405: _problem("Not this method", Refusal(405, "http", "GET is not answered at /v1/refocus; POST is.")),
    408: _problem("The body came too slowly", Refusal(408, "slow-body", "The body was not complete after 60 s.")),
    413: _problem(
        "Over a limit of bytes, pixels or pages",
        ImageTooLarge(
            "The image claims 100000 x 100000 pixels; the limit is 64000000 pixels a plane. Send it in crops."
        ),
    ),
    415: _problem(
        "The body is no image, or is coded",
        Refusal(415, "no-image", "The file begins with b'<html>', which is no image that is read here."),
    ),
    422: _problem(
        "The image is broken, of a kind that is not handled, or a parameter does not fit",
        Refusal(422, "bad-request", "wavelength_um='525' arrived; expected micrometres. Did you mean 0.525?"),
    ),
    500: _problem("The service failed; its log says why, under the correlation id", Exception()),
    503: _problem(
        "Busy, or no model to serve", ServiceBusy("as many requests wait as may wait; ask again in a moment.")
    ),
    504: _problem("It took too long", TimeoutError("The image was not restored within 120 s.")),
}
_SAID = {
    name: _header(words)
    for name, words in (
        (headers.MODEL, "Name of the model"),
        (headers.MODEL_DIGEST, "SHA-256 of the model version"),
        (headers.OUT_OF_RANGE, "Share of the image that is further out of focus than the model was trained for"),
        (headers.BLANKS, "Padding, overlays, hot and dead pixels, left as they were; absent where there are none"),
        (headers.DEFOCUS_UM, "Estimated distance from focus, unsigned, where pixel size and aperture are known"),
        (headers.OPTICS, "Objective, light and pixels that the blur was read with, where they were told"),
        (headers.INTERVAL_SCALE, "Level, calibration and pages of the half widths, where they were asked for"),
        (headers.SERVER_TIMING, "Milliseconds for decode, queue, model and encode"),
    )
}

REFOCUS_DOCS: dict[str, Any] = {
    "openapi_extra": {"requestBody": _BODY},
    "responses": {
        200: {
            "description": "The image in focus: same format, size, type and metadata, model and digest added",
            "content": {"image/tiff": _IMAGE, "image/png": _IMAGE},
            "headers": {**_SAID, **_CORRELATED},
        },
        406: _problem(
            "No accepted format is written, or none that holds the answer",
            Refusal(406, "not-acceptable", "'text/html' is asked for; image/tiff and image/png are written."),
        ),
        **_PROBLEMS,
    },
}
FOCUS_DOCS: dict[str, Any] = {
    "openapi_extra": {"requestBody": _BODY},
    "responses": {200: {"headers": _CORRELATED}, **_PROBLEMS},
}


class DescribedApp(FastAPI):
    """An application whose documentation holds the schema of problems, which all routes refer to."""

    def openapi(self) -> dict[str, Any]:
        """Return the document of ``/openapi.json``."""
        described = super().openapi()
        described.setdefault("components", {}).setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        return described
