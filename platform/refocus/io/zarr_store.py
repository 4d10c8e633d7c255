"""The object store as the zarr library wants it: keys below a prefix, read only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype

from refocus.errors import ObjectChanged, ObjectMissing
from refocus.io.store import ObjectInfo, ObjectStore
from refocus.io.zarr import etag_of_folder


class ZarrObjects(Store):
    """Objects below a prefix as one Zarr store.

    Retries, time-outs and errors are those of `ObjectStore`; requests run side by side in threads. What there is, is
    listed once, when this is made: every request then carries the ETag that its object had, so that one which is
    replaced or removed meanwhile raises `ObjectChanged` instead of giving half of each image.

    Parameters
    ----------
    store : ObjectStore
    prefix : str

    Attributes
    ----------
    etag : str
        Of all objects together, as `refocus.io.zarr.etag_of_folder` gives it.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        super().__init__(read_only=True)
        self._store = store
        self._prefix = prefix.removeprefix(store.uri()).strip("/") + "/"
        self._objects = {entry.key: entry for entry in store.list(self._prefix)}
        self.etag = etag_of_folder(self._objects.values())

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
        entry = self._objects.get(self._prefix + key)
        if entry is None:
            # A chunk that was never written holds the fill value: not an error to zarr.
            return None
        data = await asyncio.to_thread(self._get, entry, byte_range)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return self._prefix + key in self._objects

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("this store is read only")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("this store is read only")

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._objects:
            if key.startswith(self._prefix + prefix):
                yield key.removeprefix(self._prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.strip("/") + "/" if prefix.strip("/") else ""
        seen: set[str] = set()
        async for key in self.list_prefix(folder):
            child = key.removeprefix(folder).split("/", 1)[0]
            if child not in seen:
                seen.add(child)
                yield child

    def _get(self, entry: ObjectInfo, byte_range: ByteRequest | None) -> bytes:
        size = entry.size_bytes
        match byte_range:
            case RangeByteRequest(start=start, end=end):
                start, stop = start, min(end, size)
            case OffsetByteRequest(offset=offset):
                start, stop = offset, size
            case SuffixByteRequest(suffix=suffix):
                start, stop = max(0, size - suffix), size
            case _:
                start, stop = 0, size
        try:
            return self._store.get_range(entry.key, start, stop, etag=entry.etag)
        except ObjectMissing as error:
            raise ObjectChanged(f"{self._store.uri(entry.key)} was removed while its image was being read.") from error
