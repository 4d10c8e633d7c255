"""What may be asked of the service in a query, and what is said of a query that does not fit."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from typing import Annotated

from fastapi import Query, Request

from refocus.serving.requests import OnOutOfRange
from refocus.serving.status import Refusal
from refocus.zstack import Modality

ModelQuery = Annotated[
    str | None,
    Query(description="NAME, NAME@champion, NAME@challenger or NAME@DIGEST", max_length=160, examples=["fluorescence"]),
]
ModalityQuery = Annotated[Modality | None, Query(description="What kind of image it is, where the model is not named")]
PixelSizeQuery = Annotated[
    float | None,
    Query(gt=0, le=100, description="Spacing of pixel centres in the specimen, in um; wins over what the file says"),
]
ApertureQuery = Annotated[
    float | None,
    Query(
        gt=0,
        le=1.7,
        description="Numerical aperture of the objective, likewise; needs a pixel size, of the file or of the caller",
    ),
]
WavelengthQuery = Annotated[
    float | None, Query(gt=0.1, le=2, description="Of the light, in um, likewise; green (0.55) where nobody says it")
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
    wrong = [f"{name!r} is not known{_meant(name, known)}" for name in counted if name not in known]
    wrong += [f"{name!r} was given {times} times; give it once" for name, times in counted.items()
              if name in known and times > 1]  # fmt: skip
    if wrong:
        raise Refusal(422, "bad-request", f"{'; '.join(wrong)}. {route.path} takes {', '.join(sorted(known))}.")


def _meant(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
