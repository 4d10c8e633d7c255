"""Where in its passes over the data a run is: an interrupted pass goes on, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed
from torch import Tensor

from refocus.data.batches import TileBatch


class PassPosition:
    """The pass over the data that a run is in, and which tiles it has had of it.

    A pass shows every tile once, in the order in which blocks arrive at the workers. Which tiles it still owes is
    therefore said by name and not by a count, and holds for any number of workers after an interruption. How a tile
    looks follows from ``(seed, pass, index)``.

    Attributes
    ----------
    number : int
        Passes finished.
    had : Tensor, int64, shape (N,)
        Indices of the tiles that all ranks together have had of this pass, as of the last `gather`; kept on rank 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self.had = torch.empty(0, dtype=torch.int64)
        self._new: list[Tensor] = []

    def add(self, batch: TileBatch) -> None:
        """Note the tiles of a batch that this rank has trained on."""
        self._new.append(batch.index.cpu())

    def gather(self, *, rank: int, world_size: int, device: torch.device) -> None:
        """Bring what the ranks have had together on rank 0; a barrier where there are several."""
        new = torch.cat(self._new) if self._new else self.had.new_empty(0)
        self._new.clear()
        if world_size > 1:
            # Ranks take steps together, so they have had equally many.
            parts = [torch.empty_like(new, device=device) for _ in range(world_size)]
            torch.distributed.all_gather(parts, new.to(device))
            new = torch.cat(parts).cpu()
        if rank == 0:
            self.had = torch.cat([self.had, new])

    def finish(self) -> None:
        """Begin the next pass."""
        self.number += 1
        self.had = self.had.new_empty(0)
        self._new.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; call `gather` before."""
        return {"number": self.number, "had": self.had}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the position of a checkpoint."""
        self.number, self.had = int(state["number"]), state["had"]
        self._new.clear()


def without(rows: pa.Table, had: npt.NDArray[np.int64]) -> pa.Table:
    """Return the rows of a shard whose tiles are not among those that were had."""
    return rows.filter(pa.array(~np.isin(rows["index"].to_numpy(), had)))
