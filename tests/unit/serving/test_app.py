"""The deployments' own part; what they run is tested without Ray."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from refocus.serving.app import Restorer
from refocus.serving.config import ServingConfig


def test_champions_are_looked_for_again_after_an_error_that_nobody_foresaw(caplog):
    looks = []

    class Following:
        def follow(self) -> None:
            looks.append(len(looks))
            if len(looks) == 1:
                raise KeyError("ETag")

    async def until_second_look() -> None:
        replica = object.__new__(Restorer.func_or_class)
        replica._config, replica._restorer = ServingConfig(poll_s=0.001), Following()
        replica._housekeeping = ThreadPoolExecutor(1)
        replica._follower = None
        replica._follow()
        async with asyncio.timeout(10):
            while len(looks) < 2:
                assert not replica._follower.done()
                await asyncio.sleep(0.001)
        replica._follower.cancel()

    asyncio.run(until_second_look())
    assert "ETag" in caplog.text
