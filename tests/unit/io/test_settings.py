"""What the environment makes of the store's settings, and what the settings make."""

from __future__ import annotations

import pickle

import pytest

from refocus.errors import ConfigurationError
from refocus.io.settings import StoreSettings

AWS = {
    "AWS_ENDPOINT_URL": "http://s3.lab.example:9000",
    "AWS_ACCESS_KEY_ID": "reader",
    "AWS_SECRET_ACCESS_KEY": "do-not-print",
    "AWS_REGION": "eu-central-1",
    "S3_BUCKET": "microscopes",
}


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("REFOCUS_HOME", str(tmp_path))
    return tmp_path


def test_aws_variables_are_used_as_they_stand():
    settings = StoreSettings.from_environment(AWS)
    assert settings.endpoint_url == "http://s3.lab.example:9000"
    assert settings.access_key == "reader"
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == "do-not-print"
    assert (settings.region, settings.bucket) == ("eu-central-1", "microscopes")


def test_the_endpoint_for_s3_alone_wins_over_the_endpoint_for_all_of_aws():
    settings = StoreSettings.from_environment({**AWS, "AWS_ENDPOINT_URL_S3": "https://only-s3.example"})
    assert settings.endpoint_url == "https://only-s3.example"


def test_our_own_bucket_variable_wins_over_the_general_one():
    assert StoreSettings.from_environment({**AWS, "REFOCUS_BUCKET": "refocus-data"}).bucket == "refocus-data"


@pytest.mark.parametrize(
    "variable",
    ["AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"],
)
def test_roles_and_profiles_mean_aws_and_leave_credentials_to_its_own_chain(variable, empty_home):
    settings = StoreSettings.from_environment({variable: "somewhere", "S3_BUCKET": "microscopes"})
    assert settings.access_key is None
    assert settings.endpoint_url is None


def test_without_aws_and_without_a_local_store_the_error_says_how_to_start_one(empty_home):
    with pytest.raises(ConfigurationError, match="refocus store up") as caught:
        StoreSettings.from_environment({})
    assert str(empty_home) in str(caught.value)


def test_empty_variables_count_as_absent(empty_home):
    with pytest.raises(ConfigurationError, match="refocus store up"):
        StoreSettings.from_environment(dict.fromkeys(AWS, ""))


def test_half_a_pair_of_credentials_is_refused():
    half = {name: value for name, value in AWS.items() if name != "AWS_SECRET_ACCESS_KEY"}
    with pytest.raises(ConfigurationError, match="access key but not the secret key"):
        StoreSettings.from_environment(half)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("S3_BUCKET", "My Bucket", "no bucket name"),
        ("S3_BUCKET", "s3://microscopes", "no bucket name"),
        ("AWS_ENDPOINT_URL", "s3.lab.example:9000", "http://HOST:PORT"),
    ],
)
def test_a_value_that_does_not_fit_is_named_without_the_secret(variable, value, reason):
    with pytest.raises(ConfigurationError, match=reason) as caught:
        StoreSettings.from_environment({**AWS, variable: value})
    assert value in str(caught.value)
    assert "do-not-print" not in str(caught.value)


def test_secrets_do_not_show_when_settings_are_printed():
    assert "do-not-print" not in repr(StoreSettings.from_environment(AWS))


def test_settings_travel_to_another_process_by_pickle_and_by_environment():
    settings = StoreSettings.from_environment(AWS)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert StoreSettings.from_environment(settings.environment()) == settings


def test_the_boto3_client_has_our_endpoint_path_addressing_and_retries():
    client = StoreSettings(endpoint_url="http://127.0.0.1:1", access_key="a", secret_key="b", attempts=4).client()
    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    assert client.meta.region_name == "us-east-1"
    assert client.meta.config.s3["addressing_style"] == "path"
    assert client.meta.config.retries == {"total_max_attempts": 4, "mode": "standard"}


def test_the_pyarrow_filesystem_goes_to_our_endpoint_and_not_to_amazon():
    # Nothing listens on port 1: the error's text shows where pyarrow went.
    settings = StoreSettings(endpoint_url="http://127.0.0.1:1", access_key="a", secret_key="b", attempts=1)
    with pytest.raises(OSError, match=r"(?i)connect|NETWORK_CONNECTION"):
        settings.pyarrow_filesystem().get_file_info("bucket/key")
