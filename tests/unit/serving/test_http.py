from __future__ import annotations

import asyncio
import gzip
import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from skimage.data import coins
from skimage.filters import gaussian
from starlette.testclient import TestClient

from refocus.model.restore import restore
from refocus.optics.settings import OpticalSystem
from refocus.registry.catalog import Catalog
from refocus.serving.config import ServingConfig
from refocus.serving.http import make_app
from refocus.serving.local import LocalBackend
from refocus.serving.requests import RestoreRequest
from refocus.serving.restorer import Restorer
from refocus.testing.service import TINY, crown, tiny_package
from refocus.wire import headers
from refocus.wire.image import ImageLimits


def tiff(pixels: np.ndarray, **options) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, **options)
    return sink.getvalue()


@pytest.fixture
def grey() -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.random((61, 83)) * 3000 + 200).astype(np.uint16)


def problem(response) -> dict:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["correlation_id"] == response.headers[headers.CORRELATION_ID]
    assert "Traceback" not in response.text
    return body


def test_a_tiff_comes_back_restored_in_its_own_format_size_and_type(service, grey):
    client, _ = service
    response = client.post("/v1/refocus", content=tiff(grey), headers={"X-Correlation-Id": "mine-1"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/tiff"
    expected = restore(grey, tiny_package(1, name="tiny"), device="cpu", precision="fp32").pixels
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(response.content)), expected)
    assert response.headers[headers.MODEL_DIGEST] == tiny_package(1, name="tiny").digest
    assert response.headers[headers.CORRELATION_ID] == "mine-1"
    stages = headers.parse_server_timing(response.headers[headers.SERVER_TIMING])
    assert set(stages) == {"decode", "queue", "model", "encode"}
    assert stages["model"] > 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("color", [False, True])
def test_a_png_comes_back_as_a_png_of_the_same_kind(service, dtype, color):
    client, _ = service
    top = np.iinfo(dtype).max
    pixels = (np.random.default_rng(1).random((40, 50, 3) if color else (40, 50)) * top).astype(dtype)
    response = client.post("/v1/refocus", content=imagecodecs.png_encode(pixels))
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    back = imagecodecs.png_decode(response.content)
    assert (back.shape, back.dtype) == (pixels.shape, pixels.dtype)
    assert response.headers[headers.MODEL] == ("tinted" if color else "tiny")


@pytest.mark.parametrize("kind", ["equal", "green", "coloured", "coloured in one pixel"])
def test_fluorescence_saved_as_rgb_is_taken_for_fluorescence_unless_the_caller_says_otherwise(service, grey, kind):
    client, _ = service
    pixels = np.zeros((*grey.shape, 3), np.uint16)
    pixels[..., 1] = grey
    if kind != "green":
        pixels[..., 0] = pixels[..., 2] = grey
    if kind == "coloured":
        pixels[..., 2] //= 2
    if kind == "coloured in one pixel":
        pixels[17, 17, 0] += 1
    body = tiff(pixels, photometric="rgb")
    expected = "tinted" if kind.startswith("coloured") else "tiny"
    answer = client.post("/v1/refocus", content=body)
    assert answer.headers[headers.MODEL] == expected
    assert tifffile.imread(io.BytesIO(answer.content)).shape == pixels.shape
    said = client.post("/v1/refocus?modality=brightfield", content=body)
    assert said.headers[headers.MODEL] == "tinted"


def test_accept_decides_the_format(service, grey):
    client, _ = service
    body = tiff(grey)
    assert client.post("/v1/refocus", content=body, headers={"Accept": "image/png"}).content[:4] == b"\x89PNG"
    jpeg = imagecodecs.jpeg8_encode((grey >> 4).astype(np.uint8))
    assert client.post("/v1/refocus", content=jpeg).headers["content-type"] == "image/png"
    refused = client.post("/v1/refocus", content=body, headers={"Accept": "text/html"})
    assert problem(refused)["status"] == 406


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/png, image/tiff", "image/tiff"),
        ("image/png, */*;q=0.1", "image/tiff"),
        ("*/*", "image/tiff"),
        ("image/png", None),
        ("image/tiff;q=0, */*", None),
    ],
)
def test_a_stack_comes_in_the_first_format_that_can_hold_it_or_is_refused_before_the_work(
    service, grey, accept, media, monkeypatch
):
    client, restorer = service
    if media is None:
        monkeypatch.setattr(restorer, "restore", None)
    response = client.post("/v1/refocus", content=tiff(np.stack([grey, grey])), headers={"Accept": accept})
    if media is None:
        assert "Accept image/tiff" in problem(response)["detail"]
        assert response.status_code == 406
    else:
        assert (response.status_code, response.headers["content-type"]) == (200, media)


