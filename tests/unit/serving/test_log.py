"""What the service counts and writes down of a request, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging

import numpy as np
import pytest
import tifffile

from refocus.serving.http import make_app
from refocus.wire import headers


def test_labels_stay_bounded_whatever_clients_ask(service):
    client, _ = service
    for number in range(50):
        client.get(f"/nowhere/{number}")
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("refocus_requests_total")]
    assert len([line for line in lines if 'route="other",status="404"' in line]) == 1


def test_correlation_ids_that_could_forge_a_log_are_replaced(service):
    client, _ = service
    answer = client.get("/healthz", headers={"X-Correlation-Id": "a b;<script>"})
    assert answer.headers[headers.CORRELATION_ID].isalnum()


def test_the_log_of_a_refusal_says_why(service, caplog):
    client, _ = service
    with caplog.at_level(logging.INFO, logger="refocus.serving"):
        client.post("/v1/refocus", content=b"I am text")
    (line,) = [record for record in caplog.records if getattr(record, "route", "") == "/v1/refocus"]
    assert (line.status, line.problem) == (415, "urn:refocus:problem:no-image")
    assert "begins with b'I am tex'" in line.detail


def scope_of(method: str, path: str) -> dict:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [], "scheme": "http",
        "server": ("lab", 80), "client": ("me", 1),
    }  # fmt: skip


@pytest.mark.parametrize("left", ["in the middle of the upload", "while the service works"])
def test_a_client_who_leaves_is_logged_as_gone_and_not_as_a_failure(config, caplog, left):
    class Working:
        async def restore(self, request):
            raise asyncio.CancelledError

        async def state(self):
            raise AssertionError

    file = io.BytesIO()
    tifffile.imwrite(file, np.ones((61, 83), np.uint16))
    body = file.getvalue()
    half = {"type": "http.request", "body": body[:500], "more_body": True}
    whole = {"type": "http.request", "body": body, "more_body": False}
    arriving = [half, {"type": "http.disconnect"}] if "upload" in left else [whole]
    sent = []

    async def receive():
        return arriving.pop(0) if arriving else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def ask():
        with contextlib.suppress(asyncio.CancelledError):
            await make_app(Working(), config)(scope_of("POST", "/v1/refocus"), receive, send)

    with caplog.at_level(logging.INFO, logger="refocus.serving"):
        asyncio.run(ask())
    assert sent == []
    assert [(record.levelname, record.status) for record in caplog.records] == [("INFO", 499)]


def test_an_answer_that_breaks_off_is_logged_with_its_cause(config, caplog):
    async def send(message):
        if message["type"] == "http.response.body":
            raise RuntimeError("the wire broke")

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    with caplog.at_level(logging.ERROR, logger="refocus.serving"):
        asyncio.run(make_app(None, config)(scope_of("GET", "/healthz"), receive, send))
    (line,) = caplog.records
    assert "the wire broke" in str(line.exc_info[1])
    assert line.correlation_id
