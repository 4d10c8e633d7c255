"""What may be asked of the service in a query, and what is said of a query that does not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from fastapi import Query, Request

from refocus.optics.limits import APERTURE, PIXEL_SIZE_UM, WAVELENGTH_UM
from refocus.serving.status import Refusal
from refocus.wire.headers import OnOutOfRange
from refocus.zstack import MODALITIES, Modality

_LENGTHS_UM = {"pixel_size_um": PIXEL_SIZE_UM, "wavelength_um": WAVELENGTH_UM}
_EXPECTED = {
    "model": "NAME, NAME@champion, NAME@challenger or NAME@DIGEST, in up to 160 characters",
    "modality": ", ".join(MODALITIES),
    "pixel_size_um": f"micrometres in the specimen, from {PIXEL_SIZE_UM[0]:g} to {PIXEL_SIZE_UM[1]:g}, such as 0.325",
    "na": f"a numerical aperture, from {APERTURE[0]:g} to {APERTURE[1]:g}, such as 0.75",
    "wavelength_um": f"micrometres, from {WAVELENGTH_UM[0]:g} to {WAVELENGTH_UM[1]:g}, such as 0.525",
    "blind": "true or false",
    "uncertainty": "true or false",
    "on_out_of_range": ", ".join(get_args(OnOutOfRange)),
}
# Of what is not known, however much of it a client makes up.
_MOST_NAMED = 5

ModelQuery = Annotated[
    str | None,
    Query(description="NAME, NAME@champion, NAME@challenger or NAME@DIGEST", max_length=160, examples=["fluorescence"]),
]
ModalityQuery = Annotated[Modality | None, Query(description="What kind of image it is, where the model is not named")]
PixelSizeQuery = Annotated[
    float | None,
    Query(
        ge=PIXEL_SIZE_UM[0],
        le=PIXEL_SIZE_UM[1],
        description="Spacing of pixel centres in the specimen, in um; wins over what the file says",
    ),
]
ApertureQuery = Annotated[
    float | None,
    Query(
        ge=APERTURE[0],
        le=APERTURE[1],
        description="Numerical aperture of the objective; wins over what the file says; needs a pixel size of either",
    ),
]
WavelengthQuery = Annotated[
    float | None,
    Query(
        ge=WAVELENGTH_UM[0],
        le=WAVELENGTH_UM[1],
        description="Of the light, in um; wins over what the file says; green (0.55) where nobody says it",
    ),
]
BlindQuery = Annotated[bool, Query(description="Ignore what the file says of the optics: stale metadata mislead")]
UncertaintyQuery = Annotated[bool, Query(description="Append the 90% interval's half widths as further planes")]
OutOfRangeQuery = Annotated[OnOutOfRange, Query(description="Where blur is beyond the training")]


async def no_stray_parameters(request: Request) -> None:
    """Refuse a query that names what its route does not know, or the same thing twice.

    Raises
    ------
    Refusal
        422, naming each such parameter and those that there are.
    """
    route = request.scope["route"]
    known = [field.alias for field in route.dependant.query_params]
    counted = Counter(name for name, _ in request.query_params.multi_items())
    stray = [name for name in counted if name not in known][:_MOST_NAMED]
    wrong = [f"{name[:80]!r} is not known{_meant(name[:80], known)}" for name in stray]
    twice = [name for name in known if counted[name] > 1]
    wrong += [f"{name!r} was given {counted[name]} times; give it once" for name in twice]
    if wrong:
        raise Refusal(422, "bad-request", f"{'; '.join(wrong)}. {route.path} takes {', '.join(sorted(known))}.")


def _meant(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def misfit(error: Mapping[str, Any]) -> str:
    """Say of one of pydantic's errors what arrived, what was expected, and what may have been meant.

    Examples
    --------
    >>> misfit({"loc": ("query", "wavelength_um"), "input": "525", "msg": ""})
    "wavelength_um='525' arrived; expected micrometres, from 0.1 to 2, such as 0.525. Did you mean 0.525?"
    """
    name, arrived = str(error["loc"][-1]), str(error.get("input", ""))
    meant = _meant_um(name, arrived)
    guess = "" if meant is None else f" Did you mean {meant:g}?"
    return f"{name}={arrived[:80]!r} arrived; expected {_EXPECTED.get(name, error['msg'])}.{guess}"


def _meant_um(name: str, arrived: str) -> float | None:
    number = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(nm|um|µm|μm)?\s*", arrived)
    if number is None or name not in _LENGTHS_UM:
        return None
    # Without a unit it was no micrometres, or it would fit.
    value_um = float(number[1]) * (1.0 if number[2] in ("um", "µm", "μm") else 1e-3)
    lowest_um, highest_um = _LENGTHS_UM[name]
    return value_um if lowest_um <= value_um <= highest_um else None
