"""How busy the training device is and how much memory it holds."""

from __future__ import annotations

import os
import resource
import time

import torch


class DeviceMeter:
    """Utilisation and peak memory of this rank's device since the last `reading`.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[float] = []
        self._wall_s, self._busy_s = time.monotonic(), _processor_s()

    def sample(self) -> None:
        """Look at an accelerator once; a few times a minute is enough. Processors count by themselves."""
        if self._device.type != "cuda":
            return
        try:
            self._samples.append(torch.cuda.utilization(self._device) / 100)
        except Exception:  # noqa: BLE001 (the library's own errors derive from nothing else)
            # Without nvidia-ml-py, or where the driver does not tell (a slice of a GPU, WSL), the run's record has no
            # utilisation.
            return

    def reading(self) -> dict[str, float]:
        """Return ``device_utilisation`` (0 to 1, where known) and ``device_memory_gb``, and begin anew."""
        values = {}
        if self._device.type == "cuda":
            if self._samples:
                values["device_utilisation"] = sum(self._samples) / len(self._samples)
            values["device_memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            wall_s, busy_s = time.monotonic(), _processor_s()
            share = (busy_s - self._busy_s) / max(wall_s - self._wall_s, 1e-9)
            values["device_utilisation"] = share / torch.get_num_threads()
            values["device_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            self._wall_s, self._busy_s = wall_s, busy_s
        self._samples.clear()
        return values


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system
