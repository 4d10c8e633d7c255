"""One network for many requests at once: on GPUs, tiles of equal shape that wait together run together.

Nobody waits for company: the worker takes what is there, so a request alone runs at once, and under load batches
fill by themselves up to the pixel budget. On CPUs one tile fills the cores, and requests that share a batch are all
prepared and finished at the same moments, in which the network stands still: there they take turns.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from refocus.model.networks import Prediction
from refocus.model.restore import LoadedModel


class BatchingModel(LoadedModel):
    """A `LoadedModel` that many threads restore with; its device runs one batch at a time.

    Parameters
    ----------
    package, and as `LoadedModel`
    together : bool, optional
        Whether tiles of several requests share a batch; on GPUs where not given.
    """

    def __init__(self, *arguments: Any, together: bool | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._together = self.device.type != "cpu" if together is None else together
        self._waiting: deque[tuple[Tensor, Future[Prediction]]] = deque()
        self._lock = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._run, name=f"batch-{self.package.digest[:8]}", daemon=True)
        self._worker.start()

    def predict(self, batch: Tensor) -> Prediction:
        """Queue a batch [B, C, H, W] and wait for its part of the answer."""
        future: Future[Prediction] = Future()
        with self._lock:
            queued = not self._closed
            if queued:
                self._waiting.append((batch, future))
                self._lock.notify()
        # A request that began before its model was replaced finishes with it.
        return future.result() if queued else super().predict(batch)

    def close(self) -> None:
        """Finish what waits, then end the worker."""
        with self._lock:
            self._closed = True
            self._lock.notify()

    def _take(self) -> list[tuple[Tensor, Future[Prediction]]]:
        with self._lock:
            while not self._waiting and not self._closed:
                self._lock.wait()
            if not self._waiting:
                return []
            group, later = [self._waiting.popleft()], deque[tuple[Tensor, Future[Prediction]]]()
            if not self._together:
                return group
            shape = group[0][0].shape[1:]
            room = self.pixels_per_batch - _pixels(group[0][0])
            for entry in self._waiting:
                # Other shapes keep their place; equal ones move up.
                if entry[0].shape[1:] == shape and _pixels(entry[0]) <= room:
                    group.append(entry)
                    room -= _pixels(entry[0])
                else:
                    later.append(entry)
            self._waiting = later
            return group

    def _run(self) -> None:
        while group := self._take():
            try:
                joined = torch.cat([batch for batch, _ in group]) if len(group) > 1 else group[0][0]
                prediction = super().predict(joined)
                first = 0
                for batch, future in group:
                    last = first + len(batch)
                    future.set_result(Prediction(*(part[first:last] for part in prediction)))
                    first = last
            except BaseException as error:  # noqa: BLE001 (whoever waits must hear of it)
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)


def _pixels(batch: Tensor) -> int:
    return batch.shape[0] * batch.shape[2] * batch.shape[3]
