"""Error answers: RFC 9457 problem details, with a correlation id."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """One error answer (RFC 9457, ``application/problem+json``).

    Parameters
    ----------
    type : str
        A stable name of the kind of problem, ``urn:refocus:problem:KIND``.
    title : str
        The kind, in words.
    status : int
        The HTTP status, repeated.
    detail : str
        What arrived, what was expected, what to try.
    instance : str
        The path that was asked.
    correlation_id : str
        What to quote to whoever runs the service; its logs carry it.
    """

    # Problem documents may carry members that a reader does not know (RFC 9457, section 3.2).
    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""
    instance: str = ""
    correlation_id: str = ""
