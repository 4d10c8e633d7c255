"""Which images ``refocus restore`` reads, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refocus.data.splits import said_of_others
from refocus.errors import ConfigurationError, counted
from refocus.wire.codec import CONTAINER_OF, IMAGE_SUFFIXES, JPEG_SUFFIXES, sniff
from refocus.wire.files import check_target, naming


@dataclass(frozen=True, slots=True)
class Places:
    """Images, the files that their results go to, and what lies there besides.

    Parameters
    ----------
    pairs : tuple of (Path, Path)
    left_out : tuple of str
        One sentence for each reason why files are left alone, with their number.
    """

    pairs: tuple[tuple[Path, Path], ...]
    left_out: tuple[str, ...] = ()


def places_of(source: Path, target: str | Path, *, overwrite: bool = False, skip_existing: bool = False) -> Places:
    """Find the images of a file or folder, and the place of each result; nothing is made or written.

    Of a folder all that are named like images are taken, those of its folders too. Names that begin with a dot belong
    to systems, not to people.

    Parameters
    ----------
    source : Path
    target : str or Path
        A file, or a folder: one that is there, or a text that ends in a slash.
    overwrite, skip_existing : bool
        What is done about results that are there; where neither is asked for, they are an error.

    Raises
    ------
    ConfigurationError
        If source and target do not fit together, two images would be written to one file, or results are there.
    """
    if overwrite and skip_existing:
        raise ConfigurationError("--overwrite and --skip-existing were both given; results are replaced or left alone.")
    if not source.exists():
        raise ConfigurationError(f"{source} does not exist; expected an image or a folder of images.")
    place = Path(target)
    left_out: tuple[str, ...] = ()
    if source.is_dir():
        if place.is_file():
            raise ConfigurationError(f"{source} is a folder and {place} is a file; expected a folder for the results.")
        found, left_out = _images_in(source, place)
        pairs = [(path, place / path.relative_to(source).parent / _name_of_result(path)) for path in found]
        _check_each_its_own(pairs)
    elif place.is_dir() or str(target).endswith(("/", os.sep)):
        pairs = [(source, place / _name_of_result(source))]
    else:
        pairs = [(source, place)]
    for before, after in pairs:
        _check_container(after)
        check_target(after, before, overwrite=True)
    there = [after for _, after in pairs if after.exists()]
    if skip_existing and there:
        left_out += (f"{counted(len(there), 'image')} left out: the results are there.",)
        pairs = [(before, after) for before, after in pairs if not after.exists()]
    elif there and not overwrite:
        exist = f"{len(there)} of {len(pairs)} results exist, such as {there[0]}"
        raise ConfigurationError(
            f"{exist if source.is_dir() else f'{there[0]} exists'}; choose another place, or --skip-existing to leave "
            "what is there, or --overwrite to replace it."
        )
    return Places(tuple(pairs), left_out)


def _images_in(source: Path, results: Path) -> tuple[list[Path], tuple[str, ...]]:
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(source))]
    ours = set(_under(results, files)) if results.resolve() != source.resolve() else set()
    left_out = []
    if ours:
        left_out.append(f"{counted(len(ours), 'file')} under {results} left out: results go there.")
    given = [path for path in files if path not in ours]
    found = [path for path in given if path.suffix.lower() in IMAGE_SUFFIXES]
    left_out += said_of_others(path.name for path in given if path.suffix.lower() not in IMAGE_SUFFIXES)
    if not found:
        said = f"{source} holds no image; expected {', '.join(IMAGE_SUFFIXES)}."
        raise ConfigurationError(" ".join([said, *left_out]))
    return found, tuple(left_out)


def _check_each_its_own(pairs: list[tuple[Path, Path]]) -> None:
    sources: dict[Path, list[Path]] = {}
    for before, after in pairs:
        sources.setdefault(after, []).append(before)
    shared = {after: befores for after, befores in sources.items() if len(befores) > 1}
    if shared:
        named = "\n".join(f"  {after}: {', '.join(map(str, befores))}" for after, befores in shared.items())
        raise ConfigurationError(
            f"several images would be written to one file, for JPEG becomes PNG; rename or move all but one:\n{named}"
        )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _under(folder: Path, paths: list[Path]) -> Iterator[Path]:
    whole = folder.resolve()
    return (path for path in paths if whole in path.resolve().parents)


def _name_of_result(source: Path) -> str:
    suffix = source.suffix.lower()
    if suffix in JPEG_SUFFIXES:
        # JPEG would lose again what was just restored.
        return source.with_suffix(".png").name
    if suffix in CONTAINER_OF:
        return source.name
    with naming(source), source.open("rb") as file:
        return source.name + (".tif" if sniff(file.read(16)) == "tiff" else ".png")


def _check_container(after: Path) -> None:
    suffix = after.suffix.lower()
    if suffix in CONTAINER_OF:
        return
    if suffix in JPEG_SUFFIXES:
        raise ConfigurationError(f"{after} would lose as JPEG what was just restored; expected .png, .tif or .tiff.")
    folder = "" if suffix else f", or a folder: one that is there, or {after}/"
    raise ConfigurationError(f"{after} would be no image that is written; expected .tif, .tiff or .png{folder}.")
