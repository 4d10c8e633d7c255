from __future__ import annotations

import time

import httpx
import numpy as np
import pytest

from refocus.client import Client
from refocus.errors import ConfigurationError, RequestRefused, ServiceBusy, ServiceFailed, UnsupportedImage
from refocus.wire import headers
from refocus.wire.codec import decode, encode
from refocus.wire.image import WireImage
from refocus.wire.problem import Problem

GREY = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint16)


def echo(request: httpx.Request) -> httpx.Response:
    """A service that gives back what it was sent, one grey level brighter."""
    image = decode(request.content)
    body = encode(WireImage(image.planes + 1))
    return httpx.Response(200, content=body, headers={headers.MODEL_DIGEST: "d" * 64, headers.OUT_OF_RANGE: "0.25"})


def problem(status: int, **extra: str) -> httpx.Response:
    said = Problem(title="No", status=status, detail="because", correlation_id="c-1").model_dump_json()
    return httpx.Response(status, content=said, headers={"Content-Type": headers.PROBLEM_JSON, **extra})


class Answers:
    """Gives each answer once, in order; the last one for ever."""

    def __init__(self, *answers) -> None:
        self.left = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer


def client(answers, **options) -> Client:
    return Client("http://lab:8000", transport=httpx.MockTransport(answers), **options)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3), (5, 30, 40), (2, 5, 30, 40), (5, 30, 40, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_come_back_in_their_own_shape_and_type(shape, dtype):
    image = np.ones(shape, dtype)
    restored = client(Answers(echo)).refocus(image)
    assert (restored.shape, restored.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(restored, image + 1)


def test_what_the_service_says_is_read():
    answer = client(Answers(echo)).refocus_detailed(GREY)
    assert (answer.digest, answer.out_of_range_share) == ("d" * 64, 0.25)
    assert (answer.optics, answer.defocus_um, answer.calibrated) == (None, None, None)


def test_what_the_blur_was_read_with_and_how_far_it_reaches_are_read():
    def told(request: httpx.Request) -> httpx.Response:
        answer = echo(request)
        answer.headers[headers.OPTICS] = headers.format_optics(0.75, 0.55, 0.325)
        answer.headers[headers.DEFOCUS_UM] = "3.25"
        answer.headers[headers.INTERVAL_SCALE] = headers.format_interval(calibrated=True, planes=1)
        return answer

    answer = client(Answers(told)).refocus_detailed(GREY)
    assert answer.optics == {"na": 0.75, "wavelength_um": 0.55, "pixel_size_um": 0.325}
    assert (answer.defocus_um, answer.calibrated) == (3.25, True)


def test_options_travel_as_a_query():
    answers = Answers(echo)
    client(answers).refocus(GREY, model="m@champion", on_out_of_range="fail", na=0.75)
    assert dict(answers.requests[0].url.params) == {"model": "m@champion", "na": "0.75", "on_out_of_range": "fail"}


def test_options_of_files_and_of_focus_are_those_that_there_are(tmp_path):
    (tmp_path / "in.tif").write_bytes(encode(WireImage(GREY[None])))
    answers = Answers(echo)
    asking = client(answers)
    for ask in (
        lambda **options: asking.refocus(GREY, **options),
        lambda **options: asking.refocus_file(tmp_path / "in.tif", tmp_path / "out.tif", **options),
        lambda **options: asking.focus(GREY, **options),
    ):
        with pytest.raises(TypeError, match="modle"):
            ask(modle="m")
    assert answers.requests == []
    asking.refocus_file(tmp_path / "in.tif", tmp_path / "out.tif", blind=True, uncertainty=True, model="m")
    assert dict(answers.requests[0].url.params) == {"model": "m", "blind": "true", "uncertainty": "true"}


def test_a_busy_service_is_asked_again_when_it_wishes(pauses):
    answers = Answers(problem(503, **{"Retry-After": "7"}), problem(429, **{"Retry-After": "1"}), echo)
    np.testing.assert_array_equal(client(answers).refocus(GREY), GREY + 1)
    # The wish, and up to a quarter second more so that clients do not come back together.
    assert 7.0 <= pauses[0] <= 7.25
    assert 1.0 <= pauses[1] <= 1.25
    ids = {request.headers[headers.CORRELATION_ID] for request in answers.requests}
    assert len(ids) == 1


@pytest.mark.parametrize(
    "lost", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("x")]
)
def test_a_lost_connection_is_tried_again(pauses, lost):
    np.testing.assert_array_equal(client(Answers(lost, lost, echo)).refocus(GREY), GREY + 1)
    assert pauses[0] < pauses[1] * 3


def test_refusals_are_not_repeated_and_say_why(pauses):
    answers = Answers(problem(422))
    with pytest.raises(RequestRefused, match=r"because \(HTTP 422, correlation id c-1\)") as refusal:
        client(answers).refocus(GREY)
    assert (len(answers.requests), pauses, refusal.value.status) == (1, [], 422)


def test_patience_and_retries_end(pauses):
    with pytest.raises(ServiceBusy) as busy:
        client(Answers(problem(503, **{"Retry-After": "2"})), retries=3).refocus(GREY)
    assert (len(pauses), busy.value.retry_after_s) == (3, 2.0)
    with pytest.raises(ServiceFailed, match="Is the service running"):
        client(Answers(httpx.ConnectError("refused")), retries=0).refocus(GREY)
    pauses.clear()
    with pytest.raises(ServiceBusy):
        client(Answers(problem(503, **{"Retry-After": "20"})), patience_s=5.0).refocus(GREY)
    assert pauses == []


def test_the_services_own_failure_is_not_repeated_but_a_proxys_is(pauses):
    with pytest.raises(ServiceFailed):
        client(Answers(problem(500))).refocus(GREY)
    assert pauses == []
    client(Answers(httpx.Response(500, text="Internal Server Error"), echo)).refocus(GREY)
    assert len(pauses) == 1


def test_an_answer_that_is_not_the_image_is_noticed():
    small = encode(WireImage(np.zeros((1, 8, 8), np.uint16)))
    named = {headers.MODEL_DIGEST: "d" * 64}
    for body, said, words in (
        (small, named, r"\(1, 8, 8\) of uint16 for \(30, 40\)"),
        (small[:-50], named, "cannot be read"),
        (small, {}, "without X-Refocus-Model-Digest"),
        (encode(WireImage(GREY[None]), "png"), named, "a PNG where a TIFF was asked for"),
        (small, {**named, headers.OUT_OF_RANGE: "much"}, "cannot be read"),
    ):
        for uncertainty in (False, True):
            with pytest.raises(ServiceFailed, match=words):
                client(Answers(httpx.Response(200, content=body, headers=said))).refocus_detailed(
                    GREY, uncertainty=uncertainty
                )


def test_a_login_page_is_no_answer_whatever_was_asked(tmp_path):
    page = httpx.Response(200, html="<html>Log in</html>")
    (tmp_path / "in.tif").write_bytes(encode(WireImage(GREY[None])))
    asking = client(Answers(page))
    for ask in (
        lambda: asking.refocus(GREY),
        lambda: asking.focus(GREY),
        asking.models,
        lambda: asking.refocus_file(tmp_path / "in.tif", tmp_path / "out.tif"),
        lambda: asking.wait_until_ready(0.01),
    ):
        with pytest.raises(ServiceFailed, match=r"text/html.*login page"):
            ask()
    assert not asking.ready()
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]
    with pytest.raises(ServiceFailed, match="expected list"):
        client(Answers(httpx.Response(200, json={"models": []}))).models()


