"""An object read like a file: only the ranges that are asked for travel."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TYPE_CHECKING

from refocus.errors import StoreError
from refocus.io.store import ObjectStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Directories of a TIFF are small and may lie megabytes apart, each between the pixels of two planes; or all together.
_BLOCK_BYTES = 8 * 1024
_LARGEST_AHEAD_BLOCKS = 32
_BLOCKS_KEPT = 4096
# Headers and directories are small; what is longer is pixels, read once and best read alone.
_LARGEST_SHARED_READ_BYTES = 64 * 1024


class RangedObject(io.RawIOBase):
    """A seekable, read-only file over one object.

    Small reads (headers, directories) come from cached blocks, which are fetched further ahead the longer the reading
    goes straight on; a longer one is one request for just its bytes. Some 32 MiB at most are held.
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
        # The header is read on from: mostly the first directory and its text follow.
        self._last_asked, self._ahead = -1, _LARGEST_AHEAD_BLOCKS // 2
        self.name = store.uri(key)
        self.bytes_fetched = 0
        self.requests = 0

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

    def readinto(self, buffer: Buffer) -> int:
        # Arrays come as they are, of any shape and item size; a file knows only bytes.
        target = memoryview(buffer).cast("B")
        data = self._range(self._position, min(self._position + len(target), self._size))
        target[: len(data)] = data
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
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing and stop - start > _LARGEST_SHARED_READ_BYTES:
            return self._fetch(start, stop)
        if missing:
            self._fetch_blocks(missing[0], missing[-1])
        self._last_asked = last
        for number in range(first, last + 1):
            self._blocks.move_to_end(number)
        while len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        joined = b"".join(self._blocks[number] for number in range(first, last + 1))
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def _fetch_blocks(self, first: int, last: int) -> None:
        goes_straight_on = 0 <= first - self._last_asked <= 1
        self._ahead = min(2 * self._ahead, _LARGEST_AHEAD_BLOCKS) if goes_straight_on else 1
        stop = max(last + 1, first + self._ahead) * _BLOCK_BYTES
        start = first * _BLOCK_BYTES
        data = self._fetch(start, min(stop, self._size))
        for number, offset in enumerate(range(0, len(data), _BLOCK_BYTES), start=first):
            self._blocks[number] = data[offset : offset + _BLOCK_BYTES]

    def _fetch(self, start: int, stop: int) -> bytes:
        data = self._store.get_range(self._key, start, stop, etag=self._etag)
        self.bytes_fetched += len(data)
        self.requests += 1
        if len(data) != stop - start:
            raise StoreError(
                f"{self.name} gave {len(data)} bytes where {stop - start} were asked for, from byte {start}; "
                f"it should have {self._size} in all. Was its size read from this very object?"
            )
        return data
