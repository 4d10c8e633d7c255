from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from refocus.model.memory import most_at_once


def test_larger_accelerators_take_more_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    assert most_at_once(2**20, torch.device("cuda")) == 80
    assert most_at_once(2**20, torch.device("mps")) == 16
    assert most_at_once(2**20, torch.device("cpu")) == 1