def test_what_comes_back_can_be_written_to_and_is_in_native_byte_order():
    def doubled(request: httpx.Request) -> httpx.Response:
        planes = decode(request.content).planes
        return httpx.Response(
            200, content=encode(WireImage(np.concatenate([planes, planes]))), headers={headers.MODEL_DIGEST: "d" * 64}
        )

    for image in (GREY, GREY.astype(">u2"), GREY.astype(">f8")):
        answer = client(Answers(doubled)).refocus_detailed(image, uncertainty=True)
        for part in (answer.pixels, answer.half_width):
            np.testing.assert_array_equal(part, image)
            assert part.dtype == image.dtype.newbyteorder("=")
            part += 1
        np.testing.assert_array_equal(client(Answers(echo)).refocus(image), GREY + 1)


def test_arguments_that_cannot_be_meant_are_refused_before_anything_is_sent(tmp_path):
    answers = Answers(echo)
    for size_um in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="pixel_size_um"):
            client(answers).refocus(GREY, pixel_size_um=size_um)
    for options in ({"retries": -1}, {"patience_s": float("nan")}, {"timeout_s": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            client(answers, **options)
    with pytest.raises(UnsupportedImage, match=r"axis of 4.*image\[\.\.\., :3\]"):
        client(answers).refocus(np.zeros((30, 40, 4), np.uint8))
    (tmp_path / "in.tif").write_bytes(encode(WireImage(GREY[None])))
    with pytest.raises(ConfigurationError, match="is no folder"):
        client(answers).refocus_file(tmp_path / "in.tif", tmp_path / "nowhere" / "out.tif")
    with pytest.raises(ConfigurationError, match="the input itself"):
        client(answers).refocus_file(tmp_path / "in.tif", tmp_path / "in.tif")
    with client(answers) as closed:
        pass
    for ask in (lambda: closed.refocus(GREY), closed.models, closed.ready):
        with pytest.raises(ConfigurationError, match="was closed"):
            ask()
    assert answers.requests == []


def test_a_service_that_takes_too_long_is_told_from_one_that_is_not_there(pauses):
    with pytest.raises(ServiceFailed, match="timeout_s=7"):
        client(Answers(httpx.ReadTimeout("timed out")), retries=0, timeout_s=7.0).refocus(GREY)
    with pytest.raises(ServiceFailed, match="Is the service running"):
        client(Answers(httpx.ConnectTimeout("timed out")), retries=0).refocus(GREY)


def test_arrays_that_are_no_images_are_refused_before_they_are_sent():
    answers = Answers(echo)
    for array in (np.zeros(5, np.uint8), np.zeros((4, 4), np.int64), np.zeros((0, 4), np.uint8)):
        with pytest.raises(UnsupportedImage):
            client(answers).refocus(array)
    assert answers.requests == []


def test_files_appear_whole_or_not_at_all(tmp_path):
    (tmp_path / "in.tif").write_bytes(encode(WireImage(GREY[None])))
    said = client(Answers(echo)).refocus_file(tmp_path / "in.tif", tmp_path / "out.tif")
    assert (said.digest, said.out_of_range_share, said.blanks) == ("d" * 64, 0.25, "")
    with pytest.raises(RequestRefused):
        client(Answers(problem(413))).refocus_file(tmp_path / "in.tif", tmp_path / "other.tif")
    with pytest.raises(UnsupportedImage, match=r"\.tif, \.tiff or \.png"):
        client(Answers(echo)).refocus_file(tmp_path / "in.tif", tmp_path / "out.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_addresses_are_checked_and_readiness_is_a_question():
    with pytest.raises(ConfigurationError, match="no address"):
        Client("lab:8000")
    assert client(Answers(httpx.Response(200, json={"ready": True}))).ready()
    assert not client(Answers(problem(503))).ready()
    assert not client(Answers(httpx.ConnectError("refused"))).ready()
    with pytest.raises(ServiceFailed, match="not ready"):
        client(Answers(problem(503))).wait_until_ready(0.1)


def test_the_client_imports_neither_ray_nor_torch():
    import subprocess
    import sys

    code = "import sys, refocus.client; print([m for m in ('ray', 'torch', 'boto3', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
