from __future__ import annotations

import numpy as np
import pytest
import torch

from refocus.model.blur_estimate import estimate_blur
from refocus.model.normalisation import Normalisation, estimate
from refocus.model.seen import SeenPlane, fetched, held_on, is_single, sent_to
from refocus.model.specimen import Specimen

CPU = torch.device("cpu")


def _plane(shape: tuple[int, ...] = (1, 700, 600)) -> np.ndarray:
    return np.random.default_rng(0).poisson(500.0, shape).astype(np.uint16)


def _seen(plane: np.ndarray, *, held: bool) -> SeenPlane:
    values = torch.from_numpy(plane.astype(np.float32)) if held else None
    return SeenPlane(Specimen.of(plane), estimate(plane), CPU, values)


def test_processors_hold_no_plane() -> None:
    assert held_on(CPU, _plane()) is None


def test_single_precision_holds_short_integers_and_no_long_ones() -> None:
    held = {kind: is_single(np.dtype(kind)) for kind in ("u1", "i2", ">u2", "f2", "f4", "i4", "u4", "f8")}
    assert [kind for kind, single in held.items() if single] == ["u1", "i2", ">u2", "f2", "f4"]


@pytest.mark.parametrize("kind", ["u1", "i2", ">u2", "f2", ">f4"])
def test_arrays_of_any_layout_and_byte_order_go_to_a_device_and_back(kind: str) -> None:
    plane = np.arange(60).reshape(1, 6, 10).astype(kind)[:, ::-2, ::3]
    plane.flags.writeable = False
    back = np.empty_like(plane)
    fetched(sent_to(CPU, plane).float(), back)
    np.testing.assert_array_equal(back, plane)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_plane_that_is_held_reads_as_one_that_is_not(channels: int) -> None:
    plane = _plane((channels, 700, 600))
    held, read = _seen(plane, held=True), _seen(plane, held=False)
    window = slice(100, 300), slice(50, 470)
    torch.testing.assert_close(held[window], read[window], rtol=0, atol=0)
    places = [(0, 0), (300, 200), (444, 344)]
    found = [seen.contrasts(places, (256, 256), 4) for seen in (held, read)]
    np.testing.assert_allclose(*found, rtol=1e-12)  # sums of float64 numbers in another order


def test_blur_is_estimated_alike_from_windows_and_from_what_is_held() -> None:
    plane = _plane()
    held, read = (estimate_blur(_seen(plane, held=held)) for held in (True, False))
    np.testing.assert_array_equal(held.radius_px, read.radius_px)
    assert held.profile == read.profile


def test_normalised_as_the_constants_say() -> None:
    plane = np.full((1, 4, 5), 150, np.uint16)
    seen = SeenPlane(Specimen.of(plane), Normalisation(100.0, 50.0), CPU)
    assert (seen[slice(0, 2), slice(1, 3)] == 1.0).all()
