"""Which HTTP status an error becomes: decided here, and nowhere else."""

from __future__ import annotations

from refocus import errors
from refocus.wire.problem import Problem

#: Most special first: the first class that fits decides.
STATUS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (errors.ImageTooLarge, 413, "too-large", "The image is over a limit"),
    (errors.UnreadableImage, 422, "unreadable-image", "The image cannot be read"),
    (errors.UnsupportedImage, 422, "unsupported-image", "This kind of image is not handled"),
    (errors.MetadataMissing, 422, "metadata-missing", "The image leaves a question open"),
    (errors.InputError, 422, "bad-request", "The request does not fit"),
    (errors.ModelMissing, 404, "no-such-model", "There is no such model"),
    (errors.ModelUnfit, 422, "model-unfit", "No served model takes this image"),
    (errors.ModelCorrupt, 503, "model-corrupt", "The model's files are damaged"),
    (errors.ServiceBusy, 503, "busy", "The service is busy"),
    (errors.StoreError, 503, "store", "The model store does not answer"),
    (TimeoutError, 504, "timeout", "The answer took too long"),
)
#: Statuses that ask the client to come back.
RETRY_AFTER_STATUSES = frozenset({503, 504})
#: Of the log and the metrics alone: the client left before an answer began.
CLIENT_GONE = 499

_TITLES = {400: "The request does not fit", 404: "There is nothing here", 405: "Not this method",
           406: "No such format is written", 408: "The body came too slowly", 415: "The body is not one that is read",
           422: "The request does not fit"}  # fmt: skip


class Refusal(Exception):
    """An answer other than the table's: raised in routes, where the context decides."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        self.status = status
        self.kind = kind
        super().__init__(detail)


def problem_for(error: Exception, *, instance: str, correlation_id: str) -> Problem:
    """Return the problem document for an error; what nobody foresaw says nothing about itself."""
    status, kind, title, detail = 500, "internal", "The service failed", (
        "Something went wrong that should not; the service's log has it under this correlation id."
    )  # fmt: skip
    if isinstance(error, Refusal):
        status, kind, detail = error.status, error.kind, str(error)
        title = _TITLES.get(status, "The request was refused")
    else:
        for each, code, name, words in STATUS:
            if isinstance(error, each):
                status, kind, title, detail = code, name, words, str(error) or words
                break
    return Problem(
        type=f"urn:refocus:problem:{kind}",
        title=title,
        status=status,
        detail=detail,
        instance=instance,
        correlation_id=correlation_id,
    )
