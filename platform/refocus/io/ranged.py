"""An object read like a file: only the ranges that are asked for travel."""

from __future__ import annotations

import io
from collections import OrderedDict

from refocus.io.store import ObjectStore

_BLOCK_BYTES = 256 * 1024
_BLOCKS_KEPT = 32
# Headers and directories are small and lie together; what is longer is pixels, read once and best read alone.
_LARGEST_SHARED_READ_BYTES = 64 * 1024


class RangedObject(io.RawIOBase):
    """A seekable, read-only file over one object.

    Small reads (headers, directories) come from cached blocks; a longer one is one request for just its bytes.
    Every request carries the ETag, so an object that is replaced meanwhile raises `ObjectChanged` instead of
    giving half of each.

    Parameters
    ----------
    store : ObjectStore
    key : str
    size_bytes : int
    etag : str
    """

    def __init__(self, store: ObjectStore, key: str, *, size_bytes: int, etag: str) -> None:
        self._store = store
        self._key = key
        self._size = size_bytes
        self._etag = etag
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.name = store.uri(key)
        self.bytes_fetched = 0

    @classmethod
    def open(cls, store: ObjectStore, key: str) -> RangedObject:
        """Open an object as it is now."""
        info = store.head(key)
        return cls(store, key, size_bytes=info.size_bytes, etag=info.etag)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._range(self._position, min(self._position + len(buffer), self._size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        data = self._range(self._position, stop)
        self._position += len(data)
        return data

    def _range(self, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        cached = all(number in self._blocks for number in range(first, last + 1))
        if stop - start > _LARGEST_SHARED_READ_BYTES and not cached:
            return self._fetch(start, stop)
        joined = b"".join(self._block(number) for number in range(first, last + 1))
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
        else:
            start = number * _BLOCK_BYTES
            self._blocks[number] = self._fetch(start, min(start + _BLOCK_BYTES, self._size))
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _fetch(self, start: int, stop: int) -> bytes:
        data = self._store.get_range(self._key, start, stop, etag=self._etag)
        self.bytes_fetched += len(data)
        return data
