"""Networks: identity at the start, any size, local, bounded."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from blurs import blur_planes
from refocus.model.blur_estimate import with_blur
from refocus.model.networks import (
    LOG_SCALE_LIMITS,
    Architecture,
    NetworkConfig,
    build_network,
    guided_start,
    pad_to_multiple,
)


def tiny(architecture: Architecture = "residual_unet", channels: int = 1, **more: object) -> NetworkConfig:
    return NetworkConfig.model_validate(
        {
            "architecture": architecture,
            "channels": channels,
            "widths": (8, 12, 16),
            "encoder_blocks": (1, 1),
            "decoder_blocks": (1, 1),
            "middle_blocks": 1,
            **more,
        }
    )


FILTERED = {"noise_levels": ((3e-4, 60.0), (1.2e-2, 20.0)), "deconvolution": True}
ALL = [
    tiny(),
    tiny("nafnet"),
    tiny("deep_r"),
    tiny(channels=3),
    tiny(**FILTERED),
    tiny("nafnet", channels=3, **FILTERED),
    tiny(channels=3, guided=True),
    tiny(channels=3, guided=True, deconvolution=True),
    tiny("nafnet", channels=3, guided=True, **FILTERED),
]


def _stirred(config: NetworkConfig) -> torch.nn.Module:
    """A network whose weights, the last ones too, are random: as if it had been trained."""
    torch.manual_seed(3)
    network = build_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("config", ALL, ids=str)
def test_an_untrained_network_returns_its_input(config: NetworkConfig) -> None:
    x = torch.rand(2, config.channels, 40, 24)
    assert torch.equal(build_network(config)(x).image, x)


@pytest.mark.parametrize("config", ALL, ids=str)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 17), (1, 50), (33, 64)])
def test_every_size_from_one_pixel_up_comes_back(config: NetworkConfig, height: int, width: int) -> None:
    prediction = _stirred(config)(torch.rand(1, config.channels, height, width))
    assert prediction.image.shape == prediction.log_scale.shape == (1, config.channels, height, width)
    stride = config.stride_px
    assert prediction.blur_radius_px.shape == (1, 1, -(-height // stride), -(-width // stride))
    assert prediction.image.isfinite().all()


def test_scale_and_blur_stay_in_their_ranges_for_absurd_input() -> None:
    prediction = _stirred(tiny())(1e6 * torch.randn(1, 1, 32, 32))
    low, high = LOG_SCALE_LIMITS
    assert prediction.log_scale.min() >= low
    assert prediction.log_scale.max() <= high
    assert prediction.blur_radius_px.min() >= 0


def _receptive_radius_px(config: NetworkConfig) -> int:
    """How far the network's convolutions can look; whatever looks further is a global operation."""
    steps = 2 * config.unshuffle
    depthwise = 1 if config.architecture == "nafnet" else 2
    for level, (before, after) in enumerate(zip(config.encoder_blocks, config.decoder_blocks, strict=True)):
        steps += (before + after) * depthwise * config.unshuffle * 2**level
    steps += config.middle_blocks * depthwise * config.stride_px
    return steps + config.stride_px


@pytest.mark.parametrize("config", [tiny(), tiny("nafnet"), tiny("deep_r")], ids=str)
def test_nothing_beyond_the_receptive_radius_matters(config: NetworkConfig) -> None:
    network = _stirred(config)
    x = torch.rand(1, 1, 256, 256)
    changed = x.clone()
    reach = _receptive_radius_px(config)
    changed[..., 128 + reach :] += 5.0
    with torch.no_grad():
        before, after = network(x).image, network(changed).image
    # Sums over the same numbers, in an order that may depend on alignment.
    torch.testing.assert_close(before[..., :128], after[..., :128], rtol=0, atol=1e-5)
    assert not torch.equal(before, after)


