"""Training from S3 on Ray beside the same loop on batches in memory; prints a table and one line of JSON.

python tests/benchmarks/training/run.py
python tests/benchmarks/training/run.py --rounds 1 --steps 8      a quick look

Starts a store, a Ray cluster and a simulated dataset of its own. Arms alternate, one thread a worker: torchrun with
1 worker, Ray with 1, torchrun with 2, Ray with 2, and again. Clocks start after the first tenth of the steps (Ray:
after the first report, a third), so that neither processes starting nor first batches count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "tests"))

from refocus import recipes  # noqa: E402
from refocus.data.dataset import DatasetVersion  # noqa: E402
from refocus.io.local_store import LocalStore  # noqa: E402
from refocus.io.store import ObjectStore  # noqa: E402
from refocus.testing.cluster import LocalCluster  # noqa: E402
from refocus.training.runs import read_progress  # noqa: E402
from samples import put_sharp_images  # noqa: E402

RECIPE = "fluorescence"


def settings(options: argparse.Namespace, workers: int) -> list[str]:
    """Return the recipe's changes: the same batch on every worker, whatever their number."""
    values = {
        "initial_weights": "null", "crop_px": options.crop, "batch_size": options.batch * workers,
        "steps": options.steps, "warmup_steps": 1, "validation_tiles": 8,
        # Recipes have thousands of steps between checkpoints: what is done beside training then must not count here.
        "checkpoint_interval_steps": max(1, options.steps // 3),
    }  # fmt: skip
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def in_memory(options: argparse.Namespace, cluster: LocalCluster, dataset: str, workers: int) -> float:
    """Return samples/s of the loop under torchrun."""
    command = [
        str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", str(workers),
        str(Path(__file__).with_name("in_memory.py")), "--dataset", dataset, "--recipe", RECIPE,
        "--skip", str(max(1, options.steps // 10)), *settings(options, workers),
    ]  # fmt: skip
    environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE, cwd=REPOSITORY)
    return json.loads(done.stdout.splitlines()[-1])["samples_per_s"]


def on_ray(
    options: argparse.Namespace, cluster: LocalCluster, store: ObjectStore, dataset: str, workers: int, run: str
) -> dict[str, Any]:
    """Return what a submitted run reports after its first report, and when its first step came."""
    command = [
        "ray", "job", "submit", "--", "jobs/train.py", "--recipe", RECIPE, "--dataset", dataset, "--run", run,
        "--workers", str(workers), *settings(options, workers),
    ]  # fmt: skip
    started, first_step_s = time.monotonic(), float("nan")
    with subprocess.Popen(
        command, env=cluster.environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as job:
        assert job.stdout is not None
        said = []
        for line in job.stdout:
            said.append(line)
            if re.search(rf"step 1/{options.steps}\b", line):
                first_step_s = time.monotonic() - started
    if job.returncode:
        raise SystemExit("".join(said[-40:]))
    entries = read_progress(store, run)
    later = entries[1:]
    return {
        "samples_per_s": _weighted(later, "samples_per_s"),
        "data_wait_share": _weighted(later, "data_wait_share"),
        "checkpoint_s": statistics.median(e["checkpoint_s"] for e in later),
        "validation_s": statistics.median(e["validation_s"] for e in later),
        "first_step_s": first_step_s,
    }


def _weighted(entries: list[dict[str, Any]], name: str) -> float:
    # Intervals have equal steps, so their lengths go as 1 / speed.
    lengths = [1 / entry["samples_per_s"] for entry in entries]
    if name == "samples_per_s":
        return len(entries) / sum(lengths)
    return sum(e[name] * s for e, s in zip(entries, lengths, strict=True)) / sum(lengths)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all arms and return every measurement."""
    found: dict[str, list[Any]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        local_store = LocalStore(Path(folder))
        store = ObjectStore(local_store.up())
        try:
            dataset = put_sharp_images(store, name="benchmark", each=options.images, side=768)
            tiles = DatasetVersion.open(store, dataset).manifest.rows("train")
            environment = store.settings.environment()
            with LocalCluster(num_cpus=3, working_directory=REPOSITORY, environment=environment) as cluster:
                for number in range(options.rounds):
                    for workers in options.workers:
                        found[f"torchrun {workers}"].append(in_memory(options, cluster, dataset, workers))
                        run = f"benchmark-{number}-{workers}"
                        found[f"ray {workers}"].append(on_ray(options, cluster, store, dataset, workers, run))
                        print(f"round {number}, {workers} workers: done", file=sys.stderr, flush=True)
        finally:
            local_store.down()
    return {"tiles": tiles, **found}


def table(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Print the tables and return their numbers."""
    median = {name: statistics.median(values) for name, values in found.items() if name.startswith("torchrun")}
    ray = {
        name: {key: statistics.median(each[key] for each in values) for key in values[0]}
        for name, values in found.items()
        if name.startswith("ray")
    }
    result: dict[str, Any] = {}
    print("| workers | torchrun, in memory, samples/s | Ray from S3, samples/s | Ray / torchrun | waiting for data |")
    print("|---|---|---|---|---|")
    for workers in options.workers:
        limit, ours = median[f"torchrun {workers}"], ray[f"ray {workers}"]
        share = ours["samples_per_s"] / limit
        print(
            f"| {workers} | {limit:.2f} | {ours['samples_per_s']:.2f} | {100 * share:.1f}% | "
            f"{100 * ours['data_wait_share']:.2f}% |"
        )
        result[str(workers)] = {"torchrun": limit, **ours, "share": share}
    first, last = str(options.workers[0]), str(options.workers[-1])
    if first != last:
        gain = int(last) / int(first)
        ddp = result[last]["torchrun"] / result[first]["torchrun"] / gain
        whole = result[last]["samples_per_s"] / result[first]["samples_per_s"] / gain
        print(f"\nScaling efficiency, {first} to {last} workers: DDP alone {100 * ddp:.1f}%, Ray {100 * whole:.1f}%")
        result["efficiency"] = {"torchrun": ddp, "ray": whole}
    one = result[first]
    step_s = options.batch / one["samples_per_s"]
    interval = recipes.get(RECIPE).checkpoint_interval_steps
    cost = one["checkpoint_s"] / (interval * step_s)
    print(f"From `ray job submit` to the first optimizer step: {one['first_step_s']:.1f} s")
    print(
        f"Training stands still {one['checkpoint_s']:.2f} s for a checkpoint: {100 * cost:.3f}% of {interval} steps of "
        f"{step_s:.2f} s; under 1% from {100 * one['checkpoint_s'] / interval * 1000:.0f} ms a step on"
    )
    return result | {"checkpoint_share": cost}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8, help="samples a step and worker")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--images", type=int, default=120, help="images of 768 x 768 px in each split")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    found = measure(options)
    print(f"Recipe {RECIPE}, crop {options.crop}, {options.batch} samples a step and worker, {options.steps} steps,")
    print(f"{found['tiles']} training tiles; {os.cpu_count()} cores, {platform.processor()}, commit {commit}\n")
    print(json.dumps(table(found, options) | {"commit": commit, "options": vars(options)}))


if __name__ == "__main__":
    main()