def test_what_is_accepted_with_quality_zero_does_not_come(service, grey):
    client, _ = service
    for body in (tiff(grey), imagecodecs.png_encode(grey)):
        for accept, media in (
            ("image/tiff;q=0, */*", "image/png"),
            ("image/*, image/png;q=0", "image/tiff"),
            ("image/tiff;q=0.5, image/png;q=0.4", "image/tiff"),
            ("*/*", "image/tiff" if body[:2] == b"II" else "image/png"),
        ):
            answer = client.post("/v1/refocus", content=body, headers={"Accept": accept})
            assert answer.headers["content-type"] == media, accept


def test_a_form_with_one_file_is_the_same_as_a_raw_body(service, grey):
    client, _ = service
    raw = client.post("/v1/refocus", content=tiff(grey))
    form = client.post("/v1/refocus", files={"image": ("a.tif", tiff(grey), "image/tiff")})
    assert form.content == raw.content
    two = client.post("/v1/refocus", files={"a": ("a.tif", b"x"), "b": ("b.tif", b"y")})
    assert problem(two)["status"] == 400


def test_a_form_is_one_however_its_type_is_spelt(service, grey):
    client, _ = service
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.tif"\r\n\r\n' + tiff(grey)
    spelt = {"Content-Type": "Multipart/Form-Data; boundary=b"}
    answer = client.post("/v1/refocus", content=part + b"\r\n--b--\r\n", headers=spelt)
    assert answer.status_code == 200


def test_a_coded_body_is_refused_as_such(service, grey):
    client, _ = service
    coded = client.post("/v1/refocus", content=gzip.compress(tiff(grey)), headers={"Content-Encoding": "gzip"})
    said = problem(coded)
    assert (said["status"], said["type"]) == (415, "urn:refocus:problem:coded-body")
    assert "'gzip'" in said["detail"]
    plain = client.post("/v1/refocus", content=tiff(grey), headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_parameters_in_a_form_are_refused_with_where_they_belong(service, grey):
    client, _ = service
    asked = client.post("/v1/refocus", files={"image": ("a.tif", tiff(grey), "image/tiff")}, data={"na": "0.45"})
    said = problem(asked)
    assert said["status"] == 400
    assert "'na' beside the image" in said["detail"]
    assert "/v1/refocus?na=0.45" in said["detail"]


def test_ome_metadata_come_back_with_model_and_digest(service, grey):
    client, _ = service
    body = tiff(np.stack([grey, grey]), ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "TuJ1"]}})
    response = client.post("/v1/refocus", content=body)
    with tifffile.TiffFile(io.BytesIO(response.content)) as file:
        assert file.series[0].axes == "CYX"
        assert "DAPI" in file.ome_metadata
        assert tiny_package(1, name="tiny").digest in file.ome_metadata


def test_uncertainty_appends_the_half_widths(service, grey):
    client, _ = service
    response = client.post("/v1/refocus?uncertainty=true", content=tiff(grey))
    pages = tifffile.imread(io.BytesIO(response.content))
    assert pages.shape == (2, *grey.shape)
    # The tiny network was never calibrated, and the answer admits it.
    assert response.headers[headers.INTERVAL_SCALE] == "level=0.9; calibrated=false; planes=1-1; half_widths=2-2"
    assert (
        problem(client.post("/v1/refocus?uncertainty=true", content=tiff(grey), headers={"Accept": "image/png"}))[
            "status"
        ]
        == 406
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 415),
        (b"I am text, whatever my name ends in", 415),
        (b"II*\0" + b"\0" * 40, 422),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, 422),
    ],
)
def test_a_body_that_is_no_image_is_refused_in_words(service, body, status):
    client, _ = service
    said = problem(client.post("/v1/refocus", content=body))
    assert said["status"] == status
    assert len(said["detail"]) > 20


