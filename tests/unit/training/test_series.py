import numpy as np
import pytest
from scipy import ndimage

from refocus.errors import InputError
from refocus.training.series import planes_of, thinned
from refocus.zstack import Acquisition, ZStack


def stack(drift_px=0, step_um=0.5):
    texture = ndimage.gaussian_filter(np.random.default_rng(0).random((120, 120)), 1.0) * 1000
    planes = [ndimage.gaussian_filter(np.roll(texture, z * drift_px, 1), 0.3 + 0.8 * abs(z - 3)) for z in range(8)]
    return ZStack(np.stack(planes).astype(np.float32), "ZYX", Acquisition(z_step_um=step_um), specimen="slide")


def test_every_plane_meets_the_plane_in_focus():
    found = list(planes_of(stack()))
    assert [p.planes_from_focus for p in found] == [-3, -2, -1, 1, 2, 3, 4]
    assert found[0].band == "3 planes"
    for plane in found:
        # Shifts of hundredths of a pixel are measured, so one pixel of the rim is given up.
        np.testing.assert_array_equal(plane.truth[0], stack().pixels[3, 1:-1, 1:-1])
        # The parabola finds focus to a tenth of a plane.
        assert plane.defocus_um == pytest.approx(0.5 * abs(plane.planes_from_focus), abs=0.1)


def test_copies_of_the_plane_in_focus_measure_nothing():
    once = stack()
    twice = ZStack(np.insert(once.pixels, 4, once.pixels[3], axis=0), "ZYX", once.acquisition, specimen="slide")
    assert len(list(planes_of(twice))) == len(list(planes_of(once))) == 7


@pytest.mark.parametrize("kept", [slice(3, None), slice(None, 4)])
def test_a_series_that_is_sharpest_at_its_edge_is_refused(kept):
    whole = stack()
    with pytest.raises(InputError, match=r"sharpest at plane .*leave the series out"):
        next(planes_of(ZStack(whole.pixels[kept], "ZYX", whole.acquisition)))


def test_a_series_whose_plane_in_focus_was_lost_is_refused_with_that_plane():
    lost = stack().pixels.copy()
    lost[3] = 0
    with pytest.raises(InputError, match=r"in focus at plane 3 of 0 to 7, .* are 0 all over"):
        next(planes_of(ZStack(lost, "ZYX", stack().acquisition)))


def test_drifting_planes_are_brought_into_register():
    found = list(planes_of(stack(drift_px=2)))
    for plane in found:
        still = np.corrcoef(plane.image.ravel(), plane.truth.ravel())[0, 1]
        expected = stack().pixels[3 + int(plane.planes_from_focus)]
        best = np.corrcoef(expected.ravel(), stack().pixels[3].ravel())[0, 1]
        # A shift of one pixel that was left would lose a third of the correlation near focus.
        assert still > best - 0.1
    assert found[0].truth.shape[2] < 120


def test_large_planes_are_cut_to_their_centre():
    assert next(iter(planes_of(stack(), field_px=64))).truth.shape == (1, 64, 64)


def test_thinning_keeps_both_ends():
    found = list(planes_of(stack()))
    kept = thinned(found, 3)
    assert [p.planes_from_focus for p in kept] == [-3, 1, 4]
    assert thinned(found, 99) == found


def test_what_is_no_series_is_refused():
    with pytest.raises(InputError, match="at least three planes"):
        next(planes_of(ZStack(np.zeros((2, 64, 64), np.uint16), "ZYX")))
