#!/usr/bin/env python
"""What serving costs: the same network and codec behind Refocus, LitServe, BentoML, and no service at all.

    tests/benchmarks/serving/run.py
    tests/benchmarks/serving/run.py --services bare refocus --sizes 512 --seconds 5
    tests/benchmarks/serving/run.py --peer-python PEERS/bin/python     # where litserve and bentoml are installed
    tests/benchmarks/serving/run.py --services bare refocus switched --switches RAY_SERVE_THROUGHPUT_OPTIMIZED=1
    tests/benchmarks/serving/run.py --memory default                   # Refocus alone keeps its pages of memory

All are up at once and asked in turns, a few seconds each and several rounds, so that whatever else the machine does
falls on all of them alike; one that is not asked waits. Each has as many torch threads as the machine has cores. The
bare loop decodes, restores and encodes in one process, one image after the other: the limit. All of them run with the
settings of malloc that restorers on CPUs have, which are worth more than what is compared here; ``--memory default``
leaves the others as they come. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
from collections.abc import Callable, Iterator, Mapping
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
from refocus.serving.app import MEMORY_ON_CPUS
from refocus.testing.cluster import LocalCluster, free_ports
from refocus.testing.service import crown, serve_run, tiny_package
from refocus.wire.codec import decode, encode, from_array

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
SERVICES = ("bare", "refocus", "litserve", "bentoml")
SWITCHED = "switched"
#: With these each ingress replica listens itself, from Ray's port 30000 on, and Serve's proxy is not there.
DIRECT = {"RAY_SERVE_ENABLE_DIRECT_INGRESS", "RAY_SERVE_THROUGHPUT_OPTIMIZED"}
DIRECT_URL = "http://127.0.0.1:30000"


@dataclass(frozen=True)
class Row:
    """One service at one size and concurrency, over all rounds; times in milliseconds.

    `of_limit` is the median over rounds of its throughput divided by that of the bare loop in the same round.
    """

    service: str
    side_px: int
    concurrency: int
    images_per_s: float
    of_limit: float
    p50_ms: float
    p99_ms: float
    failures: int


@dataclass(frozen=True)
class Turn:
    """One service's turn in one round."""

    times_ms: list[float]
    took_s: float
    failures: int = 0

    @property
    def images_per_s(self) -> float:
        return len(self.times_ms) / self.took_s