def test_a_truncated_tiff_is_refused(service, grey):
    client, _ = service
    assert problem(client.post("/v1/refocus", content=tiff(grey)[:-500]))["status"] == 422


def test_limits_hold_for_bodies_announced_and_unannounced(catalog, grey):
    crown(catalog, tiny_package(1, name="tiny"))
    config = ServingConfig(store="required", device="cpu", limits=ImageLimits(max_body_bytes=2000))
    client = TestClient(make_app(LocalBackend(Restorer(config, catalog)), config))
    assert problem(client.post("/v1/refocus", content=b"x" * 2001))["status"] == 413

    def drip():
        for _ in range(30):
            yield b"x" * 100

    assert problem(client.post("/v1/refocus", content=drip()))["status"] == 413


def test_parameters_that_do_not_fit_are_named(service, grey):
    client, _ = service
    for query, word in (("na=7", "na"), ("modality=xray", "modality"), ("on_out_of_range=ignore", "on_out_of_range")):
        said = problem(client.post(f"/v1/refocus?{query}", content=tiff(grey)))
        assert said["status"] == 422
        assert word in said["detail"]
    assert problem(client.post("/v1/refocus?model=nobody", content=tiff(grey)))["status"] == 404
    assert problem(client.get("/v2/else"))["status"] == 404


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("/v1/refocus?NA=0.45", "'NA' is not known, did you mean 'na'?"),
        ("/v1/refocus?pixelsize_um=0.5", "did you mean 'pixel_size_um'?"),
        ("/v1/refocus?bogus=1", "/v1/refocus takes blind, modality, model, na, on_out_of_range"),
        ("/v1/refocus?na=0.45&na=0.75", "'na' was given 2 times"),
        ("/v1/focus?on_out_of_range=fail", "'on_out_of_range' is not known. /v1/focus takes blind, modality, model"),
    ],
)
def test_parameters_that_would_be_ignored_are_refused_by_name(service, grey, asked, words):
    client, _ = service
    said = problem(client.post(asked, content=tiff(grey)))
    assert said["status"] == 422
    assert words in said["detail"]


def test_made_up_names_do_not_swell_an_answer(service, grey):
    client, _ = service
    query = "&".join(f"{'x' * 500}{number}=1" for number in range(100))
    assert len(problem(client.post(f"/v1/refocus?{query}", content=tiff(grey)))["detail"]) < 1000


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("wavelength_um=525", "expected micrometres, from 0.1 to 2, such as 0.525. Did you mean 0.525?"),
        ("pixel_size_um=325nm", "pixel_size_um='325nm' arrived; expected micrometres"),
        ("pixel_size_um=325nm", "Did you mean 0.325?"),
        ("pixel_size_um=0.5um", "Did you mean 0.5?"),
        ("na=7", "na='7' arrived; expected a numerical aperture, from 0.01 to 1.7"),
        ("modality=xray", "'xray' arrived; expected fluorescence, brightfield, phase_contrast"),
        ("uncertainty=maybe", "expected true or false"),
        (f"model={'m' * 200}", "in up to 160 characters"),
        ("model=tiny@dda2", "at least 6 digits of a digest"),
    ],
)
def test_a_parameter_that_does_not_fit_hears_what_arrived_and_in_what_unit_it_is_meant(service, grey, query, words):
    client, _ = service
    assert words in problem(client.post(f"/v1/refocus?{query}", content=tiff(grey)))["detail"]


def test_no_guess_is_made_where_nothing_fits(service, grey):
    client, _ = service
    for query in ("pixel_size_um=-1", "pixel_size_um=nan", "wavelength_um=9000", "na=0"):
        said = problem(client.post(f"/v1/refocus?{query}", content=tiff(grey)))
        assert (said["status"], "Did you mean" in said["detail"]) == (422, False)


