"""``refocus restore``: files brought into focus, by a server or in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from refocus.errors import InputError, ModelUnfit, RequestRefused, UnsupportedImage
from refocus.serving.answers import encode_answer
from refocus.serving.config import ServingConfig
from refocus.serving.requests import RestoreRequest, optics_of
from refocus.serving.restorer import Restorer, catalog_of
from refocus.wire.codec import CONTAINER_OF, can_hold, decode, output_container
from refocus.wire.files import naming, write_whole
from refocus.wire.image import OWN_MACHINE
from refocus.workflows.places import places_of
from refocus.zstack import Modality

#: What is wrong with one file and need not be with the next.
_OF_ONE_FILE = (InputError, RequestRefused, ModelUnfit)

#: Where a model is chosen for colour unasked: what else to ask for.
_INSTEAD = {"brightfield": "fluorescence", "fluorescence": "brightfield"}

RestoreFile = Callable[[Path, Path], "Restored"]


@dataclass(frozen=True, slots=True)
class Restored:
    """What is told of a result.

    Parameters
    ----------
    digest : str
        Of the model.
    model : str
        Its name; empty where a server tells the digest alone.
    out_of_range_share : float
        Of all pixels.
    blanks : str
        What was taken for padding, overlays, hot and dead pixels, and left as it was; empty where nothing was.
    instead : str
        The modality to ask for where the model of another one was chosen unasked; empty where there is no choice.
    """

    digest: str
    model: str = ""
    out_of_range_share: float = 0.0
    blanks: str = ""
    instead: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        said = " ".join(filter(None, ["model", self.model, self.digest[:12]]))
        if self.instead:
            said += f"; --modality {self.instead} to change"
        if self.blanks:
            said += f"; left as it was, as no specimen: {self.blanks}"
        if self.out_of_range_share > 0:
            share = max(self.out_of_range_share, 0.001)
            said += f"; {share:.1%} of it out of range: further out of focus than the model was trained for"
        return said


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
    overwrite, skip_existing : bool
        What is done about results that are there; see `places_of`.
    """

    url: str | None = None
    model: str | None = None
    modality: Modality | None = None
    uncertainty: bool = False
    overwrite: bool = False
    skip_existing: bool = False


def restore_files(source: Path, target: str | Path, options: Options, console: Console) -> None:
    """Restore a file, or every image of a folder; one bad file of a folder does not stop the rest.

    What is restored and where results go is told in `refocus.workflows.places`.

    Raises
    ------
    ConfigurationError
        If source and target do not fit together, or two images of a folder would be written to one file.
    InputError
        If files could not be restored; each was named, the others are written.
    """
    places = places_of(source, target, overwrite=options.overwrite, skip_existing=options.skip_existing)
    for said in places.left_out:
        console.print(said, markup=False)
    pairs = places.pairs
    if not pairs:
        return
    restore = _by_server(options) if options.url else _in_process(options)
    if not source.is_dir():
        done = restore(*pairs[0])
        console.print(f"{pairs[0][1]} written ({done})", markup=False)
        return
    failed = 0
    for number, (before, after) in enumerate(pairs, 1):
        try:
            done = restore(before, after)
            console.print(f"{number} of {len(pairs)}: {after} ({done})", markup=False)
        except _OF_ONE_FILE as error:
            failed += 1
            reason = str(error).removeprefix(f"{before}: ")
            console.print(f"{number} of {len(pairs)}: {before} left out: {reason}", markup=False)
    if failed:
        raise InputError(f"{failed} of {len(pairs)} files could not be restored; they are named above.")


def _by_server(options: Options) -> RestoreFile:
    from refocus.client import Client

    assert options.url is not None
    client = Client(options.url)

    def restore(before: Path, after: Path) -> Restored:
        said = client.refocus_file(
            before,
            after,
            model=options.model,
            modality=options.modality,
            uncertainty=options.uncertainty,
            **options.told,
        )
        return Restored(said.digest, said.model, said.out_of_range_share, said.blanks)

    return restore


def _in_process(options: Options) -> RestoreFile:
    config = ServingConfig(limits=OWN_MACHINE)
    restorer = Restorer(config, catalog_of(config))

    def restore(before: Path, after: Path) -> Restored:
        with naming(before):
            image = decode(before.read_bytes(), OWN_MACHINE)
            optics = optics_of(image, **options.told)
            if options.pixel_size_um is not None:
                image = replace(image, pixel_size_um=options.pixel_size_um)
            container = output_container(image, CONTAINER_OF[after.suffix.lower()])
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
        write_whole(after, data)
        chosen = image.is_color and options.model is None and options.modality is None
        instead = _INSTEAD.get(answer.model, "") if chosen else ""
        return Restored(answer.digest, answer.model, answer.out_of_range_share, answer.blanks, instead)

    return restore
