#!/usr/bin/env python
"""Memory over thousands of requests, and replicas that come and go with the load.

    tests/benchmarks/serving/endurance.py                                # 2000 requests, then 1, 12 and 1 clients
    tests/benchmarks/serving/endurance.py --requests 500 --phase-s 15
    tests/benchmarks/serving/endurance.py --plot docs/images/autoscaling.png

A small untrained network and small images: what is looked for is a leak, and whether replicas follow, not speed.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np

from refocus.client import Client
from refocus.io.local_store import LocalStore
from refocus.io.store import ObjectStore
from refocus.registry.catalog import Catalog
from refocus.testing.cluster import LocalCluster
from refocus.testing.service import crown, replica_pids, serve_run, tiny_package

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOYMENTS = ("Ingress", "Restorer")
CHANGES = {
    r"store: auto\b": "store: required",
    r"max_replicas: 8": "max_replicas: 3",
    r"(name: Restorer[\s\S]*?upscale_delay_s:) 5": r"\1 3",
    r"(name: Restorer[\s\S]*?downscale_delay_s:) 120": r"\1 10",
}


@dataclass(frozen=True)
class Moment:
    """What was seen at one time of the load profile; `ready` restorers have loaded their models and take requests."""

    at_s: float
    clients: int
    restorers: int
    ready: int
    answers: int


class Clients:
    """So many threads as asked for, each asking without pause."""

    def __init__(self, url: str, image: np.ndarray) -> None:
        self.answers = 0
        self.failures = 0
        self._url, self._image = url, image
        self._lock = threading.Lock()
        self._threads: list[tuple[threading.Thread, threading.Event]] = []

    def set(self, number: int) -> None:
        while len(self._threads) > number:
            thread, stop = self._threads.pop()
            stop.set()
            thread.join()
        while len(self._threads) < number:
            stop = threading.Event()
            thread = threading.Thread(target=self._ask, args=(stop,))
            self._threads.append((thread, stop))
            thread.start()

    def _ask(self, stop: threading.Event) -> None:
        with Client(self._url, retries=20) as client:
            while not stop.is_set():
                try:
                    client.refocus(self._image)
                    failed = 0
                except Exception:  # noqa: BLE001 (every failure counts)
                    failed = 1
                with self._lock:
                    self.answers += 1 - failed
                    self.failures += failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--phase-s", type=float, default=30.0, help="of each phase of the load profile")
    parser.add_argument("--plot", type=Path, help="where to draw the load profile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as (url, cluster, first_answer_s):
        memory = memory_over(url, cluster, options.requests)
        profile, failures = follow_load(url, cluster, options.phase_s)
    for deployment, (first_mb, last_mb, slope) in memory.items():
        print(f"{deployment:<10}{first_mb:>8.1f} MB at the start{last_mb:>8.1f} MB at the end{slope:>8.2f} MB per 1000")
    most = max(moment.restorers for moment in profile)
    loaded = next(moment.at_s for moment in profile if moment.clients > 1)
    scaled_s = {
        "started": next((round(m.at_s - loaded, 1) for m in profile if m.restorers > 1), None),
        "ready": next((round(m.at_s - loaded, 1) for m in profile if m.ready > 1), None),
    }
    print(f"first answer {first_answer_s:.1f} s after serve run")
    print(f"restorers: 1, {most}, {profile[-1].restorers}; failures: {failures}")
    print("the second, after the load began: a process after {started} s, ready after {ready} s".format(**scaled_s))
    if options.plot:
        draw(profile, options.plot)
    print(
        json.dumps(
            {
                "first_answer_s": first_answer_s,
                "second_restorer_s": scaled_s,
                "memory_mb": {k: dict(zip(("first", "last", "per_1000"), v, strict=True)) for k, v in memory.items()},
                "profile": [asdict(moment) for moment in profile],
                "failures": failures,
                "load_average": os.getloadavg()[0],
            }
        )
    )


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[str, LocalCluster, float]]:
    """Run the service on a store of its own; also says how long ``serve run`` took to its first answer."""
    local_store = LocalStore(folder / "store")
    settings = local_store.up()
    try:
        crown(Catalog(ObjectStore(settings)), tiny_package(1), why="benchmark")
        environment = settings.environment()
        with LocalCluster(num_cpus=5, working_directory=REPOSITORY, environment=environment) as cluster:
            started = time.monotonic()
            with serve_run(cluster, REPOSITORY, folder, environment=environment, changes=CHANGES) as url:
                with Client(url) as client:
                    client.wait_until_ready(300)
                    client.refocus(image_of(64))
                yield url, cluster, time.monotonic() - started
    finally:
        local_store.down()


def memory_over(url: str, cluster: LocalCluster, requests: int) -> dict[str, tuple[float, float, float]]:
    """Resident memory of each deployment: at the start, at the end, and its slope for 1000 requests, in MB.

    The first quarter warms up; the slope is a straight line through the rest.
    """
    clients, seen = Clients(url, image_of(128)), []
    # As many as one restorer is meant for: a second one would join the sum.
    clients.set(2)
    while clients.answers < requests:
        time.sleep(0.25)
        seen.append((clients.answers, *(sum(map(resident_mb, replica_pids(cluster, d))) for d in DEPLOYMENTS)))
    clients.set(0)
    settled = np.array([row for row in seen if row[0] > requests / 4])
    slopes = np.polyfit(settled[:, 0] / 1000.0, settled[:, 1:], 1)[0]
    return {
        name: (float(settled[0, n + 1]), float(settled[-1, n + 1]), float(slopes[n]))
        for n, name in enumerate(DEPLOYMENTS)
    }


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def follow_load(url: str, cluster: LocalCluster, phase_s: float) -> tuple[list[Moment], int]:
    """Ask from 1, 12 and again 1 client, then wait until one restorer is left."""
    clients, moments, began = Clients(url, image_of(512)), list[Moment](), time.monotonic()
    for number, least_s in ((1, phase_s / 3), (12, 2 * phase_s), (1, phase_s)):
        clients.set(number)
        phase_began = time.monotonic()
        # The last phase lasts until the replicas are gone, or three times as long.
        while (spent_s := time.monotonic() - phase_began) < least_s or (
            len(moments) > 0 and number == 1 and moments[-1].restorers > 1 and spent_s < 3 * least_s + 60
        ):
            restorers, ready = len(replica_pids(cluster, "Restorer")), ready_restorers(cluster)
            moments.append(Moment(round(time.monotonic() - began, 2), number, restorers, ready, clients.answers))
            time.sleep(0.5)
    clients.set(0)
    return moments, clients.failures


def ready_restorers(cluster: LocalCluster) -> int:
    """Return how many restorers Serve sends requests to."""
    url = f"{cluster.environment['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/"
    status = httpx.get(url, timeout=30, trust_env=False).json()
    replicas = status["applications"]["refocus"]["deployments"]["Restorer"]["replicas"]
    return sum(replica["state"] == "RUNNING" for replica in replicas)


def image_of(side: int) -> np.ndarray:
    return (np.random.default_rng(side).random((side, side)) * 3000 + 200).astype(np.uint16)


def draw(profile: list[Moment], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at_s = [moment.at_s for moment in profile]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 4.2), layout="constrained")
    above.step(at_s, [moment.clients for moment in profile], where="post", color="0.5", label="clients")
    above.step(at_s, [moment.ready for moment in profile], where="post", color="C0", label="restorers ready")
    above.set_ylabel("number")
    above.legend(frameon=False)
    answers = np.array([moment.answers for moment in profile], float)
    window = 10
    rate = (answers[window:] - answers[:-window]) / (np.array(at_s[window:]) - np.array(at_s[:-window]))
    below.plot(at_s[window:], rate, color="C1")
    below.set_ylabel("answers a second")
    below.set_xlabel("seconds")
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
