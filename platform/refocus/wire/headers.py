"""Names of headers and media types, and what may be asked for, in one place for both ends of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

CORRELATION_ID = "X-Correlation-Id"
MODEL = "X-Refocus-Model"
MODEL_DIGEST = "X-Refocus-Model-Digest"
OUT_OF_RANGE = "X-Refocus-Out-Of-Range"
BLANKS = "X-Refocus-Blanks"
DEFOCUS_UM = "X-Refocus-Defocus-Um"
OPTICS = "X-Refocus-Optics"
INTERVAL_SCALE = "X-Refocus-Uncertainty"
RETRY_AFTER = "Retry-After"
SERVER_TIMING = "Server-Timing"

PROBLEM_JSON = "application/problem+json"

#: What is done where an image is beyond what the network was trained for.
OnOutOfRange = Literal["mark", "keep", "fail"]


def format_server_timing(stages_ms: Mapping[str, float]) -> str:
    """Return a Server-Timing value.

    Examples
    --------
    >>> format_server_timing({"decode": 1.25, "model": 30})
    'decode;dur=1.250, model;dur=30.000'
    """
    return ", ".join(f"{name};dur={duration:.3f}" for name, duration in stages_ms.items())


def format_optics(numerical_aperture: float, wavelength_um: float, pixel_size_um: float) -> str:
    """Return what optics were told.

    Examples
    --------
    >>> format_optics(0.75, 0.525, 0.325)
    'na=0.75; wavelength_um=0.525; pixel_size_um=0.325'
    """
    return f"na={numerical_aperture:g}; wavelength_um={wavelength_um:g}; pixel_size_um={pixel_size_um:g}"


def parse_optics(value: str) -> dict[str, float] | None:
    """Return what `format_optics` wrote, by name; None for an empty value.

    Examples
    --------
    >>> parse_optics("na=0.75; wavelength_um=0.525; pixel_size_um=0.325")
    {'na': 0.75, 'wavelength_um': 0.525, 'pixel_size_um': 0.325}
    """
    entries = (entry.strip().partition("=") for entry in value.split(";") if entry.strip())
    return {name: float(number) for name, _, number in entries} or None


def format_interval(*, calibrated: bool, planes: int) -> str:
    """Return what half widths are, and on which pages they lie.

    Examples
    --------
    >>> format_interval(calibrated=True, planes=3)
    'level=0.9; calibrated=true; planes=1-3; half_widths=4-6'
    """
    said = "true" if calibrated else "false"
    return f"level=0.9; calibrated={said}; planes=1-{planes}; half_widths={planes + 1}-{2 * planes}"


def parse_calibrated(value: str) -> bool | None:
    """Return whether the half widths that a value of `format_interval` speaks of were calibrated; None for no value.

    Examples
    --------
    >>> parse_calibrated("level=0.9; calibrated=true; planes=1-3; half_widths=4-6")
    True
    """
    return None if not value else "calibrated=true" in value


def parse_server_timing(value: str) -> dict[str, float]:
    """Return stage to milliseconds; entries without a duration are left out."""
    stages = {}
    for entry in value.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            if parameter.startswith("dur="):
                stages[name] = float(parameter.removeprefix("dur="))
    return stages
