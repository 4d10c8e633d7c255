"""The store of this machine: starting, stopping, crashing, and finding its way back."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from refocus.errors import StoreError
from refocus.io import server_process
from refocus.io.local_store import LocalStore
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore

pytestmark = [pytest.mark.store, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


@pytest.fixture
def own_store(tmp_path):
    """A store of this test's own, not running yet, ended in any case."""
    local = LocalStore(tmp_path / "with blank")
    yield local
    local.down()


def port_of(settings: StoreSettings) -> int:
    port = urlsplit(settings.endpoint_url).port
    assert port is not None
    return port


def crash(local: LocalStore) -> None:
    pid = local.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while local.status().running and time.monotonic() < deadline:
        time.sleep(0.01)


def test_up_makes_a_bucket_that_takes_writes_and_up_again_changes_nothing(own_store):
    settings = own_store.up()
    pid = own_store.status().pid
    ObjectStore(settings).put("key", b"x")
    assert own_store.up() == settings
    assert own_store.status().pid == pid


def test_stopping_and_starting_again_loses_nothing(own_store):
    settings = own_store.up()
    ObjectStore(settings).put("key", b"kept")
    assert own_store.down()
    assert not own_store.down()
    assert not own_store.status().running
    assert own_store.up() == settings
    assert ObjectStore(settings).get("key") == b"kept"


def test_a_killed_server_is_noticed_and_comes_back_with_all_it_was_given(own_store):
    settings = own_store.up()
    objects = {f"k/{number}": os.urandom(50_000) for number in range(20)}
    for key, data in objects.items():
        ObjectStore(settings).put(key, data)
    crash(own_store)
    assert "is stopped" in str(own_store.status())
    assert own_store.up() == settings
    assert {key: ObjectStore(settings).get(key) for key in objects} == objects


def test_a_port_taken_meanwhile_moves_the_store_and_keeps_what_it_holds(own_store):
    settings = own_store.up()
    ObjectStore(settings).put("key", b"kept")
    own_store.down()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port_of(settings)))
        stranger.listen()
        moved = own_store.up()
    assert moved.endpoint_url != settings.endpoint_url
    assert ObjectStore(moved).get("key") == b"kept"


def test_a_port_that_is_lost_between_check_and_bind_is_given_up_for_another(own_store, monkeypatch):
    monkeypatch.setattr("refocus.io.local_store._free", lambda port: True)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        choices = [dict.fromkeys(("s3", "master", "volume", "filer", "admin"), taken)]
        choices[0] = {name: taken + offset for offset, name in enumerate(choices[0])}
        from refocus.io import local_store

        choose = local_store._choose_ports
        monkeypatch.setattr(local_store, "_choose_ports", lambda: choices.pop() if choices else choose())
        settings = own_store.up()
    assert port_of(settings) != taken
    ObjectStore(settings).check_bucket()


def test_a_process_number_that_passed_to_somebody_else_is_left_alone(own_store):
    own_store.up()
    own_store.down()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        state = own_store._read()
        assert state is not None
        own_store._write(state.model_copy(update={"pid": stranger.pid}))
        assert not own_store.status().running
        assert not own_store.down()
        own_store.up()
        own_store.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_whose_starter_died_before_writing_it_down_is_found(own_store):
    settings = own_store.up()
    state = own_store._read()
    assert state is not None
    own_store._write(state.model_copy(update={"pid": None}))
    assert own_store.status().running
    assert own_store.up() == settings
    assert own_store.down()


def test_several_that_start_it_at_once_get_the_same_store(own_store):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: LocalStore(own_store.folder).up(), range(4)))
    assert all(answer == answers[0] for answer in answers)


def test_down_leaves_no_process_and_no_socket_behind(own_store):
    settings = own_store.up()
    flag = own_store._data_flag
    assert server_process.find(flag) is not None
    own_store.down()
    assert server_process.find(flag) is None
    ports = own_store._read().ports.values()
    numbers = "|".join(str(port + offset) for port in ports for offset in (0, 10_000))
    assert not [path for path in Path("/tmp").glob("seaweedfs-*.sock") if re.search(rf"-({numbers})\.sock$", path.name)]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port_of(settings))) != 0


def test_an_ended_process_has_let_go_of_its_port(tmp_path):
    # A full memory takes the kernel longest to take away, and the port goes after it.
    script = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); held = bytearray(b'x') * 3_000_000_000; "
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    word = str(tmp_path)
    with subprocess.Popen([sys.executable, "-c", script, word], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            server_process.end(process.pid, word)
            with socket.socket() as successor:
                successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                successor.bind(("127.0.0.1", port))
        finally:
            process.kill()


def test_credentials_are_random_and_only_their_owner_reads_them(own_store, tmp_path):
    settings = own_store.up()
    for name in ("state.json", "."):
        mode = stat.S_IMODE((own_store.folder / name).stat().st_mode)
        assert mode & 0o077 == 0, name
    assert settings.secret_key.get_secret_value() not in own_store.log.read_text()
    assert LocalStore(tmp_path / "other")._fresh_state().secret_key != settings.secret_key.get_secret_value()


def test_it_listens_on_the_loopback_address_alone(own_store):
    own_store.up()
    ours = {port + offset for port in own_store._read().ports.values() for offset in (0, 10_000)}
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {
        row[1].partition(":")[0] for row in listening if row[3] == "0A" and int(row[1].partition(":")[2], 16) in ours
    }
    assert addresses == {"0100007F"}
    in_any_v6 = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    assert not [r for r in in_any_v6 if r.split()[3] == "0A" and int(r.split()[1].partition(":")[2], 16) in ours]


def test_a_server_that_ends_at_once_is_noticed_with_the_end_of_its_log(own_store):
    # A file where the data folder should be: the server cannot start.
    own_store.folder.mkdir(parents=True)
    (own_store.folder / "data").write_text("in the way")
    begun = time.monotonic()
    with pytest.raises((StoreError, OSError)):
        own_store.up()
    assert time.monotonic() - begun < 20  # the time-out for readiness is 60 s
    assert not own_store.status().running


def test_a_state_file_that_is_broken_says_what_to_do(own_store):
    own_store.folder.mkdir(parents=True)
    (own_store.folder / "state.json").write_text('{"access_key": ')
    with pytest.raises(StoreError, match="remove it"):
        own_store.up()
    (own_store.folder / "state.json").unlink()
    ObjectStore(own_store.up()).check_bucket()


def test_settings_find_the_running_store_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("REFOCUS_HOME", str(tmp_path))
    local = LocalStore()
    assert local.folder == tmp_path / "store"
    settings = local.up()
    try:
        assert StoreSettings.from_environment({}) == settings
        assert StoreSettings.from_environment({"REFOCUS_BUCKET": "another"}).bucket == "another"
    finally:
        local.down()
