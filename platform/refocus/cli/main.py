"""All commands, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refocus.cli import evaluation, images, models, runs, store
from refocus.cli.speaking import clear_errors, console

__all__ = ["app", "clear_errors", "console", "main"]

app = typer.Typer(
    help="Bring defocused microscopy images into focus from a single shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(images.restore)
app.command()(images.explain)
app.command()(images.focus)
app.command()(images.simulate)
app.command()(evaluation.evaluate)
app.add_typer(store.app, name="store")
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")

config_app = typer.Typer(help="Serve configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("check")
def config_check(
    files: Annotated[list[Path], typer.Argument(help="Serve configs to check.", exists=True, dir_okay=False)],
) -> None:
    """Check serve configs strictly: Serve itself accepts misspelt keys without a word."""
    from refocus.errors import ConfigurationError

    problems = [said for file in files for said in _problems_of(file)]
    if problems:
        raise ConfigurationError("\n  ".join(["these serve configs do not hold:", *problems]))
    console().print(f"{len(files)} serve config{'s' if len(files) > 1 else ''} checked, nothing to say.")


def _problems_of(file: Path) -> list[str]:
    import yaml

    from refocus.errors import in_one_line

    try:
        document = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"{file}: is no YAML: {in_one_line(error)}"]
    if document is None:
        return [f"{file}: is empty; expected a mapping with 'applications'."]
    from refocus.serving.config import check_serve_config

    return check_serve_config(document, name=file.name)


def main() -> None:
    """Run the command line."""
    with clear_errors():
        app()
