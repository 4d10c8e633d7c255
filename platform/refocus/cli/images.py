"""``refocus restore``, ``explain``, ``focus`` and ``simulate``: commands on image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from refocus.cli.speaking import console
from refocus.optics.limits import APERTURE, PIXEL_SIZE_UM, WAVELENGTH_UM


def _between(lowest: float, highest: float, unit: str) -> Callable[[float | None], float | None]:
    """Check a number given; that it is one, too, which ranges of the command line let pass."""

    def checked(value: float | None) -> float | None:
        if value is not None and not lowest <= value <= highest:
            hint = (
                f"; {value:g} nm are {value / 1e3:g} um" if unit == " um" and lowest <= value / 1e3 <= highest else ""
            )
            raise typer.BadParameter(f"{value:g} came; expected {lowest:g} to {highest:g}{unit}{hint}.")
        return value

    return checked


_Aperture = Annotated[
    float | None,
    typer.Option(callback=_between(*APERTURE, ""), help="Numerical aperture; wins over files'."),
]
_PixelSize = Annotated[
    float | None, typer.Option(callback=_between(*PIXEL_SIZE_UM, " um"), help="Pixel size, likewise.")
]
_Wavelength = Annotated[
    float | None, typer.Option(callback=_between(*WAVELENGTH_UM, " um"), help="Of the light, likewise.")
]
_Model = Annotated[
    str | None,
    typer.Option(
        help="fluorescence, fluorescence_small, brightfield (bundled), or NAME, NAME@champion, NAME@DIGEST of a store."
    ),
]


def restore(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of images.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Where the result goes: a file, or a folder (new ones: NAME/).")
    ],
    url: Annotated[str | None, typer.Option(help="Of a server; default: restore in this process.")] = None,
    model: _Model = None,
    modality: Annotated[str | None, typer.Option(help="fluorescence, brightfield or phase_contrast.")] = None,
    uncertainty: Annotated[bool, typer.Option(help="Add the half width of the 90% interval as planes.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are there.")] = False,
    skip_existing: Annotated[bool, typer.Option(help="Go on after an interruption: leave results alone.")] = False,
    na: _Aperture = None,
    pixel_size_um: _PixelSize = None,
    wavelength_um: _Wavelength = None,
    blind: Annotated[bool, typer.Option(help="Ignore what files say of the optics.")] = False,
) -> None:
    """Bring images into focus: same format, size, type and metadata, with the model's digest added."""
    from refocus.errors import ConfigurationError
    from refocus.workflows.restore import Options, restore_files
    from refocus.zstack import MODALITIES

    known = next((each for each in MODALITIES if each == modality), None)
    if modality is not None and known is None:
        raise ConfigurationError(f"modality {modality!r} is not known; expected one of {', '.join(MODALITIES)}.")
    options = Options(
        url=url, model=model, modality=known, uncertainty=uncertainty, overwrite=overwrite,
        skip_existing=skip_existing, na=na, pixel_size_um=pixel_size_um, wavelength_um=wavelength_um, blind=blind,
    )  # fmt: skip
    restore_files(source, target, options, console())


def explain(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The PNG to write.")],
    model: _Model = None,
    plane: Annotated[int, typer.Option(help="Which of the file's planes, from 0.")] = 0,
    at: Annotated[
        tuple[int, int] | None, typer.Option(metavar="ROW COLUMN", help="The place; default: where spectra tell most.")
    ] = None,
    na: _Aperture = None,
    pixel_size_um: _PixelSize = None,
    wavelength_um: _Wavelength = None,
    blind: Annotated[bool, typer.Option(help="Ignore what the file says of the optics.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a picture that is there.")] = False,
) -> None:
    """Show what a restoration rests on: what told the blur, what undoing it gives, what the network made of that."""
    from refocus.workflows.explain import ExplainOptions, explain_file

    options = ExplainOptions(
        model=model, plane=plane, at=at, na=na, pixel_size_um=pixel_size_um, wavelength_um=wavelength_um, blind=blind,
        overwrite=overwrite,
    )  # fmt: skip
    explain_file(source, target, options, console())


def focus(
    stack: Annotated[Path, typer.Argument(help="A focal series: TIFF, OME-TIFF, ImageJ hyperstack.", exists=True)],
    measure: Annotated[str, typer.Option(help="Sharpness measure, a name of refocus.focus.measures.")] = "vollath4",
    channel: Annotated[int, typer.Option(help="Channel, from 0.")] = 0,
    time: Annotated[int, typer.Option(help="Time point, from 0.")] = 0,
    axes: Annotated[str | None, typer.Option(help="What the file's axes mean, such as ZYX.")] = None,
    z_step_um: Annotated[float | None, typer.Option(help="Spacing of planes, where the file does not say.")] = None,
    tile_px: Annotated[int, typer.Option(help="Side of the tiles from which tilt is found.")] = 128,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw the curve there.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a plot that is there.")] = False,
) -> None:
    """Print how sharp each plane of a focal series is, and which is in focus; draw it with --plot."""
    from refocus.focus.commands import report_focus
    from refocus.io.microscopy import open_image
    from refocus.wire.files import check_target, naming
    from refocus.zstack import Acquisition

    if plot is not None:
        check_target(plot, stack, overwrite=overwrite, suffixes=(".png",))
    with naming(stack), open_image(stack, axes=axes, answers=Acquisition(z_step_um=z_step_um)) as image:
        report_focus(
            (image.plane(z=z, c=channel, t=time) for z in range(image.size("Z"))),
            acquisition=image.acquisition,
            name=stack.name,
            measure=measure,
            tile_px=tile_px,
            plot=plot,
            console=console(),
        )


def simulate(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="OME-TIFF to write; its truth goes beside it.")],
    specimen: Annotated[
        str, typer.Option(help="nuclei, filaments, puncta, membranes, mosaic, tissue or stained_mosaic.")
    ] = "nuclei",
    planes: Annotated[int, typer.Option(help="Focal planes.")] = 41,
    z_step_um: Annotated[float, typer.Option(help="Spacing of planes.")] = 0.5,
    size_px: Annotated[int, typer.Option(help="Side of the square planes.")] = 512,
    tilt_deg: Annotated[float, typer.Option(help="Tilt of the specimen against the focal plane.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same series.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a series and its truth that are there.")] = False,
) -> None:
    """Write a simulated focal series with OME metadata, and its known in-focus truth as OUT.truth.ome.tif."""
    from refocus.workflows.simulate import write_simulation

    write_simulation(
        target, specimen=specimen, planes=planes, z_step_um=z_step_um, size_px=size_px, tilt_deg=tilt_deg, seed=seed,
        console=console(), overwrite=overwrite,
    )  # fmt: skip
