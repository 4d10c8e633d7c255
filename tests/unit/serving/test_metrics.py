from __future__ import annotations

import http.server
import threading

from refocus.serving.metrics import ProcessMeters, RequestMetrics
from refocus.serving.restorer import Restorer
from refocus.testing.service import crown, tiny_package


def test_swaps_are_counted_by_outcome(catalog, store, config):
    crown(catalog, tiny_package(1, name="tiny"))
    meters = ProcessMeters()
    restorer = Restorer(config, catalog, meters)
    broken = crown(catalog, tiny_package(2, name="tiny"))
    store.put(f"registry/tiny/versions/{broken}/weights.safetensors", b"no weights")
    restorer.follow()
    said = meters.exposition().decode()
    assert 'refocus_model_swaps_total{model="tiny",outcome="swapped"} 1.0' in said
    assert 'refocus_model_swaps_total{model="tiny",outcome="refused"} 1.0' in said


def test_requests_are_counted_in_and_out():
    meters = ProcessMeters()
    metrics = RequestMetrics(meters)
    metrics.began()
    assert "refocus_requests_ongoing 1.0" in meters.exposition().decode()
    metrics.ended("/v1/refocus", 200, "tiny@abc", {"model": 30.0, "made up": 1.0}, pixels=100)
    said = meters.exposition().decode()
    assert "refocus_requests_ongoing 0.0" in said
    assert 'refocus_requests_total{model="tiny@abc",route="/v1/refocus",status="200"} 1.0' in said
    assert 'refocus_pixels_total{model="tiny@abc"} 100.0' in said
    assert "made up" not in said


def test_models_beyond_the_most_share_a_label():
    meters = ProcessMeters()
    metrics = RequestMetrics(meters)
    for number in range(40):
        metrics.began()
        metrics.ended("/v1/refocus", 200, f"m@{number}")
    lines = [line for line in meters.exposition().decode().splitlines() if line.startswith("refocus_requests_total")]
    assert len(lines) == 33
    assert any('model="other"' in line and line.endswith(" 8.0") for line in lines)


def test_a_node_that_breaks_off_while_it_answers_is_left_out():
    from refocus.serving.ray_meters import _lines_of

    class Dying(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"ray_refocus_requests_total 1\n")

        def log_message(self, *_) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Dying) as node:
        answering = threading.Thread(target=node.handle_request)
        answering.start()
        assert _lines_of(f"http://127.0.0.1:{node.server_address[1]}/metrics") == []
        answering.join()
