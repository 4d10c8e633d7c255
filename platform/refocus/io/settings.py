"""Where the object store is and who asks: one value that builds every client."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from refocus.errors import ConfigurationError

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

DEFAULT_BUCKET = "refocus"
DEFAULT_REGION = "us-east-1"
# Any of these means that somebody has set AWS up: laptops, CI, pods and batch jobs each have their own.
_AWS_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def refocus_home() -> Path:
    """Return the folder of what Refocus keeps on this machine: REFOCUS_HOME, or the user's data folder."""
    if home := os.environ.get("REFOCUS_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "refocus"


class StoreSettings(BaseModel):
    """How to reach the object store.

    Parameters
    ----------
    bucket : str
    endpoint_url : str or None
        None for AWS itself.
    region : str
    access_key, secret_key : str or None
        None leaves the search to boto3's own chain (profiles, instance roles).
    attempts : int
        How often a request is tried in all before the store counts as unreachable.
    connect_timeout_s, read_timeout_s : float
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = DEFAULT_BUCKET
    endpoint_url: str | None = None
    region: str = DEFAULT_REGION
    access_key: str | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    attempts: int = Field(default=8, ge=1, le=50)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0)

    @field_validator("bucket")
    @classmethod
    def _is_bucket_name(cls, bucket: str) -> str:
        if not _BUCKET_NAME.fullmatch(bucket):
            raise ValueError(f"{bucket!r} is no bucket name: 3 to 63 of a-z, 0-9, '.' and '-'")
        return bucket

    @field_validator("endpoint_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]+", url):
            raise ValueError(f"{url!r} is no endpoint; expected http://HOST:PORT or https://HOST")
        return url

    @model_validator(mode="after")
    def _has_whole_credentials(self) -> StoreSettings:
        if (self.access_key is None) != (self.secret_key is None):
            given, lacking = ("access", "secret") if self.secret_key is None else ("secret", "access")
            raise ValueError(f"there is the {given} key but not the {lacking} key; give both, or neither")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> StoreSettings:
        """Read AWS's usual variables; without any, use the store of this machine if it runs.

        ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
        ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_PROFILE``, the roles of pods and batch jobs and, for the bucket,
        ``REFOCUS_BUCKET`` or ``S3_BUCKET``. A machine whose role shows in no variable sets ``AWS_ENDPOINT_URL``, such
        as ``https://s3.eu-central-1.amazonaws.com``.

        Raises
        ------
        ConfigurationError
            If nothing says where the store is, or a value does not fit.
        """
        env = os.environ if environment is None else environment
        if not any(env.get(name) for name in _AWS_VARIABLES):
            return cls._of_this_machine(env)
        values = {
            "bucket": env.get("REFOCUS_BUCKET") or env.get("S3_BUCKET") or DEFAULT_BUCKET,
            "endpoint_url": env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None,
            "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or DEFAULT_REGION,
            "access_key": env.get("AWS_ACCESS_KEY_ID") or None,
            "secret_key": env.get("AWS_SECRET_ACCESS_KEY") or None,
            "session_token": env.get("AWS_SESSION_TOKEN") or None,
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _unfit(error) from None

    @classmethod
    def _of_this_machine(cls, env: Mapping[str, str]) -> StoreSettings:
        from refocus.io.local_store import LocalStore

        status = LocalStore().status()
        if status.settings is None or not status.running:
            raise ConfigurationError(
                "no object store is configured: set AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID (or AWS_PROFILE) for yours, "
                f"or start one on this machine with 'refocus store up' (looked in {status.folder})."
            )
        bucket = env.get("REFOCUS_BUCKET") or env.get("S3_BUCKET")
        if not bucket:
            return status.settings
        try:
            return cls.model_validate({**status.settings.model_dump(), "bucket": bucket})
        except ValidationError as error:
            raise _unfit(error) from None

    def environment(self) -> dict[str, str]:
        """Return the variables that make `from_environment` give these settings in another process."""
        values = {
            "REFOCUS_BUCKET": self.bucket,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": _revealed(self.secret_key),
            "AWS_SESSION_TOKEN": _revealed(self.session_token),
        }
        return {name: value for name, value in values.items() if value is not None}

    def client(self) -> Any:
        """Build a boto3 S3 client: path addressing, bounded time-outs, retries with back-off."""
        import boto3
        from botocore.config import Config

        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if self.endpoint_url else "auto"},
            retries={"total_max_attempts": self.attempts, "mode": "standard"},
            connect_timeout=self.connect_timeout_s,
            read_timeout=self.read_timeout_s,
            max_pool_connections=32,
        )
        # A session of its own: boto3's default session is not safe to share between threads.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=_revealed(self.secret_key),
            aws_session_token=_revealed(self.session_token),
            config=config,
        )

    def pyarrow_filesystem(self) -> S3FileSystem:
        """Build the same connection for pyarrow, which does not read AWS_ENDPOINT_URL by itself."""
        from refocus.io.filesystem import PatientS3FileSystem

        return PatientS3FileSystem(self)


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _unfit(error: ValidationError) -> ConfigurationError:
    # Pydantic's own text repeats the values, and secrets are among them.
    reasons = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors(include_input=False))
    return ConfigurationError(f"the store's settings in the environment do not fit: {reasons}.")
