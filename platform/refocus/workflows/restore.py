"""``refocus restore``: files brought into focus, by a server or in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from refocus.errors import ConfigurationError, InputError, ModelUnfit, RefocusError, RequestRefused, UnsupportedImage
from refocus.serving.answers import encode_answer
from refocus.serving.config import ServingConfig
from refocus.serving.requests import RestoreRequest, optics_of
from refocus.serving.restorer import Restorer, catalog_of
from refocus.wire.codec import can_hold, decode, output_container
from refocus.wire.files import write_whole
from refocus.wire.image import Container, ImageLimits
from refocus.zstack import Modality

_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_CONTAINERS: dict[str, Container] = {".tif": "tiff", ".tiff": "tiff", ".png": "png"}
#: On a person's own machine its memory is the limit.
OWN_MACHINE = ImageLimits(max_body_bytes=2**40, max_pixels=2**40, max_pages=2**20, max_decoded_bytes=2**40)

#: What is wrong with one file and need not be with the next.
_OF_ONE_FILE = (InputError, RequestRefused, ModelUnfit)

RestoreFile = Callable[[Path, Path], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpticsOptions:
    """What a caller says of the optics.

    Parameters
    ----------
    na, pixel_size_um, wavelength_um : float or None
        Where they are said they win over what files say.
    blind : bool
        Ignore what files say of the optics.
    """

    na: float | None = None
    pixel_size_um: float | None = None
    wavelength_um: float | None = None
    blind: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """What is said, by the names of their parameters."""
        names = ("na", "pixel_size_um", "wavelength_um", "blind")
        return {name: value for name in names if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(OpticsOptions):
    """How files are restored.

    Parameters
    ----------
    url : str or None
        Of a server; None restores in this process, with the champion or the bundled weights.
    model : str or None
        ``NAME``, ``NAME@champion`` or ``NAME@DIGEST``.
    modality : str or None
    uncertainty : bool
        Append the half width of the 90% interval as further planes; needs a TIFF.
    overwrite : bool
    """

    url: str | None = None
    model: str | None = None
    modality: Modality | None = None
    uncertainty: bool = False
    overwrite: bool = False


def restore_files(source: Path, target: Path, options: Options, console: Console) -> None:
    """Restore a file, or every image of a folder; one bad file of a folder does not stop the rest.

    Raises
    ------
    ConfigurationError
        If source and target do not fit together, or two images of a folder would be written to one file.
    InputError
        If files could not be restored; each was named, the others are written.
    """
    pairs = list(_pairs(source, target, options))
    restore = _by_server(options) if options.url else _in_process(options)
    if not source.is_dir():
        digest = restore(*pairs[0])
        console.print(f"{pairs[0][1]} written (model {digest[:12]})")
        return
    failed = 0
    for number, (before, after) in enumerate(pairs, 1):
        try:
            after.parent.mkdir(parents=True, exist_ok=True)
            digest = restore(before, after)
            console.print(f"{number} of {len(pairs)}: {after} (model {digest[:12]})")
        except _OF_ONE_FILE as error:
            failed += 1
            console.print(f"{number} of {len(pairs)}: {before} left out: {error}", markup=False)
    if failed:
        raise InputError(f"{failed} of {len(pairs)} files could not be restored; they are named above.")


def _pairs(source: Path, target: Path, options: Options) -> Iterator[tuple[Path, Path]]:
    if not source.exists():
        raise ConfigurationError(f"{source} does not exist; expected an image or a folder of images.")
    if source.is_dir():
        if target.is_file():
            raise ConfigurationError(f"{source} is a folder and {target} is a file; expected a folder for the results.")
        found = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise ConfigurationError(f"{source} holds no image; expected {', '.join(_SUFFIXES)}.")
        pairs = [(path, _named(target / path.relative_to(source))) for path in found]
        _check_each_its_own(pairs)
    else:
        pairs = [(source, _named(target / source.name) if target.is_dir() else target)]
    for before, after in pairs:
        if after.exists() and (not options.overwrite or after.samefile(before)):
            raise ConfigurationError(f"{after} exists; choose another place, or --overwrite (never the input itself).")
        if after.suffix.lower() not in _CONTAINERS:
            raise ConfigurationError(f"{after} would be no image that is written; expected .tif, .tiff or .png.")
        yield before, after


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


def _named(path: Path) -> Path:
    # JPEG would lose again what was just restored.
    return path.with_suffix(".png") if path.suffix.lower() in (".jpg", ".jpeg") else path


def _by_server(options: Options) -> RestoreFile:
    from refocus.client import Client

    assert options.url is not None
    client = Client(options.url)
    return lambda before, after: client.refocus_file(
        before,
        after,
        model=options.model,
        modality=options.modality,
        uncertainty=options.uncertainty,
        **options.told,
    )


def _in_process(options: Options) -> RestoreFile:
    config = ServingConfig(limits=OWN_MACHINE)
    restorer = Restorer(config, catalog_of(config))

    def restore(before: Path, after: Path) -> str:
        try:
            image = decode(before.read_bytes(), OWN_MACHINE)
            optics = optics_of(image, **options.told)
            if options.pixel_size_um is not None:
                image = replace(image, pixel_size_um=options.pixel_size_um)
            container = output_container(image, _CONTAINERS[after.suffix.lower()])
            pages = len(image.planes) * (2 if options.uncertainty else 1)
            if not can_hold(container, image, pages=pages):
                raise UnsupportedImage(
                    f"a PNG holds one plane of 8 or 16 bit, unsigned, and the result has {pages} of "
                    f"{image.planes.dtype}. Name a .tif."
                )
            answer = restorer.restore(
                RestoreRequest(
                    image.planes,
                    model=options.model,
                    modality=options.modality,
                    uncertainty=options.uncertainty,
                    optics=optics,
                )
            )
            data = encode_answer(image, answer, container)
        except RefocusError as error:
            raise type(error)(f"{before}: {error}") from error
        write_whole(after, data)
        return answer.digest

    return restore
