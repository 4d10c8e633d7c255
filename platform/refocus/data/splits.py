"""Which names are images, and which split their specimen is in: pure functions, so that adding data moves nothing."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal, get_args

from refocus.errors import ConfigurationError
from refocus.wire.codec import IMAGE_SUFFIXES

Split = Literal["train", "validation", "calibration"]
SPLITS: tuple[Split, ...] = get_args(Split)

_TRAIN_PERCENT = 80
_VALIDATION_PERCENT = 10

# Kinds of files that are named where they are left out.
_MOST_KINDS = 5

# Channels saved as separate files show one field of view: they must not end in two splits. _c1, _C1, Leica's _ch00,
# MetaMorph's _w1 and _w1DAPI.
DEFAULT_SPECIMEN_PATTERN = r"(.+?)(?i:_ch?\d+|_w\d+(?:[a-z][a-z\d]*)?)?"

_EXPECTED = (
    r"expected one whose first group is the specimen's name, such as '(slide\d+)_.*', or '.*/(.+)/.+' where it is the "
    "folder's."
)


def split_of(specimen: str) -> Split:
    """Return the split of `specimen`: 80% train, 10% validation, 10% calibration.

    The SHA-256 of the name decides. Tiles, planes and channels of one specimen therefore stay
    together, and a specimen keeps its split for ever, in every dataset version.
    """
    percent = hash_percent(specimen)
    if percent < _TRAIN_PERCENT:
        return "train"
    return "validation" if percent < _TRAIN_PERCENT + _VALIDATION_PERCENT else "calibration"


def hash_percent(name: str) -> int:
    """Return a number from 0 to 99 that follows from `name` alone, evenly spread over names."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100


def is_image(key: str) -> bool:
    """Return whether `key` names an image file, as what ingest takes.

    ``x.truth.tif`` is none: `refocus simulate` writes what only it knows beside a series, and as a sharp image that
    would leak between splits.
    """
    return key.lower().endswith(IMAGE_SUFFIXES) and ".truth." not in PurePosixPath(key).name


def said_of_others(names: Iterable[str]) -> tuple[str, ...]:
    """Return what is said of files that are left out because they are no images: one sentence, or none."""
    kinds = Counter(
        ".truth" * (".truth." in name) + PurePosixPath(name).suffix.lower() or "no suffix" for name in names
    )
    if not kinds:
        return ()
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_MOST_KINDS))
    number = kinds.total()
    more = ", ..." if len(kinds) > _MOST_KINDS else ""
    return (f"{number} other file{'s' if number > 1 else ''} left out: {named}{more}.",)


def stem_of(key: str) -> str:
    """Return the last part of `key` without its image suffixes: ``raw/a/s3.ome.tif`` gives ``s3``."""
    return PurePosixPath(_without_suffixes(key)).name


def specimen_of(key: str, pattern: str = DEFAULT_SPECIMEN_PATTERN) -> str:
    """Return the specimen that the object `key` shows: the first group of `pattern` on its stem.

    A pattern with a slash that does not fit the stem is tried on the whole key, with a slash before it: on
    ``/raw/plate7/A01/img_1`` ``.*/(.+)/.+`` finds ``A01``. Whichever folder is ingested, the key is the same, and so
    are the specimen and its split.

    Raises
    ------
    ConfigurationError
        If `pattern` is no regular expression with a group, or does not fit.
    """
    stem = stem_of(key)
    match = re.fullmatch(checked_pattern(pattern), stem)
    if match is None and "/" in pattern:
        match = re.fullmatch(pattern, "/" + _without_suffixes(key))
    if match is None or not match.group(1):
        raise ConfigurationError(f"specimen pattern {pattern!r} finds no specimen in {stem!r} (of {key}); {_EXPECTED}")
    return match.group(1)


def checked_pattern(pattern: str) -> str:
    """Return `pattern` if it is a regular expression with a group.

    Raises
    ------
    ConfigurationError
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigurationError(f"specimen pattern {pattern!r} is not a regular expression: {error}.") from error
    if groups < 1:
        raise ConfigurationError(f"specimen pattern {pattern!r} has no group; {_EXPECTED}")
    return pattern


def _without_suffixes(key: str) -> str:
    return re.sub(r"(\.ome)?\.(tiff?|png|jpe?g|zarr)$", "", key.rstrip("/"), flags=re.IGNORECASE)
