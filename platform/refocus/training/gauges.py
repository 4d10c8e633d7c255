"""A run's numbers among Ray's metrics, for Prometheus: one gauge a name, labelled with run and rank."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

_MEANINGS = {
    "step": "Optimizer steps done",
    "loss": "Mean training loss since the last report",
    "samples_per_s": "Samples a second over all workers",
    "data_wait_share": "Share of the time in which workers waited for data",
    "gradient_norm": "Norm of the last gradient before clipping",
    "learning_rate": "Learning rate of the last step",
    "device_utilisation": "Share of the time in which this worker's device computed",
    "device_memory_gb": "Most memory that this worker held on its device, in GB",
    "checkpoint_s": "Seconds that training stood still for the last checkpoint",
    "validation_s": "Seconds that the last validation took",
    "validation_loss": "Loss on validation tiles",
    "validation_psnr_db": "PSNR on validation tiles in dB",
    "batches_left_out": "Batches without a finite gradient, left out",
}


class RunGauges:
    """Gauges ``refocus_training_NAME`` of one worker.

    Parameters
    ----------
    run : str
    rank : int
    """

    def __init__(self, run: str, rank: int) -> None:
        tags = {"run": run, "rank": str(rank)}
        self._gauges = {
            name: Gauge(f"refocus_training_{name}", description=meaning, tag_keys=tuple(tags))
            for name, meaning in _MEANINGS.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(tags)

    def set(self, values: Mapping[str, float]) -> None:
        """Set the gauges that `values` names."""
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name])
