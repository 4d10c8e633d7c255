from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from refocus.optics.settings import OpticalSystem


def test_ten_micrometres_at_na_075_blur_to_35_pixels(objective: OpticalSystem) -> None:
    assert objective.blur_radius_px(10.0) == pytest.approx(10.0 * 0.75 / math.sqrt(1 - 0.75**2) / 0.325)
    assert round(objective.blur_radius_px(-10.0)) == 35


def test_distance_and_radius_are_each_others_inverse(objective: OpticalSystem) -> None:
    assert objective.defocus_um_for(objective.blur_radius_px(3.7)) == pytest.approx(3.7)


def test_the_axial_null_of_a_weak_lens_is_two_n_lambda_over_na_squared() -> None:
    weak = OpticalSystem(numerical_aperture=0.05, wavelength_um=0.5, pixel_size_um=1.0, refractive_index=1.33)
    # The next term of the series is NA^2 / 4 n^2 = 4e-4 of it.
    assert weak.axial_null_um == pytest.approx(2 * 1.33 * 0.5 / 0.05**2, rel=5e-4)


def test_a_dry_objective_of_aperture_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="is this a water"):
        OpticalSystem(numerical_aperture=1.2, wavelength_um=0.5, pixel_size_um=0.1)


def test_total_reflection_in_the_specimen_is_refused() -> None:
    with pytest.raises(ValidationError, match="totally reflected"):
        OpticalSystem(
            numerical_aperture=1.4, wavelength_um=0.5, pixel_size_um=0.1, refractive_index=1.515, specimen_index=1.33
        )


def test_piston_is_no_aberration() -> None:
    with pytest.raises(ValidationError, match="start at 2"):
        OpticalSystem(numerical_aperture=0.5, wavelength_um=0.5, pixel_size_um=0.1, zernike_waves=((1, 0.1),))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        OpticalSystem.model_validate(
            {"numerical_aperture": 0.5, "wavelength_um": 0.5, "pixel_size_um": 0.1, "magnification": 20}
        )


def test_told_optics_are_filled_in_and_never_refused() -> None:
    assert OpticalSystem.told(numerical_aperture=0.75, pixel_size_um=None) is None
    assert OpticalSystem.told(numerical_aperture=None, pixel_size_um=0.3) is None
    media = {0.75: 1.0, 0.95: 1.0, 1.0: 1.33, 1.2: 1.33, 1.4: 1.515}
    for aperture, index in media.items():
        told = OpticalSystem.told(numerical_aperture=aperture, pixel_size_um=0.1)
        assert told is not None
        assert (told.refractive_index, told.wavelength_um) == (index, 0.55)
    # The mounting medium's index under the immersion's name, and a lens for which no glass is known here.
    odd = OpticalSystem.told(numerical_aperture=1.4, pixel_size_um=0.1, wavelength_um=0.6, refractive_index=1.33)
    assert odd is not None
    assert (odd.refractive_index, odd.wavelength_um) == (1.515, 0.6)
    steep = OpticalSystem.told(numerical_aperture=1.65, pixel_size_um=0.1)
    assert steep is not None
    assert steep.refractive_index > 1.65
