"""Objects in one bucket, with conditional writes; every failure is one of our errors."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from botocore import exceptions as boto

from refocus.errors import (
    BucketMissing,
    ConfigurationError,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreAccessDenied,
    StoreError,
    StoreUnreachable,
)
from refocus.io.settings import StoreSettings

# Back-off with full jitter, as botocore's: workers that failed together do not come back together.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 20.0
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401"}
_MISSING = {"NoSuchKey", "NotFound", "404"}
_LOST_RACE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
#: Files of that size or more are sent in parts: a broken connection costs one, and 5 GB is the most of one PUT.
PART_BYTES = 64 * 2**20

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object without sending it."""

    key: str
    size_bytes: int
    etag: str


class ObjectStore:
    """One bucket.

    Parameters
    ----------
    settings : StoreSettings

    Notes
    -----
    Safe to share between threads. Pickles as its settings: a worker builds its own connections.

    All methods raise `StoreUnreachable`, `StoreAccessDenied` or `BucketMissing` where they apply.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[StoreSettings]]:
        return ObjectStore, (self.settings,)

    @cached_property
    def _client(self) -> Any:
        return self.settings.client()

    def uri(self, key: str = "") -> str:
        """Return the address of `key`."""
        return f"s3://{self.settings.bucket}/{key}"

    def key_of(self, address: str) -> str:
        """Return the key that an address names, ``s3://BUCKET/KEY`` or the key itself, without outer slashes.

        Raises
        ------
        ConfigurationError
            If the address is of another bucket.
        """
        if not address.startswith("s3://"):
            return address.strip("/")
        bucket, _, key = address.removeprefix("s3://").partition("/")
        if bucket != self.settings.bucket:
            raise ConfigurationError(
                f"{address} is in bucket {bucket!r}, but the store is set to {self.settings.bucket!r}; "
                "set REFOCUS_BUCKET to the bucket that is meant."
            )
        return key.strip("/")

    def get(self, key: str) -> bytes:
        """Return a whole object.

        Raises
        ------
        ObjectMissing
        """
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return a whole object and its ETag, for a later `replace`.

        Raises
        ------
        ObjectMissing
        """

        def request() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]

        return self._insisting(key, request)

    def get_if_changed(self, key: str, etag: str | None) -> tuple[bytes, str] | None:
        """Return the object and its ETag, or None if it still is the one that `etag` names.

        Raises
        ------
        ObjectMissing
        """
        if etag is None:
            return self.get_with_etag(key)

        def request() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=key, IfNoneMatch=etag)
            return answer["Body"].read(), answer["ETag"]

        try:
            return self._insisting(key, request)
        except _NotModifiedError:
            return None

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Return the bytes ``start`` to ``stop`` (exclusive) of an object; fewer where the object ends before.

        Raises
        ------
        ObjectMissing
        ObjectChanged
            If `etag` is given and the object is no longer that one.
        StoreError
            If the object ends before `start`.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"bytes {start} to {stop} are no range; expected 0 <= start <= stop.")
        if start == stop:
            return b""
        condition = {} if etag is None else {"IfMatch": etag}

        def request() -> bytes:
            answer = self._client.get_object(
                Bucket=self.settings.bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
            )
            data = answer["Body"].read()
            # A gateway that does not know ranges sends everything, with status 200.
            return data if "ContentRange" in answer else data[start:stop]

        return self._insisting(key, request)

    def head(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object.

        Raises
        ------
        ObjectMissing
        """
        with self._translated(key):
            answer = self._client.head_object(Bucket=self.settings.bucket, Key=key)
            return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        try:
            self.head(key)
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix`, in the order of their keys."""
        with self._translated(prefix):
            paginator = self._client.get_paginator("list_objects_v2")
            pages = iter(paginator.paginate(Bucket=self.settings.bucket, Prefix=prefix))
        while True:
            # What the caller does with an entry is none of the store's errors: nothing is yielded in here.
            with self._translated(prefix):
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                yield ObjectInfo(entry["Key"], entry["Size"], entry["ETag"])

    def put(self, key: str, data: bytes) -> str:
        """Write an object, whatever was there, and return its ETag."""
        return self._put(key, data)

    def put_file(self, key: str, path: Path) -> str:
        """Write a file of any size, in parts where it is large, and return its ETag, which `etag_of_file` foretells."""
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=2)
        with self._translated(key):
            try:
                self._client.upload_file(str(path), self.settings.bucket, key, Config=parts)
            except S3UploadFailedError as error:
                # boto3 wraps what happened in a text of its own.
                raise error.__context__ or error from None
        return self.head(key).etag

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not be there yet, and return its ETag.

        Raises
        ------
        ObjectExists
        """
        try:
            return self._put(key, data, IfNoneMatch="*")
        except ObjectChanged as lost:
            if (own := self._own_write(key, data, lost)) is not None:
                return own
            raise ObjectExists(f"{self.uri(key)} exists already and is never overwritten.") from None

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write an object only if it still is the one that `etag` names, and return the new ETag.

        Raises
        ------
        ObjectChanged
            If somebody was faster.
        ObjectMissing
        """
        try:
            return self._put(key, data, IfMatch=etag)
        except ObjectChanged as lost:
            if (own := self._own_write(key, data, lost)) is not None:
                return own
            raise

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with self._translated(key):
            self._client.delete_object(Bucket=self.settings.bucket, Key=key)

    def abandon_uploads(self, prefix: str) -> tuple[str, ...]:
        """End uploads in parts that nobody will finish, and return their keys: what they sent takes space unseen."""
        with self._translated(prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.settings.bucket, Prefix=prefix
            )
            begun = [entry for page in pages for entry in page.get("Uploads", ()) if entry["Key"].startswith(prefix)]
            for entry in begun:
                with contextlib.suppress(self._client.exceptions.NoSuchUpload):
                    self._client.abort_multipart_upload(
                        Bucket=self.settings.bucket, Key=entry["Key"], UploadId=entry["UploadId"]
                    )
        return tuple(entry["Key"] for entry in begun)

    def check_bucket(self) -> None:
        """Ask for the bucket, so that a wrong setting shows before work begins.

        Raises
        ------
        BucketMissing
        StoreAccessDenied
        StoreUnreachable
        """
        with self._translated("", bucket_call=True):
            self._client.head_bucket(Bucket=self.settings.bucket)

    def create_bucket(self) -> None:
        """Make the bucket if it is not there."""
        with self._translated(""), contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=self.settings.bucket)

    def _own_write(self, key: str, data: bytes, lost: ObjectChanged) -> str | None:
        # A write whose answer was lost is sent again, and then loses to itself: the retry and the bytes tell.
        if not _was_retried(lost.__cause__):
            return None
        there, etag = self.get_with_etag(key)
        return etag if there == data else None

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        with self._translated(key):
            return self._client.put_object(Bucket=self.settings.bucket, Key=key, Body=data, **condition)["ETag"]

    def _insisting(self, key: str, request: Callable[[], Answer]) -> Answer:
        # botocore retries a request until its headers are there, but not a body that breaks off midway.
        attempts = self.settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                with self._translated(key):
                    return request()
            except _BrokenBodyError as error:
                if attempt == attempts:
                    raise StoreUnreachable(
                        f"{self.uri(key)} at {self.settings.endpoint_url or 'AWS'} broke off midway {attempt} times; "
                        f"the last said: {error}. Is something between here and the store cutting connections?"
                    ) from error
                time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)))
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _translated(self, key: str, *, bucket_call: bool = False) -> Iterator[None]:
        where = f"{self.uri(key)} at {self.settings.endpoint_url or 'AWS'}"
        try:
            yield
        except boto.ClientError as error:
            raise _error_for(error, where, self.settings, bucket_call=bucket_call) from error
        except (boto.ResponseStreamingError, boto.IncompleteReadError, boto.ReadTimeoutError) as error:
            raise _BrokenBodyError(str(error)) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
            raise StoreAccessDenied(f"{where}: {error} Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from error
        except (boto.HTTPClientError, boto.ConnectionError) as error:
            raise StoreUnreachable(
                f"{where} does not answer ({type(error).__name__}); is the store running? "
                "'refocus store up' starts the one of this machine."
            ) from error
        except boto.BotoCoreError as error:
            raise StoreError(f"{where}: {error}") from error
        except KeyError as error:
            raise StoreError(
                f"{where} answers without {error}: is that an object store, and is no login page in between?"
            ) from error


class _BrokenBodyError(StoreUnreachable):
    """A body broke off midway: worth another try."""


class _NotModifiedError(StoreError):
    """304: the object still is the one that the caller has."""


def etag_of_file(path: Path) -> str:
    """Return the ETag, without quotes, that `ObjectStore.put_file` gives a file: an MD5, of parts if it is large."""
    with path.open("rb") as file:
        if path.stat().st_size < PART_BYTES:
            return hashlib.file_digest(file, _md5).hexdigest()
        parts = [_md5(part).digest() for part in iter(lambda: file.read(PART_BYTES), b"")]
    return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def _was_retried(error: BaseException | None) -> bool:
    if not isinstance(error, boto.ClientError):
        return False
    return int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0


def _error_for(error: boto.ClientError, where: str, settings: StoreSettings, *, bucket_call: bool) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket" or (bucket_call and status == 404):
        return BucketMissing(
            f"{where}: there is no bucket {settings.bucket!r}; create it, or name another with REFOCUS_BUCKET."
        )
    if code in _MISSING or status == 404:
        return ObjectMissing(f"{where}: there is no such object.")
    if status == 304:
        return _NotModifiedError(where)
    if code in _LOST_RACE or status == 412:
        return ObjectChanged(f"{where} was changed by somebody else in the meantime.")
    if code in _DENIED or status in (401, 403):
        return StoreAccessDenied(
            f"{where} refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and what they may do in this bucket."
        )
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return StoreUnreachable(f"{where} keeps answering {status} {code} after {settings.attempts} attempts.")
    return StoreError(f"{where}: {code or status}: {error}")
