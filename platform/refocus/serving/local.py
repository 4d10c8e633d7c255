"""A backend in this process: what the service is without Ray, for tests and as the measure of its cost."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from refocus.serving.requests import RestoreAnswer, RestoreRequest, ServiceState
from refocus.serving.restorer import Restorer


class LocalBackend:
    """Runs a `Restorer` in threads of this process.

    Parameters
    ----------
    restorer : Restorer
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        self._pool = ThreadPoolExecutor(restorer.config.concurrency, thread_name_prefix="restore")

    async def restore(self, request: RestoreRequest) -> RestoreAnswer:
        """Restore planes in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._restorer.restore, request)

    async def state(self) -> ServiceState:
        """Say what serves."""
        return self._restorer.state()
