"""How much is worked on together: enough to keep a device busy, and no more than its memory has room for."""

from __future__ import annotations

import torch


def most_at_once(numbers: int, device: torch.device) -> int:
    """How many things of so many numbers each are worked on together; at least one.

    They fill what a processor's caches hold, or a small part of an accelerator's memory.
    """
    return max(1, (2**18 if device.type == "cpu" else 2**24) // numbers)
