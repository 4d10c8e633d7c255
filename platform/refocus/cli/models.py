"""``refocus models``: versions, champions and their history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from refocus.cli.speaking import console

if TYPE_CHECKING:
    from refocus.registry.catalog import Catalog

app = typer.Typer(help="Model versions, and the aliases that name them.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="Name of the model, such as fluorescence.")]
Reference = Annotated[str, typer.Argument(help="champion, challenger, or the beginning of a digest.")]


@app.command("list")
def list_models() -> None:
    """List models, versions and which of them the aliases name; the bundled ones need no store."""
    from rich.table import Table

    from refocus.errors import ConfigurationError, ModelMissing
    from refocus.model.checkpoint import ModelPackage, bundled_names

    table = Table("model", "version", "alias", "created", "by", "run", "MB")
    for model in bundled_names():
        package = ModelPackage.bundled(model)
        megabytes = sum(len(data) for data in package.files().values()) / 1e6
        table.add_row(model, package.digest[:12], "bundled", "", "", "", f"{megabytes:.1f}")
    try:
        catalog = _catalog()
    except ConfigurationError as error:
        console().print(table)
        console().print(f"Bundled models alone: {error}")
        return
    for model in catalog.models():
        named: dict[str, str] = {}
        for alias in ("champion", "challenger"):
            try:
                digest = catalog.alias(model, alias)[0].digest
            except ModelMissing:
                continue
            named[digest] = " ".join(filter(None, [named.get(digest), alias]))
        for version in catalog.versions(model):
            table.add_row(
                model, version.digest[:12], named.get(version.digest, ""), f"{version.created:%Y-%m-%d %H:%M}",
                version.created_by, version.run or "-", f"{version.size_bytes / 1e6:.1f}",
            )  # fmt: skip
    console().print(table)


@app.command()
def show(model: Model, version: Reference = "champion") -> None:
    """Show a version: its record, its card and the events that moved its aliases."""
    catalog, out = _catalog(model), console()
    digest = catalog.resolve(model, version)
    record = catalog.version(model, digest)
    out.print_json(record.model_dump_json())
    out.print_json(data=dict(catalog.load(model, digest).card))
    for event in catalog.events(model):
        moved = f"{(event.from_digest or 'nothing')[:12]} -> {event.to_digest[:12]}"
        forced = ", forced" if event.forced else ""
        out.print(
            f"{event.when:%Y-%m-%d %H:%M} {event.alias}: {event.kind} {moved} by {event.who}{forced}: {event.why}"
        )


@app.command()
def diff(model: Model, first: Reference = "champion", second: Reference = "challenger") -> None:
    """Compare two versions: what they are made of, and every number both were measured with."""
    from rich.table import Table

    from refocus.model.evaluation import MORE_IS_BETTER

    catalog = _catalog(model)
    packages = [catalog.load(model, catalog.resolve(model, reference)) for reference in (first, second)]
    table = Table("", *(package.digest[:12] for package in packages))
    configs = [package.config.model_dump(mode="json") for package in packages]
    for key in configs[0]:
        if configs[0][key] != configs[1].get(key):
            table.add_row(key, str(configs[0][key]), str(configs[1].get(key)))
    for key in ("recipe", "run", "dataset", "step", "commit"):
        table.add_row(key, *(str(package.card.get(key, "-")) for package in packages))
    reports = [catalog.report(package) for package in packages]
    for metric in MORE_IS_BETTER:
        values = [None if report is None else report.mean(metric) for report in reports]
        table.add_row(f"mean {metric}", *("-" if value is None else f"{value:.4g}" for value in values))
    console().print(table)


@app.command()
def promote(
    model: Model,
    version: Reference,
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
    policy: Annotated[str, typer.Option(help="default, quickstart, or a YAML file.")] = "default",
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    force: Annotated[bool, typer.Option(help="Although the gate refuses.")] = False,
) -> None:
    """Move an alias to a published version, if the gate agrees."""
    from refocus.registry.gates import GatePolicy
    from refocus.registry.promotion import promote as promote_package

    catalog = _catalog(model)
    package = catalog.load(model, catalog.resolve(model, version))
    promotion = promote_package(
        catalog, package, why=reason, model=model, policy=GatePolicy.load(policy), alias=_alias(alias), force=force
    )
    console().print(f"{model} {promotion.version.digest[:12]} is {alias} now.")


@app.command()
def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
    to: Annotated[str | None, typer.Option(help="Version; default: the one before.")] = None,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
) -> None:
    """Move an alias back: one write, no gate."""
    from refocus.registry.promotion import rollback as roll_back

    moved = roll_back(_catalog(model), model, why=reason, to=to, alias=_alias(alias))
    console().print(f"{alias} of {model} is {moved.digest[:12]} again.")


@app.command()
def verify(model: Annotated[str | None, typer.Argument(help="Name of the model; default: all.")] = None) -> None:
    """Read every version and check it against its digest."""
    from refocus.errors import ModelCorrupt

    catalog = _catalog(model)
    names = [model] if model else catalog.models()
    problems = {f"{name} {digest[:12]}": said for name in names for digest, said in catalog.verify(name).items()}
    if problems:
        raise ModelCorrupt("\n  ".join(["these versions are not sound:", *(f"{k}: {v}" for k, v in problems.items())]))
    console().print(f"{sum(len(catalog.versions(name)) for name in names)} versions checked, all sound.")


@app.command()
def gc(
    model: Model,
    keep_events: Annotated[int, typer.Option(min=0, help="Versions that the last so many events name stay.")] = 20,
    dry_run: Annotated[bool, typer.Option(help="Say what would go, and delete nothing.")] = False,
) -> None:
    """Delete versions of a day or more that neither an alias nor the last events name."""
    removed = 0
    for record in _catalog(model).collect(model, keep_events=keep_events, dry_run=dry_run):
        removed += 1
        console().print(f"{'would delete' if dry_run else 'deleted'} {record.digest[:12]} of {record.created:%Y-%m-%d}")
    console().print(f"{removed} versions{' would be' if dry_run else ''} deleted.")


def _alias(name: str) -> Literal["champion", "challenger"]:
    from refocus.errors import ConfigurationError

    if name not in ("champion", "challenger"):
        raise ConfigurationError(f"alias {name!r} is not known; expected champion or challenger.")
    return "champion" if name == "champion" else "challenger"


def _catalog(model: str | None = None) -> Catalog:
    """Open the registry, in which there must be `model`."""
    from refocus.io.settings import StoreSettings
    from refocus.io.store import ObjectStore
    from refocus.registry.catalog import Catalog

    catalog = Catalog(ObjectStore(StoreSettings.from_environment()))
    if model is not None:
        catalog.check_model(model)
    return catalog
