"""What is drawn for a batch of training examples."""

from __future__ import annotations

import pytest
import torch

from refocus.optics.optics_range import OpticsRange
from refocus.optics.plan import DRAWS, Plan


@pytest.mark.parametrize("out_of_range_share", [0.0, 0.05, 1.0])
def test_haze_is_seen_through_no_more_blur_than_the_tables_hold(out_of_range_share: float) -> None:
    optics = OpticsRange(
        blur_radius_px=(0.0, 37.0), out_of_range_share=out_of_range_share, in_focus_share=0.0, near_focus_share=0.0,
        haze_share=1.0,
    )  # fmt: skip
    uniform = torch.rand(20_000, DRAWS, generator=torch.Generator().manual_seed(0))
    plan = Plan.draw(optics, uniform, "fluorescence", 1, None)
    seen = (plan.blur_px + plan.haze_offset_px).abs()
    # No more blurred than the specimen itself, or than the range ends.
    assert (seen <= plan.blur_px.abs().clamp_min(37.0)).all()
    assert seen.max() <= optics.largest_blur_px
    # Still clearly outside the focal plane, and on both sides of the specimen.
    assert plan.haze_offset_px.abs().min() >= 0.25 * 37.0
    towards = (plan.haze_offset_px * plan.blur_px < 0).float().mean()
    assert 0.5 < towards <= 1.0