def test_what_is_not_there_is_answered_with_what_is(service):
    client, _ = service
    assert "there are /healthz, /metrics, /readyz, /v1/focus, " in problem(client.get("/v2/else"))["detail"]
    for ask, path, allowed in ((client.get, "/v1/refocus", "POST"), (client.post, "/v1/models", "GET, HEAD")):
        response = ask(path)
        said = problem(response)
        assert (said["status"], response.headers["allow"]) == (405, allowed)
        assert f"is not answered at {path}; {allowed} is." in said["detail"]


def test_probes_may_ask_for_headers_alone(service):
    client, _ = service
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models"):
        assert client.head(path).status_code == 200
    assert client.head("/v1/refocus").status_code == 405


def test_focus_is_not_judged_on_less_than_a_measure_looks_at(service, grey):
    client, _ = service
    said = problem(client.post("/v1/focus", content=tiff(grey[:2, :40])))
    assert (said["status"], "40 x 2 pixels" in said["detail"]) == (422, True)
    # The last tile of these is one pixel high and two wide.
    large = np.tile(grey, (5, 4))[:257, :258]
    assert len(client.post("/v1/focus", content=tiff(large)).json()["tiles"]) == 4


def test_a_missing_champion_is_503_with_a_reason(catalog, config, grey):
    client = TestClient(make_app(LocalBackend(Restorer(config, catalog)), config))
    response = client.post("/v1/refocus", content=tiff(grey))
    assert "no champion" in problem(response)["detail"]
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "jobs/promote.py" in ready.json()["reason"]
    assert client.get("/healthz").status_code == 200


def test_what_nobody_foresaw_is_500_and_tells_nothing(config, grey):
    class Broken:
        async def restore(self, request):
            raise ZeroDivisionError("secret inner detail")

        async def state(self):
            raise ZeroDivisionError("secret inner detail")

    client = TestClient(make_app(Broken(), config), raise_server_exceptions=False)
    for response in (client.post("/v1/refocus", content=tiff(grey)), client.get("/v1/models")):
        assert problem(response)["status"] == 500
        assert "secret" not in response.text


def test_an_answer_that_takes_too_long_is_504_with_retry_after(grey):
    class Slow:
        async def restore(self, request):
            await asyncio.sleep(60)

        async def state(self):
            await asyncio.sleep(60)

    client = TestClient(make_app(Slow(), ServingConfig(request_timeout_s=0.05)))
    response = client.post("/v1/refocus", content=tiff(grey))
    assert problem(response)["status"] == 504
    assert "retry-after" in response.headers
    assert client.get("/readyz").status_code == 503


def test_out_of_range_is_marked_kept_or_refused(catalog, config, grey):
    made = tiny_package(1, name="tiny")
    # A range that nothing is inside of: every tile is beyond it.
    narrow = made.config.model_copy(update={"largest_blur_px": 1e-6})
    crown(catalog, type(made)(narrow, made.weights))
    client = TestClient(make_app(LocalBackend(Restorer(config, catalog)), config))
    marked = client.post("/v1/refocus", content=tiff(grey))
    assert marked.headers[headers.OUT_OF_RANGE] == "1.0000"
    kept = client.post("/v1/refocus?on_out_of_range=keep", content=tiff(grey))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(kept.content)), grey)
    refused = client.post("/v1/refocus?on_out_of_range=fail", content=tiff(grey))
    assert "further out of focus" in problem(refused)["detail"]


def test_padding_is_left_and_said(service, grey):
    client, _ = service
    specimen = 500 + grey // 20
    response = client.post("/v1/refocus", content=tiff(np.pad(specimen, ((0, 60), (0, 0)))))
    assert response.headers[headers.BLANKS] == "level 0"
    with tifffile.TiffFile(io.BytesIO(response.content)) as file:
        assert '"left_as_it_was": "level 0"' in file.pages[0].description
        assert not file.asarray()[len(specimen) :].any()
    assert headers.BLANKS not in client.post("/v1/refocus", content=tiff(specimen)).headers


