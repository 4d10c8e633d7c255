#!/usr/bin/env python
"""Time ingest in MB/s of TIFF, beside its limits: the store, the decoder, and the same work without Ray.

    tests/benchmarks/ingest.py
    tests/benchmarks/ingest.py --stacks 4 --side 512 --compression zlib
    tests/benchmarks/ingest.py --profile

Makes focal series (nuclei-like texture, camera noise, uint16), sends them to a SeaweedFS of its own and reads them in
four ways: plain GETs of the same objects in `--cores` threads; the decoder alone in `--cores` processes, from memory,
every plane once; the whole ingest in one process; the whole ingest on Ray, its processes already running. The store
runs on the same cores and takes its share of all but the decoder's: the last column says how much. Processor time can
be compared where others use the machine, too. `--profile` says where the time of the one process goes. Ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import multiprocessing
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import tifffile
from scipy import ndimage

from refocus.data.dataset import version_prefix
from refocus.data.ingest import adopt_plan, ingest_unit, plan_ingest, run_units
from refocus.data.manifest import IngestPlan, Receipt
from refocus.data.sidecar import Rule
from refocus.io.local_store import LocalStore
from refocus.io.store import ObjectStore
from refocus.testing.cluster import LocalCluster
from refocus.training.evaluate import commit, machine

ANSWERS = Rule(modality="fluorescence", z_step_um=0.5, pixel_size_um=0.325, numerical_aperture=0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=8)
    parser.add_argument("--planes", type=int, default=21)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--compression", nargs="+", choices=("none", "zlib", "lzw"), default=["none", "zlib", "lzw"])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="refocus-ingest-") as folder:
        local = LocalStore(Path(folder) / "store")
        settings = local.up()
        try:
            store = ObjectStore(settings)
            for compression in options.compression:
                for number in range(options.stacks):
                    stack = focal_series(options.planes, options.side, seed=number)
                    store.put(f"raw/{compression}/stack{number}.tif", encoded(stack, compression))
            with LocalCluster(num_cpus=options.cores, environment=settings.environment()) as cluster:
                os.environ.update({k: v for k, v in cluster.environment.items() if k.startswith("RAY_")})
                ray.init(address=cluster.environment["RAY_ADDRESS"], log_to_driver=False)
                try:
                    for compression in options.compression:
                        rows += measured(store, local, compression, options)
                finally:
                    ray.shutdown()
        finally:
            local.down()
    print(json.dumps({"benchmark": "ingest", "machine": machine(), "commit": commit(), "rows": rows}))


def focal_series(planes: int, side: int, seed: int) -> np.ndarray:
    """One specimen through focus, uint16, shape (planes, side, side)."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.random((side, side), dtype=np.float32), 1.2)
    inside = ndimage.gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), 12) > 0.01
    specimen = np.where(inside, 400 + 9000 * np.clip((texture - 0.4) * 5, 0, None), 200).astype(np.float32)
    best = 0.4 * planes + 0.2 * planes * rng.random()
    out = np.empty((planes, side, side), np.uint16)
    for z in range(planes):
        light = ndimage.gaussian_filter(specimen, 0.5 * abs(z - best))
        out[z] = np.clip(light + np.sqrt(light) * rng.standard_normal((side, side), dtype=np.float32), 0, 65535)
    return out


def encoded(stack: np.ndarray, compression: str) -> bytes:
    sink = io.BytesIO()
    method = None if compression == "none" else compression
    tifffile.imwrite(sink, stack, compression=method, predictor=bool(method), metadata={"axes": "ZYX"})
    return sink.getvalue()


def measured(store: ObjectStore, local: LocalStore, compression: str, options: argparse.Namespace) -> list[dict]:
    prefix = f"raw/{compression}/"
    entries = list(store.list(prefix))
    megabytes = sum(entry.size_bytes for entry in entries) / 1e6
    pixels = options.stacks * options.planes * options.side**2 * 2 / 1e6
    print(f"\n{compression}: {len(entries)} stacks, {megabytes:.0f} MB of TIFF, {pixels:.0f} MB of pixels", flush=True)
    plan = plan_ingest(store, prefix, fallback=ANSWERS)
    rows = []

    def row(way: str, work: Callable[[], Any], busy: Callable[[Any], float] | None = None) -> None:
        wall, processor, stores = time.perf_counter(), time.process_time(), processor_s(local)
        answer = work()
        seconds, processor = time.perf_counter() - wall, time.process_time() - processor
        stores = processor_s(local) - stores
        if busy is not None:
            processor = busy(answer)
        said = f"{processor:8.2f} s of processor" if processor else " " * 23
        print(f"  {way:38} {megabytes / seconds:8.1f} MB/s {seconds:8.2f} s {said} {stores:6.2f} s of the store's")
        rows.append({"compression": compression, "way": way, "megabytes_per_s": round(megabytes / seconds, 1),
                     "seconds": round(seconds, 2), "processor_s": round(processor, 2),
                     "store_processor_s": round(stores, 2)})  # fmt: skip

    keys = [entry.key for entry in entries]
    with ThreadPoolExecutor(options.cores) as pool:
        row(f"limit: boto3 GETs, {options.cores} threads", lambda: [len(d) for d in pool.map(store.get, keys)])
    # Decoding starts no thread of its own: what Ray gives a task is one core.
    with multiprocessing.get_context("spawn").Pool(options.cores, initializer=hold, initargs=(store, keys)) as pool:
        pool.map(nothing, range(options.cores), chunksize=1)
        row(f"limit: decoder alone, {options.cores} processes", lambda: pool.map(decode, keys, chunksize=1), sum)
    row("refocus, one process without Ray", lambda: one_process(store, plan, compression, options.profile))
    on_ray(store, plan.model_copy(update={"units": plan.units[: options.cores]}), f"warm-{compression}")
    # Its tasks' processor time is theirs to know.
    row(f"refocus on Ray, {options.cores} tasks", lambda: on_ray(store, plan, f"ray-{compression}"), lambda _: 0.0)
    return rows


def processor_s(local: LocalStore) -> float:
    """Processor time that the store has used so far (Linux)."""
    fields = Path(f"/proc/{local.status().pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


_HELD: dict[str, bytes] = {}


def hold(store: ObjectStore, keys: list[str]) -> None:
    _HELD.update({key: store.get(key) for key in keys})


def nothing(_: int) -> None:
    time.sleep(0.5)


def decode(key: str) -> float:
    """Decode every plane of one stack, one after the other, and return the processor time in seconds."""
    begun = time.process_time()
    with tifffile.TiffFile(io.BytesIO(_HELD[key])) as file:
        for page in file.pages:
            page.asarray(maxworkers=1)
    return time.process_time() - begun


def one_process(store: ObjectStore, plan: IngestPlan, version: str, profile: bool) -> list[Receipt]:
    begun = adopt_plan(store, "one", version, plan)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    receipts = [ingest_unit(store, version_prefix("one", version), begun, unit) for unit in begun.units]
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)
    return receipts


def on_ray(store: ObjectStore, plan: IngestPlan, version: str) -> list[Receipt]:
    begun = adopt_plan(store, "ray", version, plan)
    return run_units(store, version_prefix("ray", version), begun)


if __name__ == "__main__":
    main()
