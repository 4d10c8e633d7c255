"""Names of headers and media types, in one place for both ends of the wire."""

from __future__ import annotations

from collections.abc import Mapping

CORRELATION_ID = "X-Correlation-Id"
MODEL = "X-Refocus-Model"
MODEL_DIGEST = "X-Refocus-Model-Digest"
OUT_OF_RANGE = "X-Refocus-Out-Of-Range"
DEFOCUS_UM = "X-Refocus-Defocus-Um"
OPTICS = "X-Refocus-Optics"
INTERVAL_SCALE = "X-Refocus-Uncertainty"
RETRY_AFTER = "Retry-After"
SERVER_TIMING = "Server-Timing"

PROBLEM_JSON = "application/problem+json"


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


def parse_server_timing(value: str) -> dict[str, float]:
    """Return stage to milliseconds; entries without a duration are left out."""
    stages = {}
    for entry in value.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            if parameter.startswith("dur="):
                stages[name] = float(parameter.removeprefix("dur="))
    return stages
