"""The store where something else answers in its place."""

from __future__ import annotations

import http.server
import threading

import pytest

from refocus.errors import StoreError
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore


@pytest.fixture
def login_page():
    """The address of a server that answers everything with a page and status 200."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = b"<html>Please log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page)

        do_PUT = do_HEAD = do_GET  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_is_no_store_is_named_as_such_whatever_is_asked(login_page):
    store = ObjectStore(StoreSettings(endpoint_url=login_page, access_key="a", secret_key="b", attempts=1))
    for ask in (store.get, store.head, lambda key: store.get_if_changed(key, '"etag"')):
        with pytest.raises(StoreError, match=f"{login_page} answers without 'ETag'.* login page"):
            ask("key")
