"""The HTTP interface: routes over a backend, whatever runs behind it."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import refocus
from refocus.errors import ModelMissing, ServiceBusy
from refocus.optics.settings import OpticalSystem
from refocus.serving.answers import encode_answer
from refocus.serving.body import accepted, chosen, read_image
from refocus.serving.config import ServingConfig
from refocus.serving.metrics import Meters, ProcessMeters, RequestMetrics, access_log
from refocus.serving.openapi import FOCUS_DOCS, REFOCUS_DOCS, DescribedApp
from refocus.serving.parameters import (
    ApertureQuery,
    BlindQuery,
    ModalityQuery,
    ModelQuery,
    OutOfRangeQuery,
    PixelSizeQuery,
    UncertaintyQuery,
    WavelengthQuery,
    no_stray_parameters,
)
from refocus.serving.problems import add_error_handlers, problem_response
from refocus.serving.requests import (
    ModelState,
    RestoreAnswer,
    RestoreRequest,
    ServiceState,
    TileReport,
    optics_of,
)
from refocus.serving.status import CLIENT_GONE, Refusal
from refocus.wire import headers
from refocus.wire.image import MEDIA_TYPES, WireImage

_log = logging.getLogger("refocus.serving")
_CORRELATION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAP_SIDE = 64


class Backend(Protocol):
    """What restores: in this process (tests, benchmarks), or on Ray."""

    async def restore(self, request: RestoreRequest) -> RestoreAnswer:
        """Restore planes."""

    async def state(self) -> ServiceState:
        """Say whether images can be served."""


class FocusReport(BaseModel):
    """What ``/v1/focus`` answers.

    Parameters
    ----------
    defocus_um : float or None
        Distance from focus that the median radius means, unsigned; known where pixel size and aperture are.
    blur_map_px : list
        For each plane: rows of predicted radii, at most 64 x 64.
    tiles : tuple of TileReport
    scan_again : tuple of int
        Indices of the tiles to scan again.
    """

    model: str
    digest: str
    planes: int
    height_px: int
    width_px: int
    blur_radius_px: float
    defocus_um: float | None
    out_of_range_share: float
    blur_map_px: list[list[list[float]]]
    tiles: tuple[TileReport, ...]
    scan_again: tuple[int, ...]


def make_app(backend: Backend, config: ServingConfig, meters: Meters | None = None) -> FastAPI:
    """Return the service's application over `backend`; it counts in this process where no `meters` are given."""
    app = DescribedApp(
        title="Refocus",
        version=refocus.__version__,
        description="Brings a defocused microscopy image into focus from a single shot.",
    )
    meters = meters or ProcessMeters()
    app.add_middleware(_Correlated, config=config, metrics=RequestMetrics(meters))
    add_error_handlers(app, config)
    strict = [Depends(no_stray_parameters)]

    @app.post("/v1/refocus", response_class=Response, dependencies=strict, **REFOCUS_DOCS)
    async def refocus_image(
        request: Request,
        model: ModelQuery = None,
        modality: ModalityQuery = None,
        pixel_size_um: PixelSizeQuery = None,
        na: ApertureQuery = None,
        wavelength_um: WavelengthQuery = None,
        blind: BlindQuery = False,
        uncertainty: UncertaintyQuery = False,
        on_out_of_range: OutOfRangeQuery = "mark",
    ) -> Response:
        """Bring an image into focus; it comes back in its own format, size and type."""
        ranks = accepted(request.headers.get("accept"))
        image, stages = await _arrived(request, config)
        optics = optics_of(image, na=na, pixel_size_um=pixel_size_um, wavelength_um=wavelength_um, blind=blind)
        if pixel_size_um is not None:
            image = replace(image, pixel_size_um=pixel_size_um)
        container = chosen(image, ranks, pages=len(image.planes) * (2 if uncertainty else 1))
        asked = RestoreRequest(
            image.planes,
            model,
            modality,
            uncertainty,
            on_out_of_range,
            correlation_id=request.state.correlation_id,
            optics=optics,
        )
        answer = await _restored(backend, asked, config, stages)
        start = time.perf_counter()
        body = await asyncio.to_thread(encode_answer, image, answer, container)
        stages["encode"] = 1e3 * (time.perf_counter() - start)
        _remember(request, answer, stages, image)
        said = {
            headers.MODEL: answer.model,
            headers.MODEL_DIGEST: answer.digest,
            headers.OUT_OF_RANGE: f"{answer.out_of_range_share:.4f}",
            headers.SERVER_TIMING: headers.format_server_timing(stages),
        }
        if answer.blanks:
            said[headers.BLANKS] = answer.blanks
        if optics is not None:
            said[headers.DEFOCUS_UM] = f"{_defocus_um(answer, optics):.2f}"
            said[headers.OPTICS] = headers.format_optics(
                optics.numerical_aperture, optics.wavelength_um, optics.pixel_size_um
            )
        if answer.half_width is not None:
            said[headers.INTERVAL_SCALE] = headers.format_interval(
                calibrated=answer.calibrated, planes=len(answer.planes)
            )
        return Response(body, media_type=MEDIA_TYPES[container], headers=said)

    @app.post("/v1/focus", dependencies=strict, **FOCUS_DOCS)
    async def focus(
        request: Request,
        model: ModelQuery = None,
        modality: ModalityQuery = None,
        pixel_size_um: PixelSizeQuery = None,
        na: ApertureQuery = None,
        wavelength_um: WavelengthQuery = None,
        blind: BlindQuery = False,
    ) -> FocusReport:
        """Say how far out of focus an image is, where, and which tiles to scan again."""
        image, stages = await _arrived(request, config)
        optics = optics_of(image, na=na, pixel_size_um=pixel_size_um, wavelength_um=wavelength_um, blind=blind)
        asked = RestoreRequest(
            image.planes, model, modality, maps=True, correlation_id=request.state.correlation_id, optics=optics
        )
        answer = await _restored(backend, asked, config, stages)
        _remember(request, answer, stages, image)
        return _report(image, answer, optics)

    @app.get("/v1/models")
    async def models() -> list[ModelState]:
        """List what serves, and what keeps a newer version from taking over."""
        return list((await backend.state()).models)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer while this process lives."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=ServiceState, responses={503: {"model": ServiceState}})
    async def readyz() -> Response:
        """Say whether images can be restored now, and why not."""
        try:
            async with asyncio.timeout(min(10.0, config.request_timeout_s)):
                state = await backend.state()
        except (TimeoutError, ServiceBusy) as error:
            state = ServiceState(ready=False, reason=str(error) or "the restorer does not answer")
        return JSONResponse(state.model_dump(mode="json"), status_code=200 if state.ready else 503)

    @app.get("/metrics", response_class=Response)
    async def exposed() -> Response:
        """Return the metrics of all replicas in Prometheus' format."""
        return Response(
            await asyncio.to_thread(meters.exposition), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return app


async def _arrived(request: Request, config: ServingConfig) -> tuple[WireImage, dict[str, float]]:
    start = time.perf_counter()
    image = await read_image(request, config)
    return image, {"decode": 1e3 * (time.perf_counter() - start)}


async def _restored(
    backend: Backend, asked: RestoreRequest, config: ServingConfig, stages: dict[str, float]
) -> RestoreAnswer:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(config.request_timeout_s):
            answer = await backend.restore(asked)
    except TimeoutError:
        raise TimeoutError(
            f"The image was not restored within {config.request_timeout_s:g} s. Send smaller pieces, or ask later."
        ) from None
    except ModelMissing as error:
        if asked.model is None:
            raise Refusal(503, "no-model", str(error)) from error
        raise
    whole_ms = 1e3 * (time.perf_counter() - start)
    spent = sum(answer.timings_ms.values())
    stages["queue"] = max(0.0, whole_ms - spent)
    stages["model"] = spent
    return answer


def _report(image: WireImage, answer: RestoreAnswer, optics: OpticalSystem | None) -> FocusReport:
    step = max(1, math.ceil(max(answer.blur_radius_px.shape[1:]) / _MAP_SIDE))
    return FocusReport(
        model=answer.model,
        digest=answer.digest,
        planes=len(image.planes),
        height_px=image.height_px,
        width_px=image.width_px,
        blur_radius_px=float(np.median(answer.blur_radius_px)),
        defocus_um=None if optics is None else _defocus_um(answer, optics),
        out_of_range_share=answer.out_of_range_share,
        blur_map_px=np.round(answer.blur_radius_px[:, ::step, ::step].astype(float), 3).tolist(),
        tiles=answer.tiles,
        scan_again=tuple(number for number, tile in enumerate(answer.tiles) if tile.scan_again),
    )


def _defocus_um(answer: RestoreAnswer, optics: OpticalSystem) -> float:
    return optics.defocus_um_for(float(np.median(answer.blur_radius_px)))


def _remember(request: Request, answer: RestoreAnswer, stages: dict[str, float], image: WireImage) -> None:
    request.state.answered = (f"{answer.model}@{answer.digest[:12]}", stages, image.pixels)


class _Correlated:
    """Gives every request an id, its answer the same, counts and logs it, and lets no traceback out."""

    def __init__(self, app: ASGIApp, config: ServingConfig, metrics: RequestMetrics) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(headers.CORRELATION_ID.lower().encode(), b"").decode("latin-1")
        # Servers leave out the body of an answer to HEAD (RFC 9110, section 9.3.2); the rest is that of GET.
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        correlation_id = given if _CORRELATION_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["correlation_id"] = correlation_id
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                name = headers.CORRELATION_ID.lower().encode()
                kept = [pair for pair in message["headers"] if pair[0].lower() != name]
                message = {**message, "headers": [*kept, (name, correlation_id.encode())]}
            await send(message)

        self._metrics.began()
        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except asyncio.CancelledError:
            status = status or CLIENT_GONE
            raise
        except Exception as error:  # noqa: BLE001 (the last place where it can become an answer)
            if status == 0:
                await problem_response(error, scope, self._config)(scope, receive, send_marked)
            else:
                _log.error("the answer broke off", exc_info=error, extra={"correlation_id": correlation_id})
        finally:
            model, stages, pixels = state.get("answered", ("", {}, 0))
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.ended(route, status, model, stages, pixels)
            if route.startswith("/v1/"):
                access_log(
                    _log,
                    route=route,
                    status=status,
                    correlation_id=correlation_id,
                    model=model,
                    stages_ms=stages,
                    problem=state.get("problem"),
                )
