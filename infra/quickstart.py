"""The whole chain on one machine: store, ingest, train, promote, serve, and an image brought into focus.

Everything runs as a user would run it: jobs through ``ray job submit``, the service through ``serve run``,
images over HTTP. What it starts, it ends; what it learns stays in the store under ``.refocus/``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("REFOCUS_HOME", str(REPOSITORY / ".refocus"))

from refocus.client import Client  # noqa: E402  (the store's folder must be known first)
from refocus.errors import RefocusError  # noqa: E402
from refocus.io.local_store import LocalStore  # noqa: E402
from refocus.io.store import ObjectStore  # noqa: E402
from refocus.io.upload import upload  # noqa: E402
from refocus.testing.cluster import LocalCluster  # noqa: E402

sys.path.insert(0, str(REPOSITORY / "infra"))
from demonstration import built_in_images, compare_on_validation, write_picture  # noqa: E402

SERVE_CONFIG = "serve_configs/refocus.yaml"
SERVICE_READY_TIMEOUT_S = 120.0
WORKER_PREFIX = re.compile(r"^(\x1b\[\d+m)*\(\w+ pid=\d+[^)]*\)(\x1b\[\d+m)* ")
# What Ray says of itself: worth a log, not a person's screen.
NOISE = re.compile(
    r"\d{4}-\d\d-\d\d .*(INFO|SUCC|WARNING|ERR) |\(raylet\)|^-+$|Running entrypoint|Reporting training result|"
    r"Checkpoint successfully|Starting execution|Execution plan|execution finished|progress UI|Attempting to create|"
    r"Started training worker|world_size|FutureWarning|DistributedDataParallel\($|exclude_resources|rank=|"
    r"Setting up process group|DeprecationWarning"
)
_started = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of z-stacks and sharp images (default: ../shared/data, "
                        "or what the installed packages carry)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".refocus" / "quickstart", help="where results go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        run(options.data, options.out.resolve())
    except RefocusError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def run(data: Path | None, out: Path) -> None:
    data, said = real_input(data, out)
    step(1, f"Starting the object store; input is {said}")
    local_store = LocalStore()
    was_running = local_store.status().running
    settings = local_store.up()
    try:
        store = ObjectStore(settings)
        sent, kept = upload(store, data, "raw/")
        if not (data / "acquisition.yaml").exists() and (data / "sharp" / "nuclei").is_dir():
            store.put("raw/acquisition.yaml", (REPOSITORY / "infra" / "demonstration.yaml").read_bytes())
        print(f"      {sent} objects sent to {store.uri('raw/')}, {kept} were there already")

        step(2, "Starting Ray")
        with LocalCluster(num_cpus=5, working_directory=REPOSITORY, environment=settings.environment()) as cluster:
            step(3, "Ingesting with Ray Data")
            submit(cluster, "jobs/ingest.py")
            step(4, "Training with Ray Train, two workers")
            run_name = time.strftime("quickstart-%Y%m%d-%H%M%S")
            submit(cluster, "jobs/train.py", "--recipe", "smoke", "--run", run_name)
            step(5, "Promoting, if it is better than the champion")
            submit(cluster, "jobs/promote.py", "--run", run_name, "--policy", "quickstart", "--quick", refused_status=3)
            step(6, "Serving")
            with service(cluster) as client:
                step(7, "Refocusing validation images over HTTP")
                result = compare_on_validation(client, store)
                write_picture(result, out / "before_after.png")
    finally:
        if not was_running:
            local_store.down()

    step(8, f"Done in {time.monotonic() - _started:.0f} s")
    (out / "result.json").write_text(json.dumps(result.summary(), indent=1))
    print(result.table())
    print(f"Picture: {out / 'before_after.png'}   Numbers: {out / 'result.json'}")


def step(number: int, text: str) -> None:
    print(f"[{number}/8] {time.monotonic() - _started:5.0f} s  {text}", flush=True)


def real_input(data: Path | None, out: Path) -> tuple[Path, str]:
    """Return the folder to ingest, and what it is, for a person."""
    if data is None and (REPOSITORY.parent / "shared" / "data").is_dir():
        data = REPOSITORY.parent / "shared" / "data"
    if data is not None:
        if not data.is_dir():
            raise SystemExit(f"--data {data} is no folder; expected one of TIFF stacks and TIFF or PNG images")
        return data.resolve(), f"the folder {data}"
    folder = built_in_images(out / "input")
    return folder, "images that scikit-image ships and simulated focal series (name your own with --data FOLDER)"


def submit(cluster: LocalCluster, *entrypoint: str, refused_status: int | None = None) -> None:
    """Submit a job, show its output as it comes, and stop if it failed."""
    command = ["ray", "job", "submit", "--", *entrypoint]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=cluster.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.callback(end, process)
        for line in process.stdout:
            # What workers say arrives with their name before it, and twice.
            said = WORKER_PREFIX.sub("", line.rstrip())
            if worth_showing(said) and said not in lines[-20:]:
                print(f"      {said}", flush=True)
            lines.append(said)
        status = process.wait()
    if status != 0 and not any(f"exit code {refused_status}" in line for line in lines):
        print("\n".join(lines[-60:]))
        raise SystemExit(f"{' '.join(entrypoint)} failed; the end of its output is above")


def worth_showing(line: str) -> bool:
    return bool(line.strip()) and not NOISE.search(line)


@contextlib.contextmanager
def service(cluster: LocalCluster) -> Iterator[Client]:
    """Run the service as its README says and yield a client once it is ready."""
    process = subprocess.Popen(
        ["serve", "run", SERVE_CONFIG], cwd=REPOSITORY, env=cluster.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        client = Client("http://127.0.0.1:8000")
        client.wait_until_ready(timeout_s=SERVICE_READY_TIMEOUT_S)
        for model in client.models():
            print(f"      http://127.0.0.1:8000 serves {model['name']} {model['digest'][:12]} ({model['source']})")
        yield client
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        if process.poll() is None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
