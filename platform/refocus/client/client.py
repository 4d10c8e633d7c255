"""Images to a Refocus service and back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx
import numpy as np
import numpy.typing as npt

from refocus.client.retry import RetryPolicy, error_for, pause_before
from refocus.errors import ConfigurationError, ServiceFailed, UnsupportedImage
from refocus.wire import headers
from refocus.wire.codec import decode, encode, from_array, sniff
from refocus.wire.files import write_whole
from refocus.wire.image import MEDIA_TYPES, ImageLimits

# What comes back was asked for: the limits guard against garbage, not against size.
_ANSWER_LIMITS = ImageLimits(max_body_bytes=2**34, max_pixels=2**32, max_pages=2**16, max_decoded_bytes=2**34)

OnOutOfRange = Literal["mark", "keep", "fail"]


@dataclass(frozen=True, slots=True)
class Refocused:
    """An image that came back.

    Parameters
    ----------
    pixels : ndarray
        Shape and dtype of what was sent.
    model, digest : str
        What made it.
    out_of_range_share : float
        Of the image that is further out of focus than the model was trained for.
    half_width : ndarray or None
        Of the 90% interval, where it was asked for; dtype of the image.
    calibrated : bool or None
        Whether that interval was calibrated on measured errors; None where it was not asked for.
    optics : mapping or None
        What the blur was read with (``na``, ``wavelength_um``, ``pixel_size_um``); None where nobody told.
    defocus_um : float or None
        Estimated distance from focus, unsigned, where `optics` are known.
    timings_ms : mapping
        The service's own: decode, queue, model, encode.
    correlation_id : str
    """

    pixels: npt.NDArray[Any]
    model: str
    digest: str
    out_of_range_share: float
    half_width: npt.NDArray[Any] | None
    calibrated: bool | None
    optics: Mapping[str, float] | None
    defocus_um: float | None
    timings_ms: Mapping[str, float]
    correlation_id: str


FocusResult = Mapping[str, Any]


class Client:
    """A connection to one service; safe to share between threads, and a context manager.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8000``.
    timeout_s : float
        Of one attempt, from the last byte sent to the first received.
    retries : int
        How often a request is made again where the service is busy, restarting, or the connection broke. Restoring
        changes nothing, so making a request twice does no harm.
    patience_s : float
        No retry begins later than this after the first attempt.
    transport : httpx.BaseTransport, optional
        In place of the network.

    Examples
    --------
    >>> from refocus.client import Client
    >>> client = Client("http://127.0.0.1:8000")
    >>> sharp = client.refocus(blurred)  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 130.0,
        retries: int = 6,
        patience_s: float = 180.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{url!r} is no address; expected http://HOST:PORT or https://HOST.")
        self._policy = RetryPolicy(retries=retries, patience_s=patience_s)
        timeout = httpx.Timeout(timeout_s, connect=min(10.0, timeout_s))
        # Localhost and lab servers are not reached through a proxy that the environment may name for the web.
        self._http = httpx.Client(
            base_url=url.rstrip("/"), timeout=timeout, transport=transport, trust_env=not _is_local(url)
        )

    def refocus(
        self, image: npt.NDArray[Any], *, pixel_size_um: float | None = None, **options: Any
    ) -> npt.NDArray[Any]:
        """Return `image` in focus, in its own shape and dtype.

        Parameters
        ----------
        image : ndarray
            Integers of 8, 16 or 32 bit, or floats of 32 or 64:
            (Y, X), (Y, X, 3), or with leading axes, whose planes are restored one by one.
        pixel_size_um : float, optional
        **options
            As `refocus_detailed`.

        Raises
        ------
        RequestRefused, ServiceBusy, ServiceFailed
        UnsupportedImage
            If the array is no image that is restored.
        """
        return self.refocus_detailed(image, pixel_size_um=pixel_size_um, **options).pixels

    def refocus_detailed(
        self,
        image: npt.NDArray[Any],
        *,
        pixel_size_um: float | None = None,
        model: str | None = None,
        modality: str | None = None,
        na: float | None = None,
        wavelength_um: float | None = None,
        uncertainty: bool = False,
        on_out_of_range: OnOutOfRange = "mark",
    ) -> Refocused:
        """Return `image` in focus and what the service says about it; parameters and errors as `refocus`.

        Parameters
        ----------
        model : str, optional
            ``NAME``, ``NAME@champion``, ``NAME@challenger`` or ``NAME@DIGEST``.
        modality : {'fluorescence', 'brightfield', 'phase_contrast'}, optional
        na, wavelength_um : float, optional
            Of the optics, like `pixel_size_um`. Where aperture and pixels are known the blur is read more surely.
        uncertainty : bool
        on_out_of_range : {'mark', 'keep', 'fail'}
        """
        image = np.asarray(image)
        body = encode(from_array(image, pixel_size_um=pixel_size_um), "tiff")
        query = {"model": model, "modality": modality, "pixel_size_um": pixel_size_um, "na": na,
                 "wavelength_um": wavelength_um, "uncertainty": uncertainty or None,
                 "on_out_of_range": _unless(on_out_of_range, "mark")}  # fmt: skip
        response = self._post("/v1/refocus", body, query, accept="image/tiff", content_type="image/tiff")
        planes = decode(response.content, _ANSWER_LIMITS).planes
        half_width = None
        if uncertainty:
            middle = len(planes) // 2
            planes, half_width = planes[:middle], planes[middle:].reshape(image.shape)
        if planes.size != image.size or planes.dtype != image.dtype:
            raise ServiceFailed(
                f"{planes.shape} of {planes.dtype} came back for {image.shape} of {image.dtype}; is this a Refocus "
                "service of this version?",
                status=response.status_code,
            )
        said = response.headers
        return Refocused(
            pixels=planes.reshape(image.shape),
            model=said.get(headers.MODEL, ""),
            digest=said.get(headers.MODEL_DIGEST, ""),
            out_of_range_share=float(said.get(headers.OUT_OF_RANGE, 0.0)),
            half_width=half_width,
            calibrated=headers.parse_calibrated(said.get(headers.INTERVAL_SCALE, "")),
            optics=headers.parse_optics(said.get(headers.OPTICS, "")),
            defocus_um=float(said[headers.DEFOCUS_UM]) if headers.DEFOCUS_UM in said else None,
            timings_ms=headers.parse_server_timing(said.get(headers.SERVER_TIMING, "")),
            correlation_id=said.get(headers.CORRELATION_ID, ""),
        )

    def refocus_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        pixel_size_um: float | None = None,
        model: str | None = None,
        modality: str | None = None,
        na: float | None = None,
        wavelength_um: float | None = None,
        blind: bool = False,
        uncertainty: bool = False,
        on_out_of_range: OnOutOfRange = "mark",
    ) -> str:
        """Send the file `source` and write the answer to `target`; return the model's digest.

        The suffix of `target` decides the format: .tif, .tiff or .png. Metadata are kept. The file appears whole or
        not at all.

        Parameters
        ----------
        source, target : path
        blind : bool
            Ignore what the file says of its optics.
        **options
            As `refocus_detailed`; with `uncertainty` half widths follow the planes.

        Raises
        ------
        UnreadableImage
            If `source` is no image.
        UnsupportedImage
            If `target` is of a format that is not written.
        RequestRefused, ServiceBusy, ServiceFailed
        """
        source, target = Path(source), Path(target)
        accept = {".tif": "image/tiff", ".tiff": "image/tiff", ".png": "image/png"}.get(target.suffix.lower())
        if accept is None:
            raise UnsupportedImage(f"{target} would be no image that is written; expected .tif, .tiff or .png.")
        query = {"model": model, "modality": modality, "pixel_size_um": pixel_size_um, "na": na,
                 "wavelength_um": wavelength_um, "blind": blind or None, "uncertainty": uncertainty or None,
                 "on_out_of_range": _unless(on_out_of_range, "mark")}  # fmt: skip
        body = source.read_bytes()
        response = self._post("/v1/refocus", body, query, accept=accept, content_type=MEDIA_TYPES[sniff(body)])
        write_whole(target, response.content)
        return response.headers.get(headers.MODEL_DIGEST, "")

    def focus(
        self,
        image: npt.NDArray[Any],
        *,
        pixel_size_um: float | None = None,
        model: str | None = None,
        modality: str | None = None,
        na: float | None = None,
        wavelength_um: float | None = None,
    ) -> FocusResult:
        """Return how far out of focus an image is, where, and which tiles to scan again.

        Parameters as `refocus_detailed`.

        Raises
        ------
        RequestRefused, ServiceBusy, ServiceFailed
        """
        body = encode(from_array(np.asarray(image), pixel_size_um=pixel_size_um), "tiff")
        query = {"model": model, "modality": modality, "pixel_size_um": pixel_size_um, "na": na,
                 "wavelength_um": wavelength_um}  # fmt: skip
        return self._post("/v1/focus", body, query, accept="application/json", content_type="image/tiff").json()

    def models(self) -> list[dict[str, Any]]:
        """Return the models that serve."""
        return self._get("/v1/models").json()

    def ready(self) -> bool:
        """Return whether the service can restore images now; False also where nothing answers."""
        try:
            return self._http.get("/readyz", timeout=15.0).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return as soon as the service can restore images.

        Raises
        ------
        ServiceFailed
            If it cannot within `timeout_s`; the message holds what it last said.
        """
        deadline = time.monotonic() + timeout_s
        said = "nothing answers"
        while time.monotonic() < deadline:
            try:
                response = self._http.get("/readyz", timeout=15.0)
                if response.status_code == 200:
                    return
                said = response.text[:500]
            except httpx.TransportError as error:
                said = str(error) or type(error).__name__
            time.sleep(0.25)
        raise ServiceFailed(f"{self._http.base_url} is not ready after {timeout_s:g} s: {said}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str) -> httpx.Response:
        return self._insist(lambda extra: self._http.get(path, headers=extra))

    def _post(
        self, path: str, body: bytes, query: Mapping[str, Any], *, accept: str, content_type: str
    ) -> httpx.Response:
        asked = {name: value for name, value in query.items() if value is not None}
        given = {"Accept": accept, "Content-Type": content_type}
        return self._insist(lambda extra: self._http.post(path, content=body, params=asked, headers={**given, **extra}))

    def _insist(self, attempt: Callable[[dict[str, str]], httpx.Response]) -> httpx.Response:
        # One id for all attempts: the service's log shows them as one request.
        correlation_id = uuid.uuid4().hex
        started = time.monotonic()
        for number in range(self._policy.retries + 1):
            response: httpx.Response | None = None
            lost: httpx.TransportError | None = None
            try:
                response = attempt({headers.CORRELATION_ID: correlation_id})
                if response.is_success:
                    return response
            except httpx.TransportError as error:
                lost = error
            pause_s = pause_before(number, response, self._policy)
            late = time.monotonic() - started + (pause_s or 0.0) > self._policy.patience_s
            if pause_s is None or number == self._policy.retries or late:
                raise error_for(response, lost, str(self._http.base_url), correlation_id) from lost
            time.sleep(pause_s)
        raise AssertionError("unreachable")


def _unless(value: str, usual: str) -> str | None:
    return None if value == usual else value


def _is_local(url: str) -> bool:
    return (httpx.URL(url).host or "") in ("localhost", "127.0.0.1", "::1")
