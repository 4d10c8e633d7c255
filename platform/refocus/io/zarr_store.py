"""The object store as the zarr library wants it: keys below a prefix, read only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype

from refocus.errors import ObjectMissing
from refocus.io.store import ObjectStore


class ZarrObjects(Store):
    """Objects below a prefix as one Zarr store.

    Retries, time-outs and errors are those of `ObjectStore`; requests run side by side in threads.

    Parameters
    ----------
    store : ObjectStore
    prefix : str
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        super().__init__(read_only=True)
        self._store = store
        self._prefix = prefix.removeprefix(store.uri()).strip("/") + "/"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZarrObjects)
            and other._prefix == self._prefix
            and other._store.settings == self._store.settings
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self._store.uri(self._prefix)

    __repr__ = __str__

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            data = await asyncio.to_thread(self._get, self._prefix + key, byte_range)
        except ObjectMissing:
            # A chunk that was never written holds the fill value: not an error to zarr.
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._store.exists, self._prefix + key)

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("this store is read only")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("this store is read only")

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for entry in await asyncio.to_thread(lambda: [*self._store.list(self._prefix + prefix)]):
            yield entry.key.removeprefix(self._prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.strip("/") + "/" if prefix.strip("/") else ""
        seen: set[str] = set()
        async for key in self.list_prefix(folder):
            child = key.removeprefix(folder).split("/", 1)[0]
            if child not in seen:
                seen.add(child)
                yield child

    def _get(self, key: str, byte_range: ByteRequest | None) -> bytes:
        match byte_range:
            case RangeByteRequest(start=start, end=end):
                return self._store.get_range(key, start, end)
            case OffsetByteRequest(offset=offset):
                return self._store.get_range(key, offset, self._store.head(key).size_bytes)
            case SuffixByteRequest(suffix=suffix):
                size = self._store.head(key).size_bytes
                return self._store.get_range(key, max(0, size - suffix), size)
            case _:
                return self._store.get(key)
