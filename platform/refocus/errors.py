"""Everything that Refocus raises on purpose, as one tree.

::

    RefocusError
    ├── InputError (ValueError)                    what was given cannot be used
    │   ├── UnreadableImage                        broken, truncated, or no image at all
    │   ├── UnsupportedImage                       a sound image of a kind that is not handled
    │   ├── ImageTooLarge                          over a stated limit of bytes, pixels or pages
    │   ├── MetadataMissing                        an answer is needed: z step, axis order, modality
    │   └── ConfigurationError                     a setting, recipe, key or address that does not fit
    ├── StoreError (OSError)                       the object store said no, or nothing
    │   ├── StoreUnreachable (ConnectionError)
    │   ├── StoreAccessDenied (PermissionError)
    │   ├── BucketMissing (FileNotFoundError)
    │   ├── ObjectMissing (FileNotFoundError)
    │   ├── ObjectExists (FileExistsError)         a conditional create lost
    │   └── ObjectChanged                          a conditional replace or read lost
    ├── DatasetError
    │   ├── DatasetMissing (FileNotFoundError)
    │   ├── DatasetExists (FileExistsError)
    │   └── DatasetIncomplete                      an ingest has not finished, or left nothing to train on
    ├── TrainingError
    │   ├── RunExists (FileExistsError)
    │   ├── RunMissing (FileNotFoundError)
    │   ├── ResourcesMissing                       the cluster is smaller than what was asked for
    │   └── NonFiniteLoss (ArithmeticError)
    ├── ModelError
    │   ├── ModelMissing (FileNotFoundError)       no such version, alias or checkpoint
    │   ├── ModelUnfit (ValueError)                weights, config and image do not fit together
    │   ├── ModelCorrupt (ValueError)              the bytes are not what the digest says
    │   ├── PromotionRefused                       the gate said no; `.reasons` says why
    │   └── AliasMoved                             another promotion won the race
    └── ServiceError                               what the HTTP client raises
        ├── RequestRefused (ValueError)            4xx: asking again will not help
        ├── ServiceBusy                            429 and 503: `.retry_after_s` says when to ask again
        └── ServiceFailed (ConnectionError)        no answer, or a 5xx that stayed

Each also subclasses the builtin that a caller would naturally catch. A message says what arrived,
what was expected and what to try. Which HTTP status an error becomes is decided in
``refocus.serving.status`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class RefocusError(Exception):
    """Root of all errors that Refocus raises on purpose.

    Attributes
    ----------
    exit_status : int
        What a command that ends with this error exits with.
    """

    exit_status = 1


class InputError(RefocusError, ValueError):
    """What was given cannot be used."""


class UnreadableImage(InputError):
    """The bytes are broken, truncated, or no image at all."""


class UnsupportedImage(InputError):
    """A sound image of a kind that is not handled."""


class ImageTooLarge(InputError):
    """The image is over a stated limit of bytes, pixels or pages."""


class MetadataMissing(InputError):
    """The file leaves a question open that only the user can answer."""


class ConfigurationError(InputError):
    """A setting, recipe, key or address does not fit."""


class StoreError(RefocusError, OSError):
    """The object store refused, or did not answer."""


class StoreUnreachable(StoreError, ConnectionError):
    """No answer from the object store within the retries."""


class StoreAccessDenied(StoreError, PermissionError):
    """The object store does not accept these credentials for this."""


class BucketMissing(StoreError, FileNotFoundError):
    """There is no such bucket."""


class ObjectMissing(StoreError, FileNotFoundError):
    """There is no such object."""


class ObjectExists(StoreError, FileExistsError):
    """A create-if-absent found the object there already."""


class ObjectChanged(StoreError):
    """The object is no longer the one that was read before (its ETag moved)."""


class DatasetError(RefocusError):
    """Something about a dataset version is wrong."""


class DatasetMissing(DatasetError, FileNotFoundError):
    """There is no such dataset version."""


class DatasetExists(DatasetError, FileExistsError):
    """The dataset version is complete already, and versions never change."""


class DatasetIncomplete(DatasetError):
    """The dataset version has no manifest yet, or a split that is needed is empty."""


class TrainingError(RefocusError):
    """A training run cannot start or go on."""


class RunExists(TrainingError, FileExistsError):
    """The run name is taken."""


class RunMissing(TrainingError, FileNotFoundError):
    """There is no run of this name, or it has no checkpoint."""


class ResourcesMissing(TrainingError):
    """The cluster has less than what the run asks for."""


class NonFiniteLoss(TrainingError, ArithmeticError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class ModelError(RefocusError):
    """Something about a model version is wrong."""


class ModelMissing(ModelError, FileNotFoundError):
    """There is no such version, alias or checkpoint."""


class ModelUnfit(ModelError, ValueError):
    """Weights, configuration and image do not fit together."""


class ModelCorrupt(ModelError, ValueError):
    """The bytes are not those that the digest names."""


class PromotionRefused(ModelError):
    """The gate refused the candidate.

    Parameters
    ----------
    message : str
        What was refused.
    reasons : sequence of str
        Each condition that failed, with both numbers.
    """

    # Told apart from failures: scripts go on with the present champion.
    exit_status = 3

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        self.reasons = tuple(reasons)
        super().__init__("\n  - ".join([message, *self.reasons]))


class AliasMoved(ModelError):
    """Another promotion moved the alias between our read and our write."""


class ServiceError(RefocusError):
    """What the HTTP client raises.

    Parameters
    ----------
    message : str
    status : int or None
        The HTTP status, None where no answer came.
    correlation_id : str or None
        What to quote when asking the operator.
    """

    def __init__(self, message: str, *, status: int | None = None, correlation_id: str | None = None) -> None:
        self.status = status
        self.correlation_id = correlation_id
        super().__init__(message)


class RequestRefused(ServiceError, ValueError):
    """The service refused the request; the same request will be refused again."""


class ServiceBusy(ServiceError):
    """The service cannot take the request now.

    Parameters
    ----------
    retry_after_s : float or None
        How long the service asks to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        correlation_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, status=status, correlation_id=correlation_id)


class ServiceFailed(ServiceError, ConnectionError):
    """The service did not answer, or failed and went on failing."""


def counted(number: int, what: str) -> str:
    """Return so many of something, as messages name them.

    Examples
    --------
    >>> counted(1, "tile"), counted(2, "tile")
    ('1 tile', '2 tiles')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def in_one_line(error: Exception) -> str:
    """Return what an error says that is drawn over several lines, as YAML's are."""
    return " ".join(str(error).split())


def not_fitting(error: ValidationError, said: str = "", where: str = "") -> ConfigurationError:
    """Return the error for what does not fit, with a line for each of its `problems_of`, under what is `said` first."""
    problems = problems_of(error, where)
    return ConfigurationError("\n  ".join([said, *problems]) if said else "\n".join(problems))


def problems_of(error: ValidationError, where: str = "") -> list[str]:
    """Return one line for each thing that does not fit, with the path to it, `where` first, and what came.

    Not for values that may be secret.
    """
    lines = []
    for each in error.errors(include_url=False):
        path = ".".join(filter(None, [where, *(str(part) for part in each["loc"])]))
        said = "is not known; is it misspelt?" if each["type"] == "extra_forbidden" else _in_our_words(each)
        lines.append(f"{path}: {said}" if path else said)
    return lines


def _in_our_words(problem: ErrorDetails) -> str:
    said = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    # A whole mapping, and what a check of our own has said already, would only be said again.
    if isinstance(given, (bool, int, float, str)) and problem["type"] != "value_error":
        return f"{said}; {given!r} came"
    return said
