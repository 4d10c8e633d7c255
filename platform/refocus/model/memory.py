"""How much is worked on together: enough to keep a device busy, and no more than its memory has room for."""

from __future__ import annotations

import math

import torch

#: Of a whole restoration, for each pixel of a tile and colour: 1.8 GiB for 9.5 million grey pixels on an H200.
_BYTES_PER_PIXEL = 200
#: What a tile and its halos may take of an accelerator's memory: it is not alone there.
_SHARE_OF_MEMORY = 0.25
#: Sides of tiles. Halos, 400 px on each side of a widely blurred one, cost the less the larger tiles are, and an
#: accelerator takes as long to start a small tile as a large one; a processor has caches to stay in.
_SMALLEST_TILE_PX, _LARGEST_TILE_PX, _WIDE_HALO_PX = 1024, 4096, 400
#: Pixels that run together on a processor, and at most on an accelerator.
_BATCH_PIXELS, _ACCELERATOR_BATCH_PIXELS = 2_000_000, 20_000_000


def most_at_once(numbers: int, device: torch.device) -> int:
    """How many things of so many numbers each are worked on together; at least one.

    They fill what a processor's caches hold, or a small part of an accelerator's memory: a 256th of it in numbers of
    4 bytes, of which whoever asks holds several times as many on the way.
    """
    memory = _bytes_of(device)
    room = 2**18 if device.type == "cpu" else 2**24 if memory is None else memory // 1024
    return max(1, room // numbers)


def tile_px_for(device: torch.device, channels: int) -> int:
    """Side of the tiles that images are restored by: 1024 px on a processor, up to 4096 px where memory is plenty."""
    memory = _bytes_of(device)
    if memory is None:
        return _SMALLEST_TILE_PX
    side = math.isqrt(_pixels_in(memory, channels)) - 2 * _WIDE_HALO_PX
    return min(max(side // _SMALLEST_TILE_PX * _SMALLEST_TILE_PX, _SMALLEST_TILE_PX), _LARGEST_TILE_PX)


def batch_pixels_for(device: torch.device, channels: int) -> int:
    """Pixels of small images or tiles that are restored together, where one alone has not as many."""
    memory = _bytes_of(device)
    return _BATCH_PIXELS if memory is None else min(_pixels_in(memory, channels), _ACCELERATOR_BATCH_PIXELS)


def _pixels_in(memory: int, channels: int) -> int:
    return int(_SHARE_OF_MEMORY * memory / (_BYTES_PER_PIXEL * channels))


def _bytes_of(device: torch.device) -> int | None:
    """Memory of a CUDA device; None where nobody says."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
