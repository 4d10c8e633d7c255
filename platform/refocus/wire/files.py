"""Results on disk: whole or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_whole(target: Path, data: bytes) -> None:
    """Write `data` beside `target` and move it there, so that nobody ever reads half a file."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
