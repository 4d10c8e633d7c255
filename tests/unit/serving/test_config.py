from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from refocus.errors import ConfigurationError
from refocus.serving.config import ServingConfig, check_serve_config

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = sorted((REPOSITORY / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_serve_config_of_the_repository_is_sound(path):
    assert check_serve_config(yaml.safe_load(path.read_text()), name=path.name) == []


@pytest.mark.parametrize(
    ("path", "key", "value", "said"),
    [
        ((), "http_option", {}, "config.http_option: is not known to Serve"),
        (("http_options",), "prot", 1, "http_options.prot"),
        (("applications", 0), "import_pat", "x", "applications.0.import_pat"),
        (("applications", 0, "args"), "conkurrency", 3, "args.conkurrency: is not known; is it misspelt?"),
        (("applications", 0, "args"), "concurrency", 0, "args.concurrency"),
        (("applications", 0, "args", "limits"), "max_pages", "many", "args.limits.max_pages"),
        (("applications", 0, "deployments", 0), "name", "Ingres", "none of Ingress, Restorer"),
        (("applications", 0, "deployments", 1), "max_ongoing_request", 64, "deployments.1.max_ongoing_request"),
        (("applications", 0, "deployments", 1, "autoscaling_config"), "max_replica", 4, "max_replica: is not known"),
        (("applications", 0, "deployments", 1), "max_queued_requests", -1, "the queue has no end"),
        (("http_options",), "request_timeout_s", None, "wait for ever"),
    ],
)
def test_what_serve_would_accept_in_silence_is_named(path, key, value, said):
    document = yaml.safe_load((REPOSITORY / "serve_configs" / "refocus.yaml").read_text())
    place = document
    for step in path:
        place = place[step]
    place[key] = value
    assert any(said in problem for problem in check_serve_config(document))


def test_a_document_that_is_no_mapping_is_refused():
    assert check_serve_config(["a"]) == ["config: holds a list; expected a mapping with 'applications'."]


def test_arguments_are_checked_before_anything_starts():
    assert ServingConfig.parse({}) == ServingConfig()
    with pytest.raises(ConfigurationError, match=r"args.polls: is not known; is it misspelt\?"):
        ServingConfig.parse({"polls": 1})
    with pytest.raises(ConfigurationError, match="not among models"):
        ServingConfig.parse({"models": ["a"], "default_model": "b"})
