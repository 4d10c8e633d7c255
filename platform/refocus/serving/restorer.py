"""The restorer: models on a device, and images through them. A plain class; Ray comes in `refocus.serving.app`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refocus.errors import ConfigurationError, ServiceBusy, StoreError, UnsupportedImage
from refocus.focus.measures import normalised_variance
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.model.blanks import said_of
from refocus.model.checkpoint import ModelPackage
from refocus.model.colors import colors_held
from refocus.model.restore import Restoration
from refocus.registry.catalog import Catalog
from refocus.serving.batching import BatchingModel
from refocus.serving.config import ServingConfig
from refocus.serving.metrics import SWAPS, Meters, ProcessMeters
from refocus.serving.models import ModelSet, Served
from refocus.serving.requests import RestoreAnswer, RestoreRequest, ServiceState, TileReport

_log = logging.getLogger("refocus.serving")
_TILE_PX = 256
# Of what a measure of sharpness looks at.
_LEAST_SIDE_PX = 3
# A network's own estimate of the blur saturates at the end of what it was trained for.
_NEAR_LIMIT = 0.95
# Fluctuation of a tile over its mean, below which there is nothing to judge focus by.
_LEAST_VARIANCE = 1e-6


class Restorer:
    """Models on this machine's device, kept up to date.

    Parameters
    ----------
    config : ServingConfig
    catalog : Catalog or None
        Where champions are; see `catalog_of`.
    meters : Meters, optional
        Where swaps are counted; in this process where not given.

    Attributes
    ----------
    device_failure : str
        What an accelerator said when it failed; empty where it did not. It answers nothing in this process any more.
    """

    def __init__(self, config: ServingConfig, catalog: Catalog | None, meters: Meters | None = None) -> None:
        self.config = config
        self.device_failure = ""
        self._meters = meters or ProcessMeters()
        self.models = ModelSet(
            catalog,
            self._load,
            names=config.models,
            bundled=config.store != "required",
            pinned_versions=config.pinned_versions,
            on_swap=self._swapped,
        )
        self.models.start()

    def _load(self, package: ModelPackage) -> BatchingModel:
        return BatchingModel(
            package,
            device=None if self.config.device == "auto" else self.config.device,
            precision=self.config.precision,
            tile_px=self.config.tile_px,
            pixels_per_batch=self.config.pixels_per_batch,
        )

    def _swapped(self, name: str, digest: str, problem: str | None) -> None:
        self._meters.record(SWAPS, 1, name, "swapped" if problem is None else "refused")
        if problem is None:
            _log.info("model swapped", extra={"model": name, "digest": digest})
        else:
            _log.error("model not swapped: %s", problem, extra={"model": name, "digest": digest})

    def follow(self) -> None:
        """Look once whether a champion has changed; never raises."""
        self.models.follow()

    def state(self) -> ServiceState:
        """Return whether images can be served, by what."""
        states = self.models.states()
        some = self.models.any_served()
        return ServiceState(
            ready=bool(states),
            reason=self.models.reason(),
            device=str(some.runner.device) if some else "",
            precision=some.runner.precision if some else "",
            models=states,
            problems=self.models.all_problems(),
        )

    def restore(self, request: RestoreRequest) -> RestoreAnswer:
        """Bring planes into focus; meant for an executor's thread.

        Raises
        ------
        ModelMissing, ModelUnfit
            If no model serves, or none for such an image.
        UnsupportedImage
            If ``on_out_of_range='fail'`` and a part is out of range, or if focus is to be judged on too few pixels.
        ServiceBusy
            If an accelerator failed, or its memory is full.
        """
        held = colors_held(request.planes)
        served = self.models.pick(request.model, request.modality, held, self.config.default_model)
        if request.maps and min(request.planes.shape[1:3]) < _LEAST_SIDE_PX:
            raise UnsupportedImage(
                f"The image has {request.planes.shape[2]} x {request.planes.shape[1]} pixels; focus is judged on at "
                f"least {_LEAST_SIDE_PX} x {_LEAST_SIDE_PX}. Send a larger piece of it."
            )
        started = time.perf_counter()
        axes = "ZYXS" if request.colors == 3 else "ZYX"
        done = self._restored(served, request, axes)
        model_ms = 1e3 * (time.perf_counter() - started)
        started = time.perf_counter()
        blur = _one_map_a_plane(done.blur_radius_px, len(request.planes))
        tiles = tuple(_reports(request.planes, blur, done, served, measure=request.maps))
        outside = [tile for tile in tiles if "out_of_range" in tile.reasons]
        share = sum(tile.height_px * tile.width_px for tile in outside) / float(np.prod(request.planes.shape[:3]))
        restored = done.pixels
        if outside and request.on_out_of_range == "fail":
            worst = max(outside, key=lambda tile: tile.blur_radius_px)
            raise UnsupportedImage(
                f"{share:.0%} of the image is further out of focus than {served.name} was trained for "
                f"({served.package.config.largest_blur_px:g} px of blur), by how its contrast is spread over scales; "
                f"the worst tile is at row {worst.y_px}, column {worst.x_px}. Scan it again nearer to focus, or ask "
                "with on_out_of_range=mark."
            )
        if outside and request.on_out_of_range == "keep":
            for tile in outside:
                part = np.s_[tile.plane, tile.y_px : tile.y_px + tile.height_px, tile.x_px : tile.x_px + tile.width_px]
                restored[part] = request.planes[part]
        half_width = None
        calibration = served.package.config.calibration
        if done.scale is not None:
            half_width = calibration.half_width_of(done.scale, done.blur_radius_px, stride_px=done.stride_px, axes=axes)
        return RestoreAnswer(
            planes=restored,
            model=served.name,
            digest=served.package.digest,
            out_of_range_share=share,
            blur_radius_px=blur,
            stride_px=done.stride_px,
            half_width=half_width,
            calibrated=half_width is not None and calibration.fitted,
            tiles=tiles if request.maps else (),
            blanks=said_of(done.blanks),
            timings_ms={"model": model_ms, "judge": 1e3 * (time.perf_counter() - started)},
        )

    def _restored(self, served: Served, request: RestoreRequest, axes: str) -> Restoration:
        try:
            done: Restoration = served.runner.restore(
                request.planes, axes=axes, optics=request.optics, with_scale=request.uncertainty
            )
        except torch.OutOfMemoryError as error:
            # What torch keeps for later goes back to those who share the device.
            torch.cuda.empty_cache()
            _log.error("the device's memory is full: %s", error)
            raise ServiceBusy("the device's memory is full; ask again in a moment, or for smaller images.") from error
        except torch.AcceleratorError as error:
            self.device_failure = str(error)
            _log.error("the device failed: %s", error)
            raise ServiceBusy("the device failed; ask again once this process was replaced.") from error
        return done


def catalog_of(config: ServingConfig) -> Catalog | None:
    """Return the registry that the environment names, None where there is none and none is required.

    Raises
    ------
    ConfigurationError
        If one is required and none is configured.
    """
    if config.store == "none":
        return None
    try:
        settings = StoreSettings.from_environment()
    except ConfigurationError:
        if config.store == "required":
            raise
        return None
    except StoreError:
        return None
    # A replica looks again every few seconds: giving up early keeps it answering.
    patient = settings.model_copy(update={"attempts": 2, "connect_timeout_s": 2.0, "read_timeout_s": 20.0})
    return Catalog(ObjectStore(patient))


def _one_map_a_plane(maps: npt.NDArray[np.float32], planes: int) -> npt.NDArray[np.float32]:
    # Networks of one channel see each colour by itself; the plane's blur is the mean of theirs.
    return maps.reshape(planes, -1, *maps.shape[1:]).mean(1)


def _reports(
    planes: npt.NDArray[Any], blur: npt.NDArray[np.float32], done: Restoration, served: Served, *, measure: bool
) -> Iterator[TileReport]:
    gate, stride_px = served.package.config.gate, done.stride_px
    # Colours that were restored by themselves are judged together, and so are their blanks.
    known = done.blanks if len(done.blanks) == len(planes) else (None,) * len(planes)
    limit = _NEAR_LIMIT * served.package.config.largest_blur_px
    for number, plane in enumerate(planes):
        verdicts = {}
        if gate is not None:
            channels_first = np.moveaxis(plane, -1, 0) if plane.ndim == 3 else plane
            judged = gate.judge(
                channels_first,
                absorbing=served.package.config.absorbing,
                blanks=known[number],
                device=served.runner.device,
            )
            verdicts = {(v.y_px, v.x_px, v.height_px, v.width_px): v.reasons for v in judged}
        places = verdicts or _places(plane.shape[0], plane.shape[1])
        for y, x, height, width in places:
            part = blur[
                number, y // stride_px : -(-(y + height) // stride_px), x // stride_px : -(-(x + width) // stride_px)
            ]
            radius = float(np.median(part)) if part.size else 0.0
            reasons: tuple[str, ...] = tuple(verdicts[y, x, height, width]) if gate is not None else ()
            if gate is None and radius > limit:
                reasons = ("out_of_range",)
            sharpness = 0.0
            if measure:
                # The last tile may be a pixel wide, which is too little for a measure.
                tile = plane[min(y, plane.shape[0] - _LEAST_SIDE_PX) : y + height,
                             min(x, plane.shape[1] - _LEAST_SIDE_PX) : x + width]  # fmt: skip
                grey = (tile.mean(-1) if tile.ndim == 3 else tile).astype(np.float64)
                sharpness = float(normalised_variance(grey)) if grey.any() else 0.0
                if gate is None and sharpness < _LEAST_VARIANCE:
                    reasons = (*reasons, "no_structure")
            yield TileReport(
                plane=number, y_px=y, x_px=x, height_px=height, width_px=width, blur_radius_px=radius,
                sharpness=sharpness, scan_again=bool(reasons), reasons=reasons,
            )  # fmt: skip


def _places(height_px: int, width_px: int) -> list[tuple[int, int, int, int]]:
    return [
        (y, x, min(_TILE_PX, height_px - y), min(_TILE_PX, width_px - x))
        for y in range(0, height_px, _TILE_PX)
        for x in range(0, width_px, _TILE_PX)
    ]