#: Restores one side's image from so many clients for so many seconds.
Ask = Callable[[int, int, float], Turn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", nargs="+", default=list(SERVICES), choices=(*SERVICES, SWITCHED))
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 2048], help="sides in pixels")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--switches", nargs="*", default=[], metavar="NAME=VALUE", help="environment of Ray in the service 'switched'"
    )
    parser.add_argument(
        "--memory", choices=("kept", "default"), default="kept", help="malloc's settings of what is not Refocus"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with litserve and bentoml")
    parser.add_argument("--package", type=Path, help="folder of a model package; default: an untrained default network")
    options = parser.parse_args()
    if options.memory == "kept" and not MEMORY_ON_CPUS.items() <= os.environ.items():
        # Read when a process starts, so this one starts again; its children inherit them.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MEMORY_ON_CPUS})
    rows: list[Row] = []
    first_answer_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        package = ModelPackage.load(options.package) if options.package else tiny_package(0, network=NetworkConfig())
        package.save(folder / "package")
        asks: dict[str, Ask] = {"bare": bare(package)}
        for service in (each for each in options.services if each != "bare"):
            started = time.monotonic()
            url = stack.enter_context(running(service, package, folder, options))
            wait_until_answers(url)
            first_answer_s[service] = time.monotonic() - started
            asks[service] = functools.partial(over_http, url)
        for side in options.sizes:
            for ask in asks.values():
                ask(side, 2, 0.0)
            for concurrency in options.concurrency:
                rows += compared(asks, side, concurrency, options.seconds, options.rounds)
    print_table(rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(
        json.dumps(
            {
                "rows": [asdict(row) for row in rows],
                "first_answer_s": first_answer_s,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
                "memory": options.memory,
                "load_average": os.getloadavg()[0],
                "commit": commit.stdout.strip(),
            }
        )
    )


def compared(asks: dict[str, Ask], side: int, concurrency: int, seconds: float, rounds: int) -> list[Row]:
    """Ask all in turns."""
    turns: dict[str, list[Turn]] = {service: [] for service in asks}
    for _ in range(rounds):
        for service, ask in asks.items():
            turns[service].append(ask(side, concurrency, seconds))
    rows = []
    for service, taken in turns.items():
        shares = [t.images_per_s / limit.images_per_s for t, limit in zip(taken, turns["bare"], strict=True)]
        times = [duration for turn in taken for duration in turn.times_ms] or [float("nan")]
        rows.append(
            Row(
                service,
                side,
                concurrency,
                images_per_s=sum(len(turn.times_ms) for turn in taken) / sum(turn.took_s for turn in taken),
                of_limit=statistics.median(shares),
                p50_ms=statistics.median(times),
                p99_ms=float(np.percentile(times, 99)),
                failures=sum(turn.failures for turn in taken),
            )
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def image_of(side: int) -> bytes:
    """A 16-bit TIFF of spots and noise."""
    generator = np.random.default_rng(side)
    return encode(from_array((generator.gamma(2.0, 400.0, (side, side)) + 100).clip(0, 65535).astype(np.uint16)))


def bare(package: ModelPackage) -> Ask:
    """Decode, restore, encode, one after the other in this process, whatever the number of clients."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = LoadedModel(package)

    def ask(side: int, _: int, seconds: float) -> Turn:
        body, times = image_of(side), list[float]()
        began = time.perf_counter()
        while not times or time.perf_counter() < began + seconds:
            start = time.perf_counter()
            image = decode(body)
            encode(type(image)(model.restore(image.planes, axes="ZYX").pixels))
            times.append(1e3 * (time.perf_counter() - start))
        return Turn(times, time.perf_counter() - began)

    return ask


def over_http(url: str, side: int, concurrency: int, seconds: float) -> Turn:
    """Ask from `concurrency` threads without pause."""
    body, times, failures, lock = image_of(side), list[float](), [0], threading.Lock()
    began = time.perf_counter()

    def ask() -> None:
        with httpx.Client(timeout=300, trust_env=False) as http:
            while True:
                start = time.perf_counter()
                response = http.post(url, content=body, headers={"Content-Type": "image/tiff"})
                spent = 1e3 * (time.perf_counter() - start)
                with lock:
                    if response.status_code == 200 and len(response.content) > side * side * 2:
                        times.append(spent)
                    else:
                        failures[0] += 1
                if time.perf_counter() > began + seconds:
                    return

    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Turn(times, time.perf_counter() - began, failures[0])


def running(
    service: str, package: ModelPackage, folder: Path, options: argparse.Namespace
) -> contextlib.AbstractContextManager[str]:
    """Return what starts a service and yields where to post images."""
    if service not in ("refocus", SWITCHED):
        return peer(service, folder, options.peer_python)
    switches = dict(each.split("=", 1) for each in options.switches) if service == SWITCHED else {}
    return on_ray(package, folder / service, switches)


@contextlib.contextmanager
def on_ray(package: ModelPackage, folder: Path, switches: Mapping[str, str]) -> Iterator[str]:
    """Run this service with the package as its champion, one restorer, and yield where to post images."""
    folder.mkdir()
    local_store = LocalStore(folder / "store")
    settings = local_store.up()
    try:
        crown(Catalog(ObjectStore(settings)), package, why="benchmark")
        changes = {
            r"concurrency: 4": f"concurrency: 4\n      threads: {os.cpu_count() or 1}",
            r"max_replicas: 8": "max_replicas: 1",
            r"store: auto": "store: required",
        }
        # Ray runs workers at nice 15, which would leave them what the other services here do not want.
        environment = {**settings.environment(), "RAY_worker_niceness": "0", **switches}
        with (
            LocalCluster(num_cpus=4, working_directory=REPOSITORY, environment=environment) as cluster,
            serve_run(cluster, REPOSITORY, folder, environment=environment, changes=changes) as url,
        ):
            yield f"{DIRECT_URL if DIRECT & switches.keys() else url}/v1/refocus"
    finally:
        local_store.down()


@contextlib.contextmanager
def peer(service: str, folder: Path, peer_python: str) -> Iterator[str]:
    """Run another framework's service and yield where to post images."""
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
    names = f"{'service':<10}{'side px':>8}{'clients':>8}{'images/s':>10}{'of limit':>9}"
    print(f"{names}{'p50 ms':>10}{'p99 ms':>10}{'fail':>6}")
    for row in rows:
        print(
            f"{row.service:<10}{row.side_px:>8}{row.concurrency:>8}{row.images_per_s:>10.2f}{row.of_limit:>9.0%}"
            f"{row.p50_ms:>10.1f}{row.p99_ms:>10.1f}{row.failures:>6}"
        )


if __name__ == "__main__":
    main()
