"""A store that misbehaves on demand: an HTTP proxy before a real one.

The requests that pass are answered by the real store, with its signatures, checksums and conditions; the ones that
are chosen meet what S3 does on bad days. Slow answers, 500 and 503 SlowDown, connections cut midway through a body,
and the worst: a write that is done and whose answer is lost.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from refocus.errors import ConfigurationError
from refocus.io.settings import StoreSettings

_TIMEOUT_S = 60.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request meets.

    Parameters
    ----------
    status : int or None
        Answer with this status and `code`; the store never sees the request.
    code : str
        S3's name for the error: ``SlowDown``, ``InternalError``, ``ServiceUnavailable``.
    delay_s : float
        Wait before anything else.
    cut_after_bytes : int or None
        Pass the request on, send the head of the answer and this many bytes of its body, then cut.
    lose_answer : bool
        Pass the request on, so that it is done, and cut without a byte of the answer.
    """

    status: int | None = None
    code: str = "InternalError"
    delay_s: float = 0.0
    cut_after_bytes: int | None = None
    lose_answer: bool = False


#: What S3 answers when it is asked too fast.
SLOW_DOWN = Fault(status=503, code="SlowDown")
INTERNAL_ERROR = Fault(status=500, code="InternalError")
LOST_ANSWER = Fault(lose_answer=True)


@dataclass
class _Rule:
    fault: Fault
    methods: tuple[str, ...]
    path_contains: str
    left: float
    share: float
    random: random.Random


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One request that came by, and the fault that it met."""

    method: str
    path: str
    byte_range: str | None
    fault: Fault | None


@dataclass
class FaultyStore:
    """A proxy before the store of `settings`; a context manager.

    Examples
    --------
    ::

        with FaultyStore(settings) as faulty:
            faulty.inject(SLOW_DOWN, times=3)
            ObjectStore(faulty.settings).get("key")      # insists, and gets it
            assert faulty.count(SLOW_DOWN) == 3

    Attributes
    ----------
    settings : StoreSettings
        Before entering, of the real store; after, of the way through this proxy.
    seen : list of SeenRequest
        Every request, in the order of arrival.
    """

    settings: StoreSettings
    seen: list[SeenRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.settings.endpoint_url is None:
            raise ConfigurationError("a faulty store stands before an endpoint; these settings name none.")
        target = urlsplit(self.settings.endpoint_url)
        if target.scheme != "http" or target.hostname is None:
            raise ConfigurationError(f"{self.settings.endpoint_url} is not http://HOST:PORT; TLS cannot be proxied.")
        self._target = (target.hostname, target.port or 80)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def inject(
        self, fault: Fault, *, times: int | None = 1, methods: tuple[str, ...] = (), path_contains: str = "",
        share: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        """Let requests that match meet `fault`.

        Parameters
        ----------
        fault : Fault
        times : int or None
            How many in all; None for as long as the proxy lives.
        methods : tuple of str
            Such as ``("GET",)``; all where empty.
        path_contains : str
        share : float
            Chance of each one that matches, drawn from `seed`.
        """
        left = float("inf") if times is None else times
        with self._lock:
            self._rules.append(_Rule(fault, methods, path_contains, left, share, random.Random(seed)))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()

    def count(self, fault: Fault) -> int:
        """Return how many requests met `fault`."""
        return sum(request.fault == fault for request in self.seen)

    def __enter__(self) -> FaultyStore:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="faulty-store", daemon=True)
        self._thread.start()
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.settings = self.settings.model_copy(update={"endpoint_url": url})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _meet(self, method: str, path: str, byte_range: str | None) -> Fault | None:
        with self._lock:
            fault = next((rule.fault for rule in self._matching(method, path)), None)
            self.seen.append(SeenRequest(method, path, byte_range, fault))
            return fault

    def _matching(self, method: str, path: str) -> Iterator[_Rule]:
        for rule in self._rules:
            fits = (not rule.methods or method in rule.methods) and rule.path_contains in path
            if fits and rule.left > 0 and rule.random.random() < rule.share:
                rule.left -= 1
                yield rule

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        connection = http.client.HTTPConnection(*self._target, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return _Answer(answer.status, answer.reason, answer.getheaders(), answer.read())


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def _handler_of(faulty: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _TIMEOUT_S

        def pass_on(self) -> None:
            body = self._body()
            fault = faulty._meet(self.command, self.path, self.headers.get("range")) or Fault()
            time.sleep(fault.delay_s)
            if fault.status is not None:
                self._say(_refusal(fault))
                return
            # The host stays as the client signed it.
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            if "transfer-encoding" in self.headers:
                headers["Content-Length"] = str(len(body))
            answer = faulty._ask(self.command, self.path, headers, body)
            if fault.lose_answer:
                self._cut()
            elif fault.cut_after_bytes is not None and self.command != "HEAD":
                self._say(answer, only_bytes=fault.cut_after_bytes)
                self._cut()
            else:
                self._say(answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815 (http.server's names)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("transfer-encoding", "").lower():
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            # As pyarrow's S3 sends parts of an object whose checksum follows it.
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)

        def _say(self, answer: _Answer, *, only_bytes: int | None = None) -> None:
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.headers:
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            # The answer to HEAD announces the length of a body that it does not have.
            announced = {name.lower(): value for name, value in answer.headers}.get("content-length", "0")
            self.send_header("Content-Length", announced if self.command == "HEAD" else str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[:only_bytes])
            self.wfile.flush()

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: `FaultyStore.seen` keeps the record."""

    return Handler


def _refusal(fault: Fault) -> _Answer:
    assert fault.status is not None
    message = "Please reduce your request rate." if fault.code == "SlowDown" else "We encountered an internal error."
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{fault.code}</Code><Message>{message}</Message></Error>'
    return _Answer(fault.status, fault.code, [("Content-Type", "application/xml")], body.encode())
