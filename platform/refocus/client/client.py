"""Images to a Refocus service and back."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from refocus.client.answers import Answered, Refocused, answered, document, image_body, refocused
from refocus.client.retry import RetryPolicy, error_for, pause_before
from refocus.errors import ConfigurationError, ServiceFailed, UnsupportedImage
from refocus.wire import headers
from refocus.wire.codec import CONTAINER_OF, encode, from_array, sniff
from refocus.wire.files import check_target, write_whole
from refocus.wire.headers import OnOutOfRange
from refocus.wire.image import MEDIA_TYPES

FocusResult = Mapping[str, Any]


class Client:
    """A connection to one service; safe to share between threads, and a context manager.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8000``.
    timeout_s : float
        Of one attempt, from the last byte sent to the first received; the service itself gives up after 120.
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
        if not 0 < timeout_s < math.inf:
            raise ConfigurationError(f"timeout_s is {timeout_s}; expected seconds above 0.")
        self._timeout_s = timeout_s
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
        ConfigurationError
            If the pixel size is no length, or this client was closed.
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
        image = _native(image)
        body = encode(from_array(image, pixel_size_um=pixel_size_um), "tiff")
        query = _restoring(
            uncertainty, on_out_of_range,
            model=model, modality=modality, pixel_size_um=pixel_size_um, na=na, wavelength_um=wavelength_um,
        )  # fmt: skip
        response = self._post("/v1/refocus", body, query, accept="image/tiff", content_type="image/tiff")
        return refocused(response, image, uncertainty=uncertainty)

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
    ) -> Answered:
        """Send the file `source` and write the answer to `target`; return what the service says of it.

        The suffix of `target` decides the format: .tif, .tiff or .png. Metadata are kept. The file appears whole or
        not at all.

        Parameters
        ----------
        source, target : path
        blind : bool
            Ignore what the file says of its optics.
        pixel_size_um, model, modality, na, wavelength_um, uncertainty, on_out_of_range
            As `refocus_detailed`; with `uncertainty` half widths follow the planes.

        Raises
        ------
        UnreadableImage
            If `source` is no image.
        UnsupportedImage
            If `target` is of a format that is not written.
        ConfigurationError
            If its folder is not there, it cannot be written, or it is `source` itself.
        RequestRefused, ServiceBusy, ServiceFailed
        """
        source, target = Path(source), Path(target)
        container = CONTAINER_OF.get(target.suffix.lower())
        if container is None:
            raise UnsupportedImage(f"{target} would be no image that is written; expected .tif, .tiff or .png.")
        if not target.parent.is_dir():
            raise ConfigurationError(f"{target.parent} is no folder; make it first, the answer goes there.")
        check_target(target, source, overwrite=True)
        query = _restoring(
            uncertainty, on_out_of_range, blind=blind or None,
            model=model, modality=modality, pixel_size_um=pixel_size_um, na=na, wavelength_um=wavelength_um,
        )  # fmt: skip
        body = source.read_bytes()
        media = MEDIA_TYPES[sniff(body)]
        response = self._post("/v1/refocus", body, query, accept=MEDIA_TYPES[container], content_type=media)
        body, said = image_body(response, container), answered(response)
        write_whole(target, body)
        return said

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
        body = encode(from_array(_native(image), pixel_size_um=pixel_size_um), "tiff")
        query = {"model": model, "modality": modality, "pixel_size_um": pixel_size_um, "na": na,
                 "wavelength_um": wavelength_um}  # fmt: skip
        response = self._post("/v1/focus", body, query, accept="application/json", content_type="image/tiff")
        return document(response, dict)

    def models(self) -> list[dict[str, Any]]:
        """Return the models that serve."""
        return document(self._get("/v1/models"), list)

    def ready(self) -> bool:
        """Return whether the service can restore images now; False also where nothing answers, or something else."""
        return self._not_ready() is None

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return as soon as the service can restore images.

        Raises
        ------
        ServiceFailed
            If it cannot within `timeout_s`; the message holds what it last said.
        """
        deadline = time.monotonic() + timeout_s
        said: str | None = "nothing answers"
        while time.monotonic() < deadline:
            said = self._not_ready()
            if said is None:
                return
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

    def _not_ready(self) -> str | None:
        """Say what the service lacks, or what answers in its place; None where it is ready."""
        self._check_open()
        try:
            response = self._http.get("/readyz", timeout=15.0)
            ready = response.status_code == 200 and document(response, dict).get("ready") is True
        except (httpx.TransportError, ServiceFailed) as error:
            return str(error) or type(error).__name__
        return None if ready else response.text[:500]

    def _check_open(self) -> None:
        if self._http.is_closed:
            raise ConfigurationError("This client was closed; make another, or ask inside its `with` block.")

    def _get(self, path: str) -> httpx.Response:
        return self._insist(lambda extra: self._http.get(path, headers=extra))

    def _post(
        self, path: str, body: bytes, query: Mapping[str, Any], *, accept: str, content_type: str
    ) -> httpx.Response:
        asked = {name: value for name, value in query.items() if value is not None}
        given = {"Accept": accept, "Content-Type": content_type}
        return self._insist(lambda extra: self._http.post(path, content=body, params=asked, headers={**given, **extra}))

    def _insist(self, attempt: Callable[[dict[str, str]], httpx.Response]) -> httpx.Response:
        self._check_open()
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
                raise error_for(
                    response, lost, str(self._http.base_url), correlation_id, timeout_s=self._timeout_s
                ) from lost
            time.sleep(pause_s)
        raise AssertionError("unreachable")


def _native(image: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an array in this machine's byte order: what comes back is in no other."""
    pixels = np.asarray(image)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _restoring(uncertainty: bool, on_out_of_range: OnOutOfRange, **said: Any) -> dict[str, Any]:
    """What is asked of a restoration; None for what the service does unasked."""
    usual = on_out_of_range == "mark"
    return said | {"uncertainty": uncertainty or None, "on_out_of_range": None if usual else on_out_of_range}


def _is_local(url: str) -> bool:
    return (httpx.URL(url).host or "") in ("localhost", "127.0.0.1", "::1")
