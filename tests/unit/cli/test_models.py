from __future__ import annotations

import pytest
from typer.testing import CliRunner

from refocus.cli import models
from refocus.cli.main import app
from refocus.errors import ConfigurationError, ModelMissing
from refocus.io.settings import StoreSettings
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.testing.service import tiny_package


def test_bundled_models_are_listed_where_there_is_no_store(monkeypatch):
    def none():
        raise ConfigurationError("no object store is configured")

    monkeypatch.setattr(models, "_catalog", none)
    said = CliRunner().invoke(app, ["models", "list"])
    assert said.exit_code == 0, said.output
    assert "no object store is configured" in said.output
    for name in bundled_names():
        row = next(line for line in said.output.splitlines() if f" {name} " in line)
        assert ModelPackage.bundled(name).digest[:12] in row
        assert "bundled" in row


def test_bundled_models_are_listed_beside_those_of_the_store(monkeypatch, catalog):
    monkeypatch.setattr(models, "_catalog", lambda: catalog)
    said = CliRunner().invoke(app, ["models", "list"])
    assert said.exit_code == 0, said.output
    assert said.output.count("bundled") == len(bundled_names())


@pytest.mark.parametrize(
    "command",
    ["verify", "gc", "show", "diff", "rollback --reason x", "promote --reason x"],
)
def test_a_model_that_was_never_published_is_not_called_sound_or_without_champion(monkeypatch, catalog, command):
    monkeypatch.setattr(StoreSettings, "from_environment", lambda: catalog.store.settings)
    catalog.publish(tiny_package(0, name="mine"))
    name, *options = command.split()
    said = CliRunner().invoke(app, ["models", name, "mien", *(["champion"] if name == "promote" else []), *options])
    assert isinstance(said.exception, ModelMissing)
    assert "no model 'mien'" in str(said.exception)
    assert "there is: mine." in str(said.exception)
