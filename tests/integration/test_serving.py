"""The service as its users start it: ``serve run serve_configs/refocus.yaml`` in a process of its own."""

from __future__ import annotations

import http.client
import threading
import time

import httpx
import numpy as np
import pytest

from refocus.client import Client
from refocus.errors import RequestRefused
from refocus.io.store import ObjectStore
from refocus.model.restore import restore
from refocus.registry.catalog import Catalog
from refocus.testing.cluster import LocalCluster
from refocus.testing.service import crown, serve_run, tiny_package

pytestmark = [pytest.mark.ray, pytest.mark.store]


def model_of(client: Client) -> dict:
    """What the service says of the champion under test."""
    return next(model for model in client.models() if model["name"] == "served")


@pytest.fixture(scope="module")
def served(repository, store_settings, tmp_path_factory):
    """A running service whose champion is ``tiny_package(1)``: (address, catalog)."""
    settings = store_settings.model_copy(update={"bucket": "serving-integration"})
    store = ObjectStore(settings)
    store.create_bucket()
    catalog = Catalog(store)
    crown(catalog, tiny_package(1))
    folder = tmp_path_factory.mktemp("serve")
    environment = settings.environment()
    # Two at the entrance: what one of them counts alone is not the whole.
    changes = {
        r"poll_s: 5\b": "poll_s: 0.5",
        r"(name: Ingress[\s\S]*?min_replicas:) 1": r"\1 2",
        # Ready means that the champion serves: on a slow machine bundled weights would answer first.
        r"store: auto\b": "store: required",
    }
    with (
        LocalCluster(num_cpus=4, working_directory=repository, environment=environment) as cluster,
        serve_run(cluster, repository, folder, environment=environment, changes=changes) as url,
    ):
        with Client(url) as client:
            try:
                client.wait_until_ready(120)
            except Exception:
                print((folder / "serve.log").read_text()[-6000:])
                raise
        yield url, catalog


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return (np.random.default_rng(0).random((300, 200)) * 3000 + 200).astype(np.uint16)


def test_an_image_goes_through_the_real_service_and_back(served, grey):
    url, catalog = served
    with Client(url) as client:
        answer = client.refocus_detailed(grey)
        assert (answer.pixels.shape, answer.pixels.dtype) == (grey.shape, grey.dtype)
        assert answer.digest == catalog.alias("served", "champion")[0].digest
        assert model_of(client)["source"] == "champion"
        expected = restore(grey, tiny_package(1), device="cpu").pixels
        # The replica runs with its own number of threads: sums in another order, a grey level of 3200 at most.
        np.testing.assert_allclose(answer.pixels.astype(int), expected.astype(int), atol=1)
        assert {"decode", "queue", "model", "encode"} == set(answer.timings_ms)


def test_files_keep_their_format(served, grey, tmp_path):
    import imagecodecs
    import tifffile

    url, _ = served
    tifffile.imwrite(tmp_path / "in.ome.tif", np.stack([grey, grey]), ome=True, metadata={"axes": "CYX"})
    (tmp_path / "in.png").write_bytes(imagecodecs.png_encode(grey))
    with Client(url) as client:
        said = client.refocus_file(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif")
        client.refocus_file(tmp_path / "in.png", tmp_path / "out.png")
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert file.series[0].axes == "CYX"
        assert said.digest in file.ome_metadata
    assert imagecodecs.png_decode((tmp_path / "out.png").read_bytes()).dtype == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ome.tif", "in.png", "out.ome.tif", "out.png"]


def test_bad_bodies_are_refused_and_the_service_goes_on(served, grey):
    url, _ = served
    for body, status in (
        (b"not an image", 415),
        (b"II*\0" + b"\0" * 30, 422),
        (b"\x89PNG\r\n\x1a\n" + b"\1" * 30, 422),
    ):
        response = httpx.post(f"{url}/v1/refocus", content=body)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
    with Client(url) as client:
        with pytest.raises(RequestRefused, match="correlation id"):
            client.refocus(grey, model="nobody")
        assert client.refocus(grey).shape == grey.shape


def test_a_body_over_the_limit_is_413_before_it_is_sent(served):
    url, _ = served
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/refocus")
    connection.putheader("Content-Length", str(10**10))
    connection.endheaders(b"II*\0")
    # Ten gigabytes are announced and four bytes sent: the answer does not wait for the rest.
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Content-Type"] == "application/problem+json"
    connection.close()


def test_metrics_are_those_of_all_replicas(served, grey):
    url, _ = served

    def counted(name: str, *labels: str) -> dict[str, float]:
        """Value by process of the series that have these labels."""
        lines = [line for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines() if line.startswith(name)]
        found = [line for line in lines if all(label in line for label in labels)]
        return {line.partition('WorkerId="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in found}

    answered = ("ray_refocus_requests_total", 'route="/v1/refocus"', 'status="200"')
    before = sum(counted(*answered).values())
    for _ in range(20):
        # A connection each, so that both replicas at the entrance get some.
        with Client(url) as client:
            client.refocus(grey)
    swapped = ("ray_refocus_model_swaps_total", 'model="served"', 'outcome="swapped"')
    restored = ("ray_refocus_stage_seconds_count", 'stage="model"')
    # Each process sends its own from time to time: the restorer's may come after the entrance's.
    deadline = time.monotonic() + 60
    awaited = ((answered, before + 20), (swapped, 1), (restored, 20))
    while any(sum(counted(*series).values()) < least for series, least in awaited) and time.monotonic() < deadline:
        time.sleep(0.5)
    for series, least in awaited:
        assert sum(counted(*series).values()) >= least, series
    assert len(counted(*answered)) == 2


def test_a_promotion_under_load_loses_no_request(served, grey):
    url, catalog = served
    stop = threading.Event()
    digests: list[str] = []
    failures: list[Exception] = []

    def ask() -> None:
        # No retries: the service itself must not fail.
        with Client(url, retries=0) as client:
            while not stop.is_set():
                try:
                    digests.append(client.refocus_detailed(grey).digest)
                except Exception as error:  # noqa: BLE001 (every failure counts)
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    second = crown(catalog, tiny_package(2))
    deadline = time.monotonic() + 60
    while second not in digests and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert digests[-1] == second
    # One replica: from the first answer of the new model on, the old one is not seen again, save what was under way.
    first_new = digests.index(second)
    assert digests[first_new + 4 :].count(second) == len(digests[first_new + 4 :])


def test_a_corrupt_champion_leaves_the_old_one_serving(served, grey):
    url, catalog = served
    before = catalog.alias("served", "champion")[0].digest
    third = catalog.publish(tiny_package(3)).digest
    key = f"registry/served/versions/{third}/weights.safetensors"
    data = bytearray(catalog.store.get(key))
    data[-1] ^= 1
    catalog.store.put(key, bytes(data))
    crown_again = catalog.alias("served", "champion")
    catalog.move("served", "champion", third, seen=crown_again, kind="promote", why="corrupt")
    with Client(url) as client:
        deadline = time.monotonic() + 30
        while not model_of(client)["problem"] and time.monotonic() < deadline:
            time.sleep(0.1)
        model = model_of(client)
        assert "sealed" in model["problem"]
        assert model["digest"] == before
        assert client.refocus_detailed(grey).digest == before
        assert client.ready()
    catalog.move("served", "champion", before, seen=catalog.alias("served", "champion"), kind="rollback", why="corrupt")