def test_mirrored_rims_end_where_the_image_does() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    wide = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    assert pad_to_multiple(wide, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


def test_a_guided_network_starts_as_one_of_one_channel_on_each_colour() -> None:
    torch.manual_seed(8)
    one = _stirred(tiny(**FILTERED))
    guided = build_network(tiny(channels=3, guided=True, **FILTERED)).eval()
    guided.load_state_dict(guided_start(guided, one.state_dict()))
    colours, blur = torch.rand(2, 3, 48, 64), torch.tensor([[4.0, 5.0], [9.0, 1.0]])
    with torch.inference_mode():
        together = guided(with_blur(colours, blur))
        alone = [one(with_blur(colours[:, c : c + 1], blur)) for c in range(3)]
    torch.testing.assert_close(together.image, torch.cat([a.image for a in alone], 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.log_scale, torch.cat([a.log_scale for a in alone], 1), atol=1e-4, rtol=0)
    mean = torch.stack([a.blur_radius_px for a in alone]).mean(0)
    torch.testing.assert_close(together.blur_radius_px, mean, atol=1e-4, rtol=0)


def test_colours_guide_one_another_and_a_grey_image_itself() -> None:
    network = _stirred(tiny(channels=3, guided=True, **FILTERED))
    colours, blur = torch.rand(1, 3, 48, 64), torch.tensor([[4.0, 5.0]])
    with torch.inference_mode():
        before = network(with_blur(colours, blur)).image
        after = network(with_blur(colours * torch.tensor([1.0, 1.0, 0.5])[:, None, None], blur)).image
        assert (before[:, 0] - after[:, 0]).abs().max() > 1e-3
        grey = colours[:, :1].expand(-1, 3, -1, -1)
        repeated = network(with_blur(grey, blur))
        assert torch.equal(repeated.image[:, 0], repeated.image[:, 2])
        # One colour was enough; all three, as training sees them, say the same.
        torch.testing.assert_close(repeated.image, network.train()(with_blur(grey, blur)).image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"widths": (8,), "encoder_blocks": (), "decoder_blocks": ()},
        {"encoder_blocks": (1,)},
        {"channels": 2},
        {"width": 32},
        {"architecture": "deep_r", "noise_levels": ((2e-3, 40.0),)},
        {"unshuffle": 4, "noise_levels": ((2e-3, 40.0),)},
        {"unshuffle": 1, "deconvolution": True},
        {"guided": True},
        {"architecture": "deep_r", "channels": 3, "guided": True},
    ],
)
def test_configs_that_cannot_be_built_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkConfig.model_validate(fields)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_what_undoing_gives_may_be_found_beforehand_for_more_images_at_once(config: NetworkConfig) -> None:
    network, images = _stirred(config), torch.rand(3, config.channels, 70, 54)
    given = with_blur(images, torch.tensor([[5.0, 0.0], [9.0, 0.0], [3.0, 0.0]])) if config.sees_blur else images
    undone = network.undone(given)
    assert bool(undone) == config.sees_blur
    some = network(given[1:], tuple(part[1:] for part in undone))
    for found, wanted in zip(some, network(given[1:]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_what_is_proposed_is_the_image_itself_where_nothing_is_blurred_and_nothing_where_no_blur_is_seen() -> None:
    config = tiny(noise_levels=((1e-3, 10.0), (1e-2, 10.0)), deconvolution=True)
    image = torch.rand(1, 1, 50, 70)
    proposals = build_network(config).proposals(torch.cat([image, blur_planes(0.0, 50, 70)], 1))
    assert len(proposals) == config.proposals == 4
    for proposal in proposals:
        torch.testing.assert_close(proposal, image, rtol=0, atol=1e-5)
    assert build_network(tiny()).proposals(image) == []


def _shuffled_by_accelerators(x: torch.Tensor, factor: int) -> torch.Tensor:
    """As torch shuffles pixels everywhere but on the CPU: whatever came in, planes come out one after the other."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels // factor**2, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.contiguous().view(batch, channels // factor**2, factor * height, factor * width)


@pytest.mark.parametrize("config", [tiny(), tiny("nafnet"), tiny(**FILTERED)], ids=str)
def test_every_convolution_gets_the_layout_it_is_fast_with(
    config: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "pixel_shuffle", _shuffled_by_accelerators)
    network = build_network(config)
    laid_out = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given: laid_out.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    image = torch.rand(2, 1, 48, 48)
    network(torch.cat([image, blur_planes(4.0, 48, 48).expand(2, -1, -1, -1)], 1) if config.sees_blur else image)
    assert len(laid_out) > 10
    assert all(laid_out)
