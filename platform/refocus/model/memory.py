"""How much is worked on together: enough to keep a device busy, and no more than its memory has room for."""

from __future__ import annotations

import torch


def most_at_once(numbers: int, device: torch.device) -> int:
    """How many things of so many numbers each are worked on together; at least one.

    They fill what a processor's caches hold, or a small part of an accelerator's memory: a 256th of it in numbers of
    4 bytes, of which whoever asks holds several times as many on the way.
    """
    return max(1, _room(device) // numbers)


def _room(device: torch.device) -> int:
    if device.type == "cpu":
        return 2**18
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory) // 1024
    return 2**24
