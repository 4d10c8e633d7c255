import time

import pytest
import torch

from refocus.training.device import DeviceMeter


def test_a_processor_that_computes_is_busy_and_one_that_sleeps_is_not() -> None:
    meter = DeviceMeter(torch.device("cpu"))
    time.sleep(0.3)
    asleep = meter.reading()
    matrix = torch.rand(700, 700)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        matrix @ matrix
    awake = meter.reading()
    # Other tests share the processors, so only the order is certain.
    assert 0 <= asleep["device_utilisation"] < awake["device_utilisation"]
    assert awake["device_memory_gb"] > 0.05  # torch alone holds more


def test_an_accelerator_that_does_not_say_how_busy_it_is_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        """As pynvml has it: what a slice of a GPU answers."""

    def not_supported(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", not_supported)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_000_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    meter = DeviceMeter(torch.device("cuda"))
    meter.sample()
    assert meter.reading() == {"device_memory_gb": 2.0}
