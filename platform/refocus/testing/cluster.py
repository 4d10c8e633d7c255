"""A private Ray cluster on this machine, for a test or a demonstration.

``ray stop`` ends every Ray process on the machine, other people's included. A `LocalCluster` keeps
its own process group, ports and folder instead, and ends exactly what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

_READY_TIMEOUT_S = 90.0
_GRACE_S = 3.0


class LocalCluster:
    """A Ray head node bound to the loopback address; a context manager.

    Parameters
    ----------
    num_cpus : int
        Logical CPUs. They bound how much Ray schedules at once, not what the machine has: one must
        stay free for Ray Data beside the train workers.
    working_directory : path or None
        Where jobs start, so that ``ray job submit jobs/train.py`` finds its file.
    environment : mapping or None
        Added to the environment of the cluster and of everything that runs on it.
    object_store_bytes : int
        Ray's shared memory.

    Attributes
    ----------
    working_directory : path or None
    environment : dict
        What a process needs in its environment to speak to this cluster alone.

    Raises
    ------
    RuntimeError
        If the cluster does not come up; the message holds the end of its log.
    """

    def __init__(
        self,
        *,
        num_cpus: int = 4,
        working_directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        object_store_bytes: int = 512 * 2**20,
    ) -> None:
        self._num_cpus = num_cpus
        self.working_directory = working_directory
        self._object_store_bytes = object_store_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._own_environment = dict(environment or {})
        self.environment: dict[str, str] = {}

    def start(self) -> LocalCluster:
        """Start the head node and wait until its dashboard answers and names it."""
        # Unix socket paths are limited to 107 bytes: the folder stays short.
        self._folder = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp" if Path("/tmp").is_dir() else None))
        head_port, dashboard_port, agent_port, grpc_port, client_port, metrics_port, env_port = free_ports(7)
        self.environment = {
            **os.environ,
            **self._own_environment,
            # Loopback only, so no token; set on both sides, because Ray guesses when it is unset.
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"127.0.0.1:{head_port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        head_environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats",
            f"--port={head_port}", f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={grpc_port}",
            f"--ray-client-server-port={client_port}", f"--metrics-export-port={metrics_port}",
            f"--runtime-env-agent-port={env_port}",
            f"--num-cpus={self._num_cpus}", f"--object-store-memory={self._object_store_bytes}",
            f"--temp-dir={self._folder}",
        ]  # fmt: skip
        log = self._folder / "head.log"
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, env=head_environment, cwd=self.working_directory, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self._wait_until_ready(log)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End every process of this cluster and remove its folder; safe to call twice."""
        if self._process is not None:
            assert self._folder is not None
            _end_process_tree(self._process, self._folder)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> LocalCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_node(self, *, num_cpus: int, object_store_bytes: int = 128 * 2**20) -> LocalNode:
        """Start another node of this cluster on this machine and wait until it has joined."""
        assert self._folder is not None
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not (before := self._living_nodes()):
            time.sleep(0.2)
        agent_port, grpc_port, metrics_port, env_port = free_ports(4)
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
            f"--address={self.environment['RAY_ADDRESS']}", "--node-ip-address=127.0.0.1",
            f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={grpc_port}",
            f"--metrics-export-port={metrics_port}", f"--runtime-env-agent-port={env_port}",
            f"--num-cpus={num_cpus}", f"--object-store-memory={object_store_bytes}",
        ]  # fmt: skip
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        log = self._folder / f"node-{len(before)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, env=environment, cwd=self.working_directory, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        node = LocalNode(process)
        while not (new := self._living_nodes() - before):
            if process.poll() is not None or time.monotonic() > deadline:
                node.kill()
                raise RuntimeError(f"the node did not join:\n{_tail(log)}")
            time.sleep(0.3)
        node.node_id = new.pop()
        return node

    def _living_nodes(self) -> set[str]:
        url = f"{self.environment['RAY_DASHBOARD_ADDRESS']}/api/v0/nodes"
        # A dashboard that is still starting closes connections, or has no answer yet.
        with contextlib.suppress(OSError, KeyError, TypeError), urllib.request.urlopen(url, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
            return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}
        return set()

    @property
    def folder(self) -> Path:
        """Where the running cluster keeps its sockets, logs and addresses."""
        assert self._folder is not None
        return self._folder

    def processes(self) -> list[int]:
        """Return the ids of every process of this cluster."""
        assert self._folder is not None
        return list(_processes_of(self._folder))

    def workers(self, title: str) -> list[int]:
        """Return the ids of this cluster's workers that `title` names, such as ``RayTrainWorker``."""
        # A worker writes its title over its environment, so it is known by its parent, a raylet of the cluster.
        raylets = set(self.processes())
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                said = (entry / "cmdline").read_bytes()
                if said.startswith(b"ray::") and os.fsencode(title) in said and _parent(entry) in raylets:
                    found.append(int(entry.name))
        return sorted(found)

    def run(self, *command: str, timeout_s: float, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster and return its output."""
        return subprocess.run(
            command, env=self.environment, cwd=self.working_directory, timeout=timeout_s, check=check, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _wait_until_ready(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ray start ended with {self._process.returncode}:\n{_tail(log)}")
            # On a busy machine the dashboard answers seconds before the node has joined, and drivers are then refused.
            if self._living_nodes():
                return
            time.sleep(0.2)
        raise RuntimeError(f"Ray did not answer within {_READY_TIMEOUT_S:.0f} s:\n{_tail(log)}")


class LocalNode:
    """A node that `LocalCluster.add_node` has started.

    Attributes
    ----------
    node_id : str
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.node_id = ""

    def kill(self) -> None:
        """End all its processes at once, as when a machine loses power; safe to call twice."""
        for pid in _descendants(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that are free on the loopback address now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_process_tree(process: subprocess.Popen[bytes], folder: Path) -> None:
    # A raylet told to end drains its node for half a minute; nothing here is worth that wait.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Ray's daemons make sessions of their own, so the group is not enough: every process of this
    # cluster carries the cluster's own folder in its command line or environment.
    deadline = time.monotonic() + _GRACE_S
    while (left := list(_processes_of(folder))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _parent(process: Path) -> int:
    # The name in parentheses may hold anything; what follows it is regular.
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def _processes_of(folder: Path) -> Iterator[int]:
    needle = os.fsencode(str(folder) + "/")
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        for part in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if needle in (entry / part).read_bytes():
                    yield int(entry.name)
                    break


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
