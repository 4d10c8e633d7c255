"""The command line: ``refocus COMMAND``. Each command imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refocus.errors import RefocusError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Bring defocused microscopy images into focus from a single shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
store_app = typer.Typer(help="The object store on this machine, for when no S3 is at hand.", no_args_is_help=True)
app.add_typer(store_app, name="store")


def main() -> None:
    """Run the command line."""
    with clear_errors():
        app()


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors raised on purpose into one message and its exit status; REFOCUS_TRACEBACK=1 shows all."""
    try:
        yield
    except RefocusError as error:
        if os.environ.get("REFOCUS_TRACEBACK") == "1":
            raise
        sys.stdout.flush()
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_status) from None


def console() -> Console:
    """Return where commands and jobs speak to a person."""
    from rich.console import Console

    # A job's output goes to a log that has no width of its own.
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=not sys.stdout.isatty())


@app.command("focus")
def focus(
    stack: Annotated[Path, typer.Argument(help="A focal series: TIFF, OME-TIFF, ImageJ hyperstack.", exists=True)],
    measure: Annotated[str, typer.Option(help="Sharpness measure, a name of refocus.focus.measures.")] = "vollath4",
    channel: Annotated[int, typer.Option(help="Channel, from 0.")] = 0,
    time: Annotated[int, typer.Option(help="Time point, from 0.")] = 0,
    axes: Annotated[str | None, typer.Option(help="What the file's axes mean, such as ZYX.")] = None,
    z_step_um: Annotated[float | None, typer.Option(help="Spacing of planes, where the file does not say.")] = None,
    tile_px: Annotated[int, typer.Option(help="Side of the tiles from which tilt is found.")] = 128,
    plot: Annotated[Path | None, typer.Option(help="Where the PNG goes; default: STACK.focus.png here.")] = None,
) -> None:
    """Print and plot how sharp each plane of a focal series is, and which is in focus."""
    from refocus.focus.commands import report_focus
    from refocus.io.microscopy import open_image
    from refocus.zstack import Acquisition

    with open_image(stack, axes=axes, answers=Acquisition(z_step_um=z_step_um)) as image:
        report_focus(
            (image.plane(z=z, c=channel, t=time) for z in range(image.size("Z"))),
            acquisition=image.acquisition,
            name=stack.name,
            measure=measure,
            tile_px=tile_px,
            plot=plot or Path(f"{stack.name}.focus.png"),
            console=console(),
        )


@store_app.command("up")
def store_up(
    folder: Annotated[Path | None, typer.Option(help="Data folder; default: under REFOCUS_HOME.")] = None,
) -> None:
    """Start the store, or find it running, and print how to reach it."""
    from refocus.io.local_store import LocalStore

    settings = LocalStore(folder).up()
    console().print(f"The store answers at {settings.endpoint_url}, bucket {settings.bucket}.")


@store_app.command("down")
def store_down(folder: Annotated[Path | None, typer.Option(help="Data folder given to 'up'.")] = None) -> None:
    """Stop the store; what it holds stays."""
    from refocus.io.local_store import LocalStore

    console().print("The store is stopped." if LocalStore(folder).down() else "The store was not running.")


@store_app.command("status")
def store_status(folder: Annotated[Path | None, typer.Option(help="Data folder given to 'up'.")] = None) -> None:
    """Say whether the store runs, and where."""
    from refocus.io.local_store import LocalStore

    console().print(str(LocalStore(folder).status()))


@store_app.command("put")
def store_put(
    source: Annotated[Path, typer.Argument(help="File or folder.", exists=True)],
    prefix: Annotated[str, typer.Argument(help="Where it goes, such as raw/plate7.")],
) -> None:
    """Upload a file or a folder; objects that are there with the same bytes are left alone."""
    from refocus.io.settings import StoreSettings
    from refocus.io.store import ObjectStore
    from refocus.io.upload import upload

    store = ObjectStore(StoreSettings.from_environment())
    sent, kept = upload(store, source, prefix)
    console().print(f"{sent} objects sent to {store.uri(prefix)}, {kept} were there already.")


if __name__ == "__main__":
    main()
