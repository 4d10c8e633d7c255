"""Sending a folder to the store, leaving alone what is there already."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refocus.errors import ConfigurationError
from refocus.io.store import ObjectStore, etag_of_file

_PARALLEL_REQUESTS = 8
# Hidden by their name only: without them a folder of chunks is no OME-Zarr 0.4.
_ZARR_METADATA = frozenset({".zgroup", ".zarray", ".zattrs", ".zmetadata"})


def upload(store: ObjectStore, source: Path, prefix: str) -> tuple[int, int]:
    """Send a file, or a folder with all below it, and return how many objects were sent and kept.

    An object whose ETag follows from the file's bytes is kept. Hidden files and folders are left out, Zarr's metadata
    excepted.

    Raises
    ------
    ConfigurationError
        If `source` holds no file, or `prefix` is in another bucket.
    """
    prefix = store.key_of(prefix)
    folder = prefix and prefix + "/"
    if source.is_file():
        files = {folder + source.name: source}
    else:
        visible = (path for path in sorted(source.rglob("*")) if not _is_hidden(path.relative_to(source)))
        files = {folder + path.relative_to(source).as_posix(): path for path in visible if path.is_file()}
    if not files:
        raise ConfigurationError(f"{source} holds no file to upload.")
    there = {entry.key: entry.etag.strip('"') for entry in store.list(folder)}

    def send(item: tuple[str, Path]) -> bool:
        key, path = item
        if there.get(key) == etag_of_file(path):
            return False
        store.put_file(key, path)
        return True

    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        sent = sum(pool.map(send, files.items()))
    return sent, len(files) - sent


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part not in _ZARR_METADATA for part in path.parts)
