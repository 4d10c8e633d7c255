"""``jobs/train.py``, once its recipe is known."""

from __future__ import annotations

from rich.console import Console

from refocus.errors import ConfigurationError
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.trainer import PATIENCE_FOR_RESOURCES_S, FinishedRun, Workers, connect
from refocus.training.trainer import train as run_training


def train(
    config: TrainingConfig,
    *,
    dataset: str,
    run: str,
    workers: str | None,
    resume: bool,
    console: Console,
    wait: float | None = None,
) -> FinishedRun:
    """Train on the cluster that this process belongs to, and say what came of it."""
    if wait is not None and not wait >= 0:
        raise ConfigurationError(f"--wait {wait:g} was given; expected a number of seconds, 0 or more, such as 900.")
    store = ObjectStore(StoreSettings.from_environment())
    store.check_bucket()
    connect()
    group = Workers.parse(workers)
    console.print(
        f"Run {run}: recipe {config.name}, {config.steps} steps of {config.batch_size} samples, "
        f"{group.minimum if group.minimum == group.maximum else f'{group.minimum} to {group.maximum}'} "
        f"{'GPU' if group.use_gpu else 'CPU'} workers"
    )
    finished = run_training(
        store,
        config,
        dataset=dataset,
        run=run,
        workers=group,
        resume=resume,
        patience_for_resources_s=PATIENCE_FOR_RESOURCES_S if wait is None else wait,
    )
    measured = finished.best.seal.metrics
    console.print(
        f"Run {run} is done after {finished.steps} steps; best checkpoint at step {finished.best.seal.step}: "
        f"PSNR {measured.get('validation_psnr_input_db', float('nan')):.2f} -> "
        f"{measured.get('validation_psnr_db', float('nan')):.2f} dB on validation tiles"
    )
    console.print(f"Promote it with: jobs/promote.py --run {run}")
    return finished
