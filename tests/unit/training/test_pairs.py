"""Pairs: repeatable by tile, in register, like whole images to the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refocus.data.batches import TileBatch
from refocus.model.networks import NetworkConfig
from refocus.optics.random_defocus import OpticsRange
from refocus.training import pairs
from refocus.training.config import TrainingConfig
from refocus.training.pairs import PairMaker, sample_seed

CONFIG = TrainingConfig(
    name="t", crop_px=32, zoom=(0.8, 1.25), optics=OpticsRange(blur_radius_px=(0.0, 4.0)), renormalise_jitter=0.2
)
#: Profiles of NA 0.4 and 0.75 come first; steeper ones are never found in small crops.
_OTHERS_FROM = 8


def tiles(indices: list[int], *, sharp: bool, epoch: int = 0, radius_px: float = float("nan")) -> TileBatch:
    images = []
    for index in indices:
        generator = torch.Generator().manual_seed(index)
        images.append(torch.nn.functional.avg_pool2d(torch.rand(1, 90, 90, generator=generator), 5, 1, 2))
    target = torch.stack(images)
    size = len(indices)
    return TileBatch(
        pixels=target if sharp else 0.5 * target + 0.2,
        target=target,
        is_sharp=torch.full((size,), sharp),
        blur_radius_px=torch.full((size,), radius_px),
        pixel_size_um=torch.full((size,), float("nan")),
        index=torch.tensor(indices),
        epoch=torch.full((size,), epoch),
    )


def test_a_sample_depends_on_seed_epoch_and_tile_alone() -> None:
    maker = PairMaker(CONFIG)
    together, alone = maker(tiles([1, 2, 3], sharp=True)), maker(tiles([2], sharp=True))
    # The same transforms in a batch of another size: float32 rounding.
    torch.testing.assert_close(together.image[1], alone.image[0], atol=1e-4, rtol=0)
    other = maker(tiles([2], sharp=True, epoch=1))
    assert not torch.allclose(alone.image, other.image, atol=0.05)


def test_measured_pairs_stay_in_register_and_only_their_scale_changes() -> None:
    pairs = PairMaker(CONFIG)(tiles([4, 5], sharp=False, radius_px=3.0))
    for image, target in zip(pairs.image, pairs.target, strict=True):
        # pixels were 0.5 target + 0.2: still a straight line after flips, zoom and renormalisation.
        joined = torch.stack([image.flatten(), target.flatten()])
        assert torch.corrcoef(joined)[0, 1] > 0.99999
        assert (image.std() / target.std() - 0.5).abs() < 1e-3
    low, high = CONFIG.zoom
    assert (pairs.blur_radius_px >= 3.0 * low).all()
    assert (pairs.blur_radius_px <= 3.0 * high).all()


def test_brightfield_pairs_are_of_what_the_specimen_absorbs() -> None:
    tile = tiles([7], sharp=False)
    shining, dimming = (PairMaker(CONFIG.model_copy(update={"modality": m}), augment=False)(tile)
                        for m in ("fluorescence", "brightfield"))  # fmt: skip
    joined = torch.stack([shining.target.flatten(), dimming.target.flatten()])
    assert torch.corrcoef(joined)[0, 1] < -0.99999
    # Its emptiest pixels are as near to zero as the darkest of the other.
    assert dimming.image.flatten().quantile(0.01).abs() < 1e-4


def test_grey_tiles_of_a_colour_network_have_one_noise_and_colours_their_own() -> None:
    maker = PairMaker(CONFIG.model_copy(update={"network": NetworkConfig(channels=3), "modality": "brightfield"}))
    grey = tiles([3, 4], sharp=True)
    repeated = grey.pixels.repeat(1, 3, 1, 1)
    repeated[1, 2] *= 0.9
    pairs = maker(replace(grey, pixels=repeated, target=repeated))
    assert torch.equal(pairs.image[0, 0], pairs.image[0, 2])
    assert not torch.equal(pairs.image[1, 0], pairs.image[1, 1])


def test_grain_is_the_specimens_own_and_clear_ground_has_none() -> None:
    ground = tiles([5], sharp=True)
    ground.pixels[..., :45] = 0.0
    plain, grainy = CONFIG, CONFIG.model_copy(update={"grain_share": 1.0, "grain": (0.2, 0.2)})
    roughness = {}
    for name, config in (("plain", plain), ("grainy", grainy)):
        target = PairMaker(config)(ground).target
        roughness[name] = float(target.diff(dim=-1).square().mean())
    # In the target, so that a network learns to leave it.
    assert roughness["grainy"] > 2.0 * roughness["plain"]
    bare = replace(ground, pixels=torch.ones_like(ground.pixels), target=torch.ones_like(ground.target))
    absorbing = PairMaker(grainy.model_copy(update={"modality": "brightfield"}))(bare).target
    assert absorbing.std() < 1e-4
    left = PairMaker(grainy, augment=False)(ground).target
    torch.testing.assert_close(left, PairMaker(plain, augment=False)(ground).target)


def test_unknown_blur_stays_unknown_and_simulated_blur_is_known() -> None:
    maker = PairMaker(CONFIG)
    assert maker(tiles([6], sharp=False)).blur_radius_px.isnan().all()
    assert maker(tiles([6], sharp=True)).blur_radius_px.isfinite().all()


def test_some_training_samples_are_told_their_optics_and_none_of_validation() -> None:
    network = NetworkConfig(
        widths=(8, 8), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1, deconvolution=True
    )
    steep = OpticsRange(numerical_aperture=(0.9, 0.95), blur_radius_px=(3.0, 8.0), in_focus_share=0.0)
    config = CONFIG.model_copy(update={"network": network, "optics": steep})
    batch = tiles(list(range(64)), sharp=True)
    told = PairMaker(config)(batch)
    assert told.estimated_blur is not None
    # Apertures like these are never found by looking.
    from_optics = told.estimated_blur[:, 1] >= _OTHERS_FROM
    assert 0.3 < float(from_optics.float().mean()) < 0.9
    # In crops of 32 px only those whose radius is told know it.
    near = (told.estimated_blur[:, 0] / told.blur_radius_px.clamp_min(1.0)).log().abs() < 0.15
    assert 0.1 < float(near.float().mean()) < 0.6
    assert float(near[from_optics].float().mean()) > float(near[~from_optics].float().mean()) + 0.1
    blind = PairMaker(config, augment=False)(batch).estimated_blur
    assert blind is not None
    assert (blind[:, 1] < _OTHERS_FROM).all()
    # Measured planes have no drawn optics.
    measured = PairMaker(config)(tiles([3, 4], sharp=False)).estimated_blur
    assert measured is not None
    assert (measured[:, 1] < _OTHERS_FROM).all()


def test_what_is_told_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NetworkConfig(
        widths=(8, 8), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1, deconvolution=True
    )
    looked_at: list[int | None] = []

    def unseen(images: torch.Tensor, *, profile: list[int] | None = None, absorbing: bool = False) -> torch.Tensor:
        looked_at.extend(profile or [None] * len(images))
        return torch.full((len(images), 2), float("nan"))

    monkeypatch.setattr(pairs, "fitting_blur", unseen)
    blur = PairMaker(CONFIG.model_copy(update={"network": network}))(tiles(list(range(64)), sharp=True)).estimated_blur
    assert blur is not None
    told = blur.isfinite().all(1)
    assert 0.1 < float(told.float().mean()) < 0.6
    assert len(looked_at) == int((~told).sum())
    assert 0 < sum(profile is None for profile in looked_at) < len(looked_at)


def test_crops_lie_where_normalised_images_lie() -> None:
    pairs = PairMaker(CONFIG)(tiles(list(range(24)), sharp=True))
    levels = pairs.image.flatten(1)
    # A normalised image's 1st percentile is 0 and its 99.8th is 1; crops scatter around that by the jitter.
    assert levels.quantile(0.01, dim=1).median().abs() < 0.5
    assert 0.3 < float(levels.quantile(0.998, dim=1).median()) < 2.5


def test_validation_leaves_orientation_and_size_alone() -> None:
    maker = PairMaker(CONFIG, augment=False)
    batch = tiles([8], sharp=False)
    pairs = maker(batch)
    centre = batch.target[0, :, 29:61, 29:61].flatten()
    assert torch.corrcoef(torch.stack([pairs.target.flatten(), centre]))[0, 1] > 0.99999


def test_seeds_of_neighbouring_tiles_are_unrelated_and_fit_a_generator() -> None:
    seeds = [sample_seed(s, e, i) for s in range(4) for e in range(4) for i in (0, 1, 2, 2**62)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds)
