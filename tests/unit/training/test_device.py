import time

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
