"""Inverse filters: they undo the blur they are for, keep the light, and are local."""

from __future__ import annotations

import torch

from refocus.model.filterbank import GAIN, NOMINAL, FilterBank, inverse_filter
from refocus.optics.psf import widefield_psf


def _blurred(sharp: torch.Tensor, radius_px: float) -> torch.Tensor:
    """Periodic blur with the wave-optical PSF, through the transform of the whole image."""
    side = sharp.shape[-1]
    distance = NOMINAL.defocus_um_for(radius_px)
    psf = widefield_psf(NOMINAL, torch.tensor([distance]), size_px=side)[0]
    return torch.fft.irfft2(torch.fft.rfft2(sharp) * torch.fft.rfft2(torch.fft.ifftshift(psf)), s=sharp.shape[-2:])


def _scene(side: int = 256) -> torch.Tensor:
    noise = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, 1, 3)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def test_the_filter_for_a_blur_undoes_most_of_it() -> None:
    sharp = _scene()
    blurred = _blurred(sharp, 7.0)
    found = blurred + FilterBank((7.0,))(blurred) / GAIN
    inside = (..., slice(64, -64), slice(64, -64))
    before = (blurred - sharp)[inside].square().mean()
    after = (found - sharp)[inside].square().mean()
    # White detail of 7 px under a blur of 14 px: even without noise a regularised inverse leaves what lies near the
    # zeros of the transfer function, less than 60% of the squared error here.
    assert after < 0.6 * before


def test_every_filter_keeps_the_light() -> None:
    for radius, coarse in ((3.5, 1), (9.0, 2), (36.0, 2)):
        assert abs(float(inverse_filter(radius, 48, coarse).sum()) - 1.0) < 1e-5  # float32 sum of 9409 numbers


def test_a_constant_needs_no_change_at_any_size() -> None:
    bank = FilterBank((3.5, 12.0), half_px=16)
    for size in ((1, 1), (5, 40), (64, 64)):
        # A transform's rounding, float32.
        assert bank(torch.full((2, 3, *size), 0.7)).abs().max() < 1e-4


def test_coarse_filters_answer_at_half_resolution_channel_by_channel() -> None:
    bank = FilterBank((9.0, 20.0), coarse=2)
    x = torch.rand(2, 3, 32, 48)
    answer = bank(x)
    assert answer.shape == (2, 6, 16, 24)
    torch.testing.assert_close(answer[:, 2:4], bank(x[:, 1:2]), atol=1e-4, rtol=0)  # a transform's rounding


def test_filters_that_are_loaded_are_used_at_once() -> None:
    bank, other = FilterBank((5.0,), half_px=16), FilterBank((12.0,), half_px=16)
    x = torch.rand(1, 1, 40, 40)
    before = bank(x)
    bank.load_state_dict(other.state_dict())
    assert not torch.allclose(bank(x), before, atol=1e-2)
    torch.testing.assert_close(bank(x), other(x))


def test_an_answer_does_not_depend_on_what_sizes_came_before() -> None:
    bank = FilterBank((5.0,), half_px=16)
    x = torch.rand(1, 1, 40, 40)
    first = bank(x)
    for side in (33, 50, 64, 96, 41):
        bank(torch.rand(1, 1, side, side + 3))
    torch.testing.assert_close(bank(x), first, atol=0, rtol=0)


def test_changes_are_the_convolution_with_the_mirrored_image() -> None:
    bank = FilterBank((3.5, 7.0), half_px=12)
    x = torch.rand(1, 1, 30, 45)
    mirrored = torch.nn.functional.pad(x, (12, 12, 12, 12), mode="reflect")
    # conv2d correlates; the kernels are symmetric only to rounding.
    filtered = torch.nn.functional.conv2d(mirrored, bank.kernels.flip(-1, -2)[:, None])
    torch.testing.assert_close(bank(x), GAIN * (filtered - x), atol=2e-4, rtol=0)  # a transform's rounding


def test_filters_travel_with_the_weights() -> None:
    assert FilterBank((5.0,)).state_dict()["kernels"].shape == (1, 97, 97)
    with torch.device("meta"):
        assert FilterBank((5.0,)).kernels.is_meta
