"""``refocus store``: the object store of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refocus.cli.speaking import console

app = typer.Typer(help="The object store on this machine, for when no S3 is at hand.", no_args_is_help=True)
Folder = Annotated[Path | None, typer.Option(help="Data folder; default: under REFOCUS_HOME.")]


@app.command()
def up(folder: Folder = None) -> None:
    """Start the store, or find it running, and print how to reach it."""
    from refocus.io.local_store import LocalStore

    settings = LocalStore(folder).up()
    console().print(f"The store answers at {settings.endpoint_url}, bucket {settings.bucket}.")


@app.command()
def down(folder: Folder = None) -> None:
    """Stop the store; what it holds stays."""
    from refocus.io.local_store import LocalStore

    console().print("The store is stopped." if LocalStore(folder).down() else "The store was not running.")


@app.command()
def status(folder: Folder = None) -> None:
    """Say whether the store runs, and where."""
    from refocus.io.local_store import LocalStore

    console().print(str(LocalStore(folder).status()))


@app.command()
def put(
    source: Annotated[Path, typer.Argument(help="File or folder.", exists=True)],
    prefix: Annotated[str, typer.Argument(help="Where it goes, such as raw/plate7.")],
) -> None:
    """Upload a file or a folder; objects that are there with the same bytes are left alone."""
    from refocus.io.settings import StoreSettings
    from refocus.io.store import ObjectStore
    from refocus.io.upload import upload

    target = ObjectStore(StoreSettings.from_environment())
    sent, kept = upload(target, source, prefix)
    console().print(f"{sent} objects sent to {target.uri(target.key_of(prefix))}, {kept} were there already.")
