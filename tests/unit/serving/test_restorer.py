"""The restorer by itself: what it answers beside pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from refocus.errors import ServiceBusy
from refocus.model.checkpoint import ModelPackage
from refocus.model.restore import restore
from refocus.serving.config import ServingConfig
from refocus.serving.requests import RestoreRequest
from refocus.serving.restorer import Restorer


def test_intervals_follow_the_blur_of_each_place_as_they_were_calibrated() -> None:
    rng = np.random.default_rng(0)
    sharp = (ndimage.gaussian_filter(rng.random((192, 384)), 1.5) - 0.3) * 5000
    uneven = np.where(np.arange(384) < 192, sharp, ndimage.gaussian_filter(sharp, 8.0)).clip(0).astype(np.uint16)
    restorer = Restorer(ServingConfig(store="none", device="cpu", precision="fp32"), None)
    answer = restorer.restore(RestoreRequest(planes=uneven[None], modality="fluorescence", uncertainty=True))
    package = ModelPackage.bundled("fluorescence")
    found = restore(uneven, package, axes="YX", with_scale=True, precision="fp32")
    assert found.scale is not None
    expected = package.config.calibration.half_width_of(
        found.scale, found.blur_radius_px, stride_px=found.stride_px, axes="YX"
    )
    assert np.ptp(found.blur_radius_px) > 1  # or one factor would do for all
    assert answer.calibrated
    assert answer.half_width is not None
    # Batches of other tiles round in another order.
    np.testing.assert_allclose(answer.half_width[0], expected, rtol=1e-3)


def test_the_white_ground_of_a_section_is_no_reason_to_scan_again() -> None:
    rng = np.random.default_rng(0)
    stain = ndimage.gaussian_filter(rng.random((256, 256, 3)), (2, 2, 0)) - 0.52
    section = np.clip(255 - 2500 * stain.clip(0), 0, 255).astype(np.uint8)
    assert np.mean((section == 255).any(-1)) > 0.7
    restorer = Restorer(ServingConfig(store="none", device="cpu", precision="fp32"), None)
    answer = restorer.restore(RestoreRequest(planes=section[None], modality="brightfield", maps=True))
    assert all("saturated" not in tile.reasons for tile in answer.tiles)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), ""),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
            "CUDA error: an illegal memory",
        ),
    ],
)
def test_a_device_that_fails_is_said_to_have_failed_and_the_caller_to_come_back(
    error: Exception, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    restorer = Restorer(ServingConfig(models=("fluorescence",), store="none", device="cpu", precision="fp32"), None)
    request = RestoreRequest(planes=np.random.default_rng(0).integers(0, 4000, (1, 40, 40)).astype(np.uint16))
    network = restorer.models.pick(None, None, 1, None).runner.network
    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", fail)
        with pytest.raises(ServiceBusy, match="ask again"):
            restorer.restore(request)
    assert restorer.device_failure.startswith(failure)
    assert bool(restorer.device_failure) == bool(failure)
    assert restorer.restore(request).model == "fluorescence"
