#!/usr/bin/env python
"""Ingest one z-stack that is larger than a worker may be, and print the most memory that the worker took.

    tests/benchmarks/ingest_memory.py
    tests/benchmarks/ingest_memory.py --gigabytes 1 --layout tiles

Writes a BigTIFF of many planes to a temporary folder, sends it to a SeaweedFS of its own, ingests it in a process of
its own as a Ray worker would (one unit, one task), and removes everything. Memory is what the kernel counts for that
process: resident at most. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from refocus.data.ingest import adopt_plan, ingest_unit, plan_ingest, seal
from refocus.data.manifest import Receipt
from refocus.data.sidecar import Rule
from refocus.io.local_store import LocalStore
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.evaluate import commit, machine

_LAYOUTS = {
    "contiguous": {},
    "strips": {"rowsperstrip": 64, "compression": "zlib", "compressionargs": {"level": 1}},
    "tiles": {"tile": (512, 512), "compression": "zlib", "compressionargs": {"level": 1}},
}
# The raw file, its copy in the store and the shards, which are about as large.
_DISK_SHARE = 3.5
_LIMIT_GB = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of pixels (default: 4)")
    parser.add_argument("--side", type=int, default=4096, help="of a plane, in pixels (default: 4096)")
    parser.add_argument("--layout", choices=sorted(_LAYOUTS), default="contiguous")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="with room for four times that"
    )
    options = parser.parse_args()
    planes = max(3, round(options.gigabytes * 1e9 / (2 * options.side**2)))
    free = shutil.disk_usage(options.folder).free
    if free < _DISK_SHARE * 1e9 * options.gigabytes:
        sys.exit(f"{options.folder} has {free / 1e9:.1f} GB free; {_DISK_SHARE * options.gigabytes:.0f} GB are needed.")
    with tempfile.TemporaryDirectory(prefix="refocus-memory-", dir=options.folder) as name:
        folder = Path(name)
        path = folder / "stack.tif"
        begun = time.monotonic()
        write_stack(path, planes, options.side, options.layout)
        size = path.stat().st_size
        print(f"{planes} planes of {options.side} x {options.side}, {options.layout}: {size / 1e9:.2f} GB on disk, "
              f"written in {time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
        store = LocalStore(folder / "store")
        settings = store.up()
        try:
            row = measure(settings, path)
        finally:
            store.down()
    row |= {"gigabytes_on_disk": round(size / 1e9, 2), "planes": planes, "side": options.side, "layout": options.layout}
    print(json.dumps({"benchmark": "ingest_memory", "machine": machine(), "commit": commit(), **row}))
    if row["peak_gb"] > _LIMIT_GB:
        sys.exit(f"peak memory {row['peak_gb']} GB is above {_LIMIT_GB} GB")


def write_stack(path: Path, planes: int, side: int, layout: str) -> None:
    """Write a specimen through focus, plane by plane; no plane is another's copy."""
    rng = np.random.default_rng(0)
    spots = (rng.random((side // 2, side // 2)) > 0.99).astype(np.float32)
    noise = rng.normal(400, 15, (side, side)).astype(np.float32)
    # Blurs between these are mixed: one filter a plane would take longer than the ingest.
    blurred = [np.kron(60000 * ndimage.gaussian_filter(spots, 0.8 + s), np.ones((2, 2), np.float32)) for s in range(6)]

    def each() -> Iterator[np.ndarray]:
        for z in range(planes):
            at = min(9.0 * abs(z / planes - 0.47), 4.999)
            share = np.float32(at % 1)
            seen = (1 - share) * blurred[int(at)] + share * blurred[int(at) + 1] + np.roll(noise, 997 * z)
            yield np.clip(seen, 0, 65535).astype(np.uint16)

    tifffile.imwrite(
        path, each(), shape=(planes, side, side), dtype=np.uint16, bigtiff=True, metadata={"axes": "ZYX"},
        **_LAYOUTS[layout],
    )  # fmt: skip


def measure(settings: StoreSettings, path: Path) -> dict[str, float]:
    store = ObjectStore(settings)
    begun = time.monotonic()
    store.put_file("raw/stack.tif", path)
    size = path.stat().st_size
    print(f"sent to the store in {time.monotonic() - begun:.0f} s", flush=True)
    path.unlink()
    answers = multiprocessing.get_context("spawn").Queue()
    worker = multiprocessing.get_context("spawn").Process(target=ingest, args=(settings, answers))
    worker.start()
    receipt, seconds, peak_gb = Receipt.model_validate_json((answer := answers.get())[0]), answer[1], answer[2]
    worker.join()
    (source,) = receipt.sources
    written = sum(shard.size_bytes for shard in receipt.shards)
    print(
        f"{source.tiles} tiles, in focus at plane {source.in_focus_plane:.1f}, {written / 1e9:.2f} GB of shards, "
        f"{seconds:.0f} s, {size / seconds / 1e6:.0f} MB/s of TIFF\npeak memory of the worker: {peak_gb:.2f} GB"
    )
    return {
        "peak_gb": round(peak_gb, 3), "seconds": round(seconds, 1), "tiles": source.tiles,
        "megabytes_per_s": round(size / seconds / 1e6, 1), "gigabytes_of_shards": round(written / 1e9, 2),
    }  # fmt: skip


def ingest(settings: StoreSettings, answers: multiprocessing.Queue[tuple[str, float, float]]) -> None:
    import ray.data  # noqa: F401 (a worker has it in memory)

    store = ObjectStore(settings)
    plan = adopt_plan(store, "large", "v1", plan_ingest(store, "raw/", fallback=Rule(z_step_um=0.5)))
    begun = time.monotonic()
    receipt = ingest_unit(store, "datasets/large/v1/", plan, plan.units[0])
    seconds = time.monotonic() - begun
    seal(store, "large", "v1", plan, [receipt])
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answers.put((receipt.model_dump_json(), seconds, peak_gb))


if __name__ == "__main__":
    main()
