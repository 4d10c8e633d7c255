from __future__ import annotations

import weakref

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from refocus.errors import ConfigurationError, InputError
from refocus.focus.measures import MEASURES
from refocus.focus.plane import find_in_focus_plane, focus_curve, peak_of
from refocus.optics.settings import OpticalSystem

from .conftest import cells, noisy, series


def bell(position: float, planes: int = 21, width: float = 3.0) -> np.ndarray:
    return 5.0 + np.exp(-0.5 * ((np.arange(planes) - position) / width) ** 2)


@given(position=st.floats(2.0, 18.0), width=st.floats(1.0, 6.0), height=st.floats(1e-6, 1e9), floor=st.floats(0, 10))
@settings(deadline=None, max_examples=200)
def test_a_bell_peaks_between_planes_where_it_was_put(position, width, height, floor):
    planes = np.arange(21)
    found = peak_of(height * (floor + np.exp(-0.5 * ((planes - position) / width) ** 2)))
    # A parabola through the top 30% of a bell; at worst the samples lie lopsided around it.
    assert found.position == pytest.approx(position, abs=0.1)
    assert not found.at_edge
    assert found.index == round(found.position)
    assert found.confidence > 0.6


def test_a_parabola_is_found_exactly():
    curve = 100 - (np.arange(15) - 6.3) ** 2
    assert peak_of(curve).position == pytest.approx(6.3, abs=1e-9)


@pytest.mark.parametrize("position", [-4.0, 0.0, 20.0, 31.0])
def test_a_peak_at_the_rim_is_flagged_and_not_trusted(position):
    found = peak_of(bell(position))
    assert found.at_edge
    assert found.confidence == 0
    assert found.index in (0, 20)


@pytest.mark.parametrize("curve", [[3.0], [1.0, 2.0], [4.0] * 9])
def test_a_curve_without_a_peak_inside_is_at_the_edge(curve):
    found = peak_of(curve)
    assert found.at_edge
    assert found.confidence == 0


def test_noise_alone_earns_little_confidence_and_a_peak_much():
    rng = np.random.default_rng(1)
    of_noise = [peak_of(rng.normal(size=25)).confidence for _ in range(200)]
    of_peaks = [peak_of(10 * bell(12.0, 25) + rng.normal(scale=0.2, size=25)).confidence for _ in range(200)]
    assert np.median(of_noise) < 0.05
    assert np.median(of_peaks) > 0.6
    # As a threshold 0.4 tells the two apart.
    assert np.mean(np.array(of_noise) < 0.4) > 0.99
    assert np.mean(np.array(of_peaks) > 0.4) > 0.99


def test_two_peaks_of_one_height_share_the_confidence_away():
    curve = bell(5, 31, 1.5) + bell(24, 31, 1.5)
    assert peak_of(curve).confidence < 0.05
    assert peak_of(curve + 0.5 * bell(24, 31, 1.5)).confidence == pytest.approx(1 / 3, abs=0.1)


def test_a_noisy_curve_is_fitted_over_more_planes_than_its_highest():
    rng = np.random.default_rng(2)
    errors = [peak_of(bell(20.4, 41, 8.0) + rng.normal(scale=0.05, size=41)).position - 20.4 for _ in range(300)]
    highest = [float(np.argmax(bell(20.4, 41, 8.0) + rng.normal(scale=0.05, size=41))) - 20.4 for _ in range(300)]
    assert np.std(errors) < 0.75 * np.std(highest)


def test_a_series_in_reverse_peaks_at_the_mirrored_plane():
    curve = bell(7.2)
    assert peak_of(curve[::-1]).position == pytest.approx(20 - peak_of(curve).position, abs=1e-9)


@pytest.mark.parametrize("measure", list(MEASURES))
def test_every_measure_finds_a_clean_fluorescent_sheet(measure):
    rng = np.random.default_rng(3)
    system = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=0.4)
    defocus_um = (np.arange(15) - 6.4) * 1.5
    found = find_in_focus_plane(series(cells(96, rng), system, defocus_um), measure=measure)
    assert found.position == pytest.approx(6.4, abs=0.35)  # the sharp peaks of some are undersampled at this step


