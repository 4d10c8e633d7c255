#!/usr/bin/env python
"""What serving costs: the same network and codec behind Refocus, LitServe, BentoML, and no service at all.

    tests/benchmarks/serving/run.py
    tests/benchmarks/serving/run.py --services bare refocus --sizes 512 --seconds 5
    tests/benchmarks/serving/run.py --peer-python PEERS/bin/python     # where litserve and bentoml are installed

All run one after the other on this machine, each alone, with as many torch threads as the machine has cores. The bare
loop decodes, restores and encodes in one process, one image after the other: the limit. Prints a table, then one line
of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import torch

from refocus.io.local_store import LocalStore
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage
from refocus.model.networks import NetworkConfig
from refocus.model.restore import LoadedModel
from refocus.registry.catalog import Catalog
from refocus.testing.cluster import LocalCluster, free_ports
from refocus.testing.service import crown, serve_run, tiny_package
from refocus.wire.codec import decode, encode, from_array

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
SERVICES = ("bare", "refocus", "litserve", "bentoml")


@dataclass(frozen=True)
class Row:
    """One measurement; times in milliseconds."""

    service: str
    side_px: int
    concurrency: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", nargs="+", default=list(SERVICES), choices=SERVICES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 2048], help="sides in pixels")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with litserve and bentoml")
    parser.add_argument("--package", type=Path, help="folder of a model package; default: an untrained default network")
    options = parser.parse_args()
    rows: list[Row] = []
    first_answer_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = ModelPackage.load(options.package) if options.package else tiny_package(0, network=NetworkConfig())
        package.save(folder / "package")
        for service in options.services:
            if service == "bare":
                for side in options.sizes:
                    rows.append(bare(package, side, options.seconds))
                    print(rows[-1], file=sys.stderr, flush=True)
                continue
            started = time.monotonic()
            with running(service, package, folder, options.peer_python) as url:
                wait_until_answers(url)
                first_answer_s[service] = time.monotonic() - started
                for side in options.sizes:
                    for concurrency in options.concurrency:
                        rows.append(measure(service, url, side, concurrency, options.seconds))
                        print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(
        json.dumps(
            {
                "rows": [asdict(row) for row in rows],
                "first_answer_s": first_answer_s,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
                "load_average": os.getloadavg()[0],
                "commit": commit.stdout.strip(),
            }
        )
    )


def image_of(side: int) -> bytes:
    """A 16-bit TIFF of spots and noise."""
    generator = np.random.default_rng(side)
    return encode(from_array((generator.gamma(2.0, 400.0, (side, side)) + 100).clip(0, 65535).astype(np.uint16)))


def bare(package: ModelPackage, side: int, seconds: float) -> Row:
    """Decode, restore, encode, one after the other in this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, body = LoadedModel(package), image_of(side)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        image = decode(body)
        encode(type(image)(model.restore(image.planes, axes="ZYX").pixels))
        times.append(1e3 * (time.perf_counter() - start))
    return summary("bare", side, 1, times[1:], sum(times[1:]) / 1e3, 0)


def measure(service: str, url: str, side: int, concurrency: int, seconds: float) -> Row:
    """Ask from `concurrency` threads without pause."""
    body, times, failures, lock = image_of(side), list[float](), [0], threading.Lock()

    def ask(until: float, *, counted: bool) -> None:
        with httpx.Client(timeout=300, trust_env=False) as http:
            while True:
                start = time.perf_counter()
                response = http.post(url, content=body, headers={"Content-Type": "image/tiff"})
                spent = 1e3 * (time.perf_counter() - start)
                with lock:
                    if counted and response.status_code == 200 and len(response.content) > side * side * 2:
                        times.append(spent)
                    elif counted:
                        failures[0] += 1
                if time.perf_counter() > until:
                    return

    def all_at_once(duration_s: float, *, counted: bool) -> float:
        began = time.perf_counter()
        threads = [
            threading.Thread(target=ask, args=(began + duration_s,), kwargs={"counted": counted})
            for _ in range(concurrency)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    all_at_once(min(3.0, seconds / 4), counted=False)
    took_s = all_at_once(seconds, counted=True)
    return summary(service, side, concurrency, times, took_s, failures[0])


def summary(service: str, side: int, concurrency: int, times: list[float], took_s: float, failures: int) -> Row:
    if not times:
        return Row(service, side, concurrency, 0.0, float("nan"), float("nan"), failures)
    p99 = float(np.percentile(times, 99))
    return Row(service, side, concurrency, len(times) / took_s, statistics.median(times), p99, failures)


@contextlib.contextmanager
def running(service: str, package: ModelPackage, folder: Path, peer_python: str) -> Iterator[str]:
    """Start a service and yield where to post images."""
    if service == "refocus":
        local_store = LocalStore(folder / "store")
        settings = local_store.up()
        try:
            crown(Catalog(ObjectStore(settings)), package, why="benchmark")
            cores = os.cpu_count() or 1
            changes = {
                r"concurrency: 4": f"concurrency: 4\n      threads: {cores}",
                r"max_replicas: 8": "max_replicas: 1",
                r"store: auto": "store: required",
            }
            environment = settings.environment()
            with (
                LocalCluster(num_cpus=4, working_directory=REPOSITORY, environment=environment) as cluster,
                serve_run(cluster, REPOSITORY, folder, environment=environment, changes=changes) as url,
            ):
                yield f"{url}/v1/refocus"
        finally:
            local_store.down()
        return
    (port,) = free_ports(1)
    command = [peer_python, str(HERE / f"{service}_peer.py"), str(folder / "package"), str(port)]
    with (folder / f"{service}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")},
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}/refocus"
        except BaseException:
            print((folder / f"{service}.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_answers(url: str, timeout_s: float = 180.0) -> None:
    body, deadline = image_of(64), time.monotonic() + timeout_s
    said = "nothing"
    while time.monotonic() < deadline:
        try:
            response = httpx.post(
                url, content=body, timeout=60, headers={"Content-Type": "image/tiff"}, trust_env=False
            )
            if response.status_code == 200:
                return
            said = f"{response.status_code} {response.text[:200]}"
        except httpx.TransportError as error:
            said = str(error)
        time.sleep(0.2)
    raise SystemExit(f"{url} did not answer within {timeout_s:g} s: {said}")


def print_table(rows: list[Row]) -> None:
    limits = {row.side_px: row for row in rows if row.service == "bare"}
    names = f"{'service':<10}{'side px':>8}{'clients':>8}{'images/s':>10}{'of limit':>9}"
    print(f"{names}{'p50 ms':>10}{'p99 ms':>10}{'fail':>6}")
    for row in rows:
        limit = limits.get(row.side_px)
        share = f"{row.images_per_s / limit.images_per_s:.0%}" if limit else "-"
        print(
            f"{row.service:<10}{row.side_px:>8}{row.concurrency:>8}{row.images_per_s:>10.2f}{share:>9}"
            f"{row.p50_ms:>10.1f}{row.p99_ms:>10.1f}{row.failures:>6}"
        )


if __name__ == "__main__":
    main()