def test_focus_reports_tiles_and_distance(service, grey):
    client, _ = service
    body = np.tile(grey, (6, 6))
    report = client.post("/v1/focus?pixel_size_um=0.325&na=0.75", content=tiff(body)).json()
    assert (report["height_px"], report["width_px"]) == body.shape
    assert len(report["tiles"]) == 4
    # tan(asin(0.75)) = 1.1339.
    assert report["defocus_um"] == pytest.approx(report["blur_radius_px"] * 0.325 / 1.1339, rel=1e-3)
    assert client.post("/v1/focus", content=tiff(body)).json()["defocus_um"] is None
    restored = client.post("/v1/refocus?pixel_size_um=0.325&na=0.75", content=tiff(body))
    assert float(restored.headers[headers.DEFOCUS_UM]) == pytest.approx(report["defocus_um"], abs=0.005)
    assert headers.DEFOCUS_UM not in client.post("/v1/refocus", content=tiff(body)).headers
    assert max(len(report["blur_map_px"][0]), len(report["blur_map_px"][0][0])) <= 64


def test_told_optics_reach_the_model_and_are_said_back(new_store, config):
    catalog = Catalog(new_store())
    crown(catalog, tiny_package(3, name="seeing", network=TINY.model_copy(update={"noise_levels": ((2e-3, 40.0),)})))
    restorer = Restorer(config, catalog)
    client = TestClient(make_app(LocalBackend(restorer), config))
    image = gaussian(coins()[:160, :160], 4.0, preserve_range=True).astype(np.uint16)
    system = OpticalSystem(numerical_aperture=0.95, wavelength_um=0.6, pixel_size_um=0.325)
    results = {}
    for query, optics in (("", None), ("?pixel_size_um=0.325&na=0.95&wavelength_um=0.6", system)):
        answer = client.post(f"/v1/refocus{query}", content=tiff(image))
        results[query] = tifffile.imread(io.BytesIO(answer.content))
        np.testing.assert_array_equal(
            results[query], restorer.restore(RestoreRequest(image[None], optics=optics)).planes[0]
        )
        said = answer.headers.get(headers.OPTICS)
        assert said == (None if optics is None else "na=0.95; wavelength_um=0.6; pixel_size_um=0.325")
    blind, told = results.values()
    assert (blind != told).any()
    ome = tiff(image, ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm"})
    assert headers.OPTICS not in client.post("/v1/refocus", content=ome).headers
    # What the caller says wins, the file fills in the rest, and green light is assumed.
    said = client.post("/v1/refocus?na=1.4", content=ome).headers[headers.OPTICS]
    assert said == "na=1.4; wavelength_um=0.55; pixel_size_um=0.2"
    assert headers.OPTICS not in client.post("/v1/refocus?blind=true", content=ome).headers


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("na=0.45", "neither you nor the file says pixel_size_um"),
        ("wavelength_um=0.6", "neither you nor the file says na and pixel_size_um"),
        ("na=0.75&pixel_size_um=20", "at 0.55 um, pixels of 0.066 to 0.88 um are expected"),
        ("na=0.75&pixel_size_um=0.325&blind=true", "blind, which ignores it"),
    ],
)
def test_optics_that_a_caller_gives_are_used_or_refused(service, grey, query, words):
    client, _ = service
    for route in ("/v1/refocus", "/v1/focus"):
        said = problem(client.post(f"{route}?{query}", content=tiff(grey)))
        assert said["status"] == 422
        assert words in said["detail"]


def test_docs_models_and_metrics_answer(service, grey):
    client, _ = service
    client.post("/v1/refocus", content=tiff(grey))
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()
    assert {"/v1/refocus", "/v1/focus", "/v1/models", "/healthz", "/readyz"} <= set(described["paths"])
    assert {"413", "415", "422", "503"} <= set(described["paths"]["/v1/refocus"]["post"]["responses"])
    assert [model["name"] for model in client.get("/v1/models").json()] == ["tinted", "tiny"]
    metrics = client.get("/metrics").text
    assert 'refocus_stage_seconds_count{model="tiny@' in metrics