@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_lamp_that_drifts_does_not_move_the_plane(measure):
    rng = np.random.default_rng(4)
    system = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=0.4)
    clean = series(cells(96, rng), system, (np.arange(17) - 8.3) * 1.5)
    drifting = clean * np.linspace(1.0, 2.0, 17)[:, None, None]
    steady = find_in_focus_plane(clean, measure=measure).position
    assert find_in_focus_plane(drifting, measure=measure).position == pytest.approx(steady, abs=0.05)


def test_stray_light_that_drifts_moves_the_plane_by_less_than_half_a_step():
    rng = np.random.default_rng(5)
    system = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=0.4)
    clean = series(cells(96, rng), system, (np.arange(17) - 8.3) * 1.5)
    drifting = clean + np.linspace(0, 0.3 * clean.mean(), 17)[:, None, None]
    assert find_in_focus_plane(drifting).position == pytest.approx(8.3, abs=0.5)


def test_half_a_step_on_95_percent_of_200_simulated_series_at_snr_5():
    rng = np.random.default_rng(6)
    emissions = np.stack([cells(64, rng) for _ in range(10)])
    systems = [
        OpticalSystem(numerical_aperture=na, wavelength_um=0.525, pixel_size_um=px)
        for na, px in ((0.3, 0.65), (0.45, 0.65), (0.5, 0.325), (0.75, 0.325), (0.9, 0.25))
    ]
    errors, confidences = [], []
    for system in systems:
        for _ in range(4):
            focus = rng.uniform(3.0, 9.0)
            defocus_um = (np.arange(13) - focus) * 1.2 * system.depth_of_field_um
            for planes in series(emissions, system, defocus_um):
                found = find_in_focus_plane(noisy(planes, 5.0, rng))
                errors.append(found.position - focus)
                confidences.append(found.confidence)
    assert len(errors) == 200
    assert np.mean(np.abs(errors) < 0.5) >= 0.95
    assert abs(np.mean(errors)) < 0.05
    assert np.median(confidences) > 0.7


def test_planes_are_measured_one_at_a_time():
    references: list[weakref.ref] = []

    def planes():
        rng = np.random.default_rng(0)
        for _ in range(6):
            plane = rng.random((32, 32))
            references.append(weakref.ref(plane))
            yield plane
            del plane
            assert sum(reference() is not None for reference in references) <= 1

    assert len(focus_curve(planes())) == 6


def test_colour_is_measured_on_the_mean_of_its_samples():
    grey = np.random.default_rng(7).random((5, 32, 32))
    colour = np.stack([grey * 0.5, grey, grey * 1.5], axis=-1)
    np.testing.assert_allclose(find_in_focus_plane(colour).curve, find_in_focus_plane(grey).curve, rtol=1e-4)


@pytest.mark.parametrize(("file", "plane", "tolerance"), [
    ("mitochondria_lightsheet.ome.tif", 18, 2),
    ("neurons_phase_contrast.ome.tif", 11, 1),
])  # fmt: skip
def test_real_series_are_in_focus_where_people_see_it(real_data, file, plane, tolerance):
    found = find_in_focus_plane(tifffile.imread(real_data / "stacks" / file))
    assert abs(found.index - plane) <= tolerance
    assert not found.at_edge
    assert found.confidence > 0.5


def test_planes_of_unequal_shape_are_refused_by_number():
    with pytest.raises(InputError, match=r"plane 2 has shape \(8, 9\)"):
        focus_curve([np.ones((8, 8)), np.ones((8, 8)), np.ones((8, 9))])


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="no plane"):
        focus_curve([])
    with pytest.raises(InputError, match="finite"):
        peak_of([1.0, np.nan, 2.0])
    with pytest.raises(InputError, match="expected"):
        find_in_focus_plane(np.ones((8, 8)))
    with pytest.raises(ConfigurationError, match="expected one of"):
        focus_curve([np.ones((8, 8))], "sharpness")
