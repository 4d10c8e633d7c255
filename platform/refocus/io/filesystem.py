"""pyarrow's connection to the store, as patient in another process as in this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

if TYPE_CHECKING:
    from refocus.io.settings import StoreSettings


class PatientS3FileSystem(S3FileSystem):
    """An `S3FileSystem` that keeps its retries when it is pickled.

    pyarrow's own forgets them on the way to another process and then gives up after a second: a store that was down
    for five ended the workers that were writing a checkpoint.

    Parameters
    ----------
    settings : StoreSettings
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        scheme, _, host = (settings.endpoint_url or "").rpartition("://")
        secret, token = settings.secret_key, settings.session_token
        super().__init__(
            access_key=settings.access_key,
            secret_key=None if secret is None else secret.get_secret_value(),
            session_token=None if token is None else token.get_secret_value(),
            region=settings.region,
            endpoint_override=host.rstrip("/") or None,
            scheme=scheme or "https",
            connect_timeout=settings.connect_timeout_s,
            request_timeout=settings.read_timeout_s,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=settings.attempts),
            force_virtual_addressing=False,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientS3FileSystem, (self._settings,)
