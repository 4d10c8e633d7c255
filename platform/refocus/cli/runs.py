"""``refocus runs``: training runs, read back from the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refocus.cli.speaking import console

if TYPE_CHECKING:
    from refocus.io.store import ObjectStore

_COLUMNS = (
    ("step", "step"),
    ("pass", "epoch"),
    ("loss", "loss"),
    ("samples/s", "samples_per_s"),
    ("waiting", "data_wait_share"),
    ("gradient", "gradient_norm"),
    ("device", "device_utilisation"),
    ("GB", "device_memory_gb"),
    ("checkpoint, s", "checkpoint_s"),
    ("PSNR, dB", "validation_psnr_db"),
    ("SSIM", "validation_ssim"),
)

app = typer.Typer(help="Training runs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the run.")]


@app.command("list")
def list_runs() -> None:
    """List runs with their recipe, progress and best validation so far."""
    from rich.table import Table

    from refocus.training.runs import read_progress, read_run, run_names

    store = _store()
    table = Table("run", "recipe", "dataset", "started", "step", "PSNR (input), dB")
    for name in sorted(run_names(store)):
        record, history = read_run(store, name), read_progress(store, name)
        best = max((entry for entry in history), key=lambda e: e.get("validation_psnr_db", float("-inf")), default={})
        measured = (
            f"{best['validation_psnr_db']:.2f} ({best['validation_psnr_input_db']:.2f})"
            if "validation_psnr_db" in best
            else "-"
        )
        step = f"{history[-1]['step']}/{record.config.steps}" if history else f"0/{record.config.steps}"
        dataset = "/".join(record.dataset.split("/")[-2:])
        table.add_row(name, record.recipe, dataset, f"{record.created:%Y-%m-%d %H:%M}", step, measured)
    console().print(table)


@app.command()
def show(name: Name) -> None:
    """Show a run: what it is, its history and its checkpoints."""
    from rich.table import Table

    from refocus.training.runs import read_attempts, read_progress, read_run, run_prefix, whole_checkpoints

    store = _store()
    record, out = read_run(store, name), console()
    out.print(f"{record.name}: recipe {record.recipe} on {record.dataset}, commit {record.commit or 'unknown'}")
    for attempt in read_attempts(store, name):
        out.print(f"started {attempt.started:%Y-%m-%d %H:%M:%S}: {attempt.workers} workers from step {attempt.step}")
    history = read_progress(store, name)
    table = Table(*(heading for heading, _ in _COLUMNS))
    for entry in history:
        table.add_row(*(f"{entry[key]:.4g}" if key in entry else "-" for _, key in _COLUMNS))
    out.print(table)
    environment = f"S3_ENDPOINT={store.settings.endpoint_url} " if store.settings.endpoint_url else ""
    out.print(f"curves and images: {environment}tensorboard --logdir {store.uri(run_prefix(name))}tensorboard")
    for checkpoint in whole_checkpoints(store, name):
        out.print(f"checkpoint {store.uri(checkpoint.key)}")


@app.command()
def plot(
    name: Name,
    target: Annotated[Path | None, typer.Argument(help="PNG to write; default: NAME.png here.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a plot that is there.")] = False,
) -> None:
    """Plot a run's loss and validation over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from refocus.errors import RunMissing
    from refocus.training.runs import read_progress, read_run
    from refocus.wire.files import check_target, whole_file

    target = target or Path(f"{name}.png")
    check_target(target, overwrite=overwrite, suffixes=(".png",))
    store = _store()
    read_run(store, name)
    history = read_progress(store, name)
    if not history:
        raise RunMissing(f"run {name!r} has not reported yet; its first report comes with its first checkpoint.")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = [entry["step"] for entry in history]
    left.plot(steps, [entry["loss"] for entry in history], label="training")
    left.plot(steps, [entry.get("validation_loss", float("nan")) for entry in history], label="validation")
    left.set(xlabel="step", ylabel="loss", title=name)
    right.plot(steps, [entry.get("validation_psnr_db", float("nan")) for entry in history], label="restored")
    right.plot(steps, [entry.get("validation_psnr_input_db", float("nan")) for entry in history], "--", label="input")
    right.set(xlabel="step", ylabel="validation PSNR (dB)")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.3)
    with whole_file(target) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    plt.close(figure)
    console().print(f"{target} written.")


def _store() -> ObjectStore:
    from refocus.io.settings import StoreSettings
    from refocus.io.store import ObjectStore

    return ObjectStore(StoreSettings.from_environment())
