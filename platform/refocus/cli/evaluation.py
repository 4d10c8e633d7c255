"""``refocus evaluate``: how good a model is, on a person's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refocus.cli.speaking import console


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model's name, or the folder of a package.")],
    source: Annotated[
        Path,
        typer.Argument(help="A folder of sharp images, or one focal series (TIFF, OME-Zarr).", exists=True),
    ],
    stacks: Annotated[Path | None, typer.Option(help="A focal series beside the images, or a folder of them.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="Another model in the same tables, such as a deep_r package; repeatable.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="all, or of images that ingest has split: validation, calibration or train.")
    ] = "all",
    scope: Annotated[
        str, typer.Option(help="standard; quick: few depths; wide: every image, one exposure, small fields.")
    ] = "standard",
    most: Annotated[int, typer.Option(help="Sharp images at most, evenly over the folder.", min=1)] = 24,
    classical: Annotated[bool, typer.Option(help="With Wiener and Richardson-Lucy: minutes.")] = False,
    objective: Annotated[
        str | None,
        typer.Option(help="NA,um a pixel,um of light to see sharp images through; default 0.75,0.325,0.525."),
    ] = None,
    tell_optics: Annotated[bool, typer.Option(help="Tell models the optics, as OME files do.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("evaluation"),
) -> None:
    """Measure a model by depth, and write evaluation.html (figures, tables, examples) and evaluation.json.

    Sharp images are blurred through known optics, with noise, and compared with themselves; planes of a focal series
    are compared with its sharpest one. Keep what the model was trained on out of it (--split).
    """
    from typing import get_args

    from refocus.data.splits import SPLITS
    from refocus.errors import ConfigurationError
    from refocus.io.zarr import is_zarr
    from refocus.workflows.evaluate import EvaluationOptions, Scope, evaluate_and_write

    chosen = next((known for known in SPLITS if known == split), None)
    scenes = next((known for known in get_args(Scope) if known == scope), None)
    if scenes is None or (chosen is None and split != "all"):
        raise ConfigurationError(
            f"split {split!r}, scope {scope!r}: expected one of all, {', '.join(SPLITS)}; {', '.join(get_args(Scope))}."
        )
    is_series = source.is_file() or is_zarr(source)
    if is_series and stacks is not None:
        raise ConfigurationError(
            f"{source} is a focal series already; with --stacks a folder of sharp images is meant."
        )
    options = EvaluationOptions(
        models=(model, *(beside or ())),
        out=out,
        images=None if is_series else source,
        stacks=source if is_series else stacks,
        split=chosen,
        scope=scenes,
        classical=classical,
        most=most,
        objective=None if objective is None else _numbers(objective),
        tell_optics=tell_optics,
    )
    evaluate_and_write(options, console())


def _numbers(text: str) -> list[float]:
    from refocus.errors import ConfigurationError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"{text!r} was given; expected numbers with commas between, such as 0.45,0.5."
        ) from None
