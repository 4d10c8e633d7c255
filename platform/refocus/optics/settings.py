"""What an objective and its camera are: the numbers that decide how defocus looks."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
#: Air, water, oil.
_MEDIA = (1.0, 1.33, 1.515)
_GREEN_UM = 0.55
#: Wavelengths that stand for the three colours of a camera with a white lamp, in um.
RGB_WAVELENGTHS_UM = (0.61, 0.54, 0.46)
Apodisation = Literal["uniform", "aplanatic"]


class OpticalSystem(BaseModel):
    """An objective with its light and its pixels, all lengths in specimen micrometres.

    Parameters
    ----------
    numerical_aperture : float
        Below `refractive_index`.
    wavelength_um : float
        Vacuum wavelength: of emission in fluorescence, of illumination in brightfield.
    pixel_size_um : float
        Spacing of pixel centres in the specimen; pixels are squares of this side without gaps.
    refractive_index : float
        Of the immersion medium: 1.0 dry, 1.33 water, 1.515 oil.
    spherical_waves : float
        Primary spherical aberration (Zernike, Noll index 11), RMS over the pupil, in waves.
    zernike_waves : tuple of (int, float)
        Further aberrations as (Noll index, RMS in waves). Index 4 is paraxial defocus, 5 and 6 astigmatism,
        7 and 8 coma, 22 secondary spherical.
    coverslip_error_um : float
        How much thicker the coverslip is than the objective expects.
    coverslip_index : float
    specimen_depth_um : float
        How deep below the coverslip the specimen lies in a medium of `specimen_index`.
    specimen_index : float or None
        None for a medium that matches the immersion.
    apodisation : {'uniform', 'aplanatic'}
        Amplitude over the pupil. ``'uniform'`` has the closed forms of the textbook (Goodman);
        ``'aplanatic'`` weighs by ``cos(theta) ** -0.5``, what a lens obeying the sine condition collects from an
        isotropic emitter. They differ by less than the scalar theory itself errs below NA 0.6.

    Examples
    --------
    >>> objective = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
    >>> round(objective.blur_radius_px(10.0), 1)
    34.9
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numerical_aperture: PositiveFloat
    wavelength_um: PositiveFloat
    pixel_size_um: PositiveFloat
    refractive_index: PositiveFloat = 1.0
    spherical_waves: FiniteFloat = 0.0
    zernike_waves: tuple[tuple[int, FiniteFloat], ...] = ()
    coverslip_error_um: FiniteFloat = 0.0
    coverslip_index: PositiveFloat = 1.5255
    specimen_depth_um: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    specimen_index: PositiveFloat | None = None
    apodisation: Apodisation = "uniform"

    @model_validator(mode="after")
    def _light_gets_through(self) -> Self:
        if self.numerical_aperture >= self.refractive_index:
            raise ValueError(
                f"numerical_aperture {self.numerical_aperture} is not below refractive_index {self.refractive_index}; "
                "a dry objective stays below 1.0: is this a water (1.33) or oil (1.515) lens?"
            )
        for name, index in (("coverslip_index", self.coverslip_index), ("specimen_index", self.specimen_index)):
            if index is not None and index <= self.numerical_aperture:
                raise ValueError(
                    f"{name} {index} is not above numerical_aperture {self.numerical_aperture}: the outer rays would "
                    "be totally reflected, which this scalar model leaves out."
                )
        for noll, _ in self.zernike_waves:
            if noll < 2:
                raise ValueError(f"zernike_waves names Noll index {noll}; indices start at 2 (1 is piston).")
        return self

    @classmethod
    def told(
        cls,
        *,
        numerical_aperture: float | None,
        pixel_size_um: float | None,
        wavelength_um: float | None = None,
        refractive_index: float | None = None,
    ) -> Self | None:
        """What a file or a person says of the optics; None where that is too little: aperture and pixels must be known.

        Where it is not said, light is taken for green (0.55 um) and the lens for dry, water or oil by its aperture; so
        is an index that is not above the aperture, which must belong to something else.
        """
        if numerical_aperture is None or pixel_size_um is None:
            return None
        if refractive_index is None or refractive_index <= numerical_aperture:
            refractive_index = next((n for n in _MEDIA if numerical_aperture < n), 1.1 * numerical_aperture)
        return cls(
            numerical_aperture=numerical_aperture,
            pixel_size_um=pixel_size_um,
            wavelength_um=wavelength_um or _GREEN_UM,
            refractive_index=refractive_index,
            coverslip_index=max(cls.model_fields["coverslip_index"].default, 1.1 * numerical_aperture),
        )

    @property
    def tangent(self) -> float:
        """Slope of the marginal ray, ``tan(asin(NA / n))``."""
        return math.tan(math.asin(self.numerical_aperture / self.refractive_index))

    @property
    def airy_radius_um(self) -> float:
        """First dark ring of the in-focus PSF, ``0.61 wavelength / NA``."""
        return 0.6098349 * self.wavelength_um / self.numerical_aperture

    @property
    def axial_null_um(self) -> float:
        """Defocus at which the PSF's centre is first dark (a uniform pupil in ``cos(theta)`` to the second order).

        ``wavelength / (n (1 - cos(theta)))``, which is ``2 n wavelength / NA^2`` for small NA.
        """
        sine = self.numerical_aperture / self.refractive_index
        return self.wavelength_um / (self.refractive_index * (1.0 - math.sqrt(1.0 - sine * sine)))

    @property
    def depth_of_field_um(self) -> float:
        """Wave-optical depth of field, ``n wavelength / NA^2``: the whole width, both sides of focus together."""
        return self.refractive_index * self.wavelength_um / self.numerical_aperture**2

    def blur_radius_px(self, defocus_um: float) -> float:
        """Geometric radius of the defocus disc, in pixels."""
        return abs(defocus_um) * self.tangent / self.pixel_size_um

    def defocus_um_for(self, blur_radius_px: float) -> float:
        """Distance at which the geometric blur has this radius, in um, positive."""
        return blur_radius_px * self.pixel_size_um / self.tangent


#: What stands for an objective where none is named: 20x 0.75 on 6.5 um pixels, green light.
STANDARD_SYSTEM = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
