from __future__ import annotations

import pytest
from typer.testing import CliRunner

from refocus.cli.main import app
from refocus.errors import ConfigurationError


@pytest.mark.parametrize(("content", "said"), [
    (b"applications: [\n  - name: x\n", "is no YAML: while parsing"),
    (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is no YAML"),
    (b"", "is empty; expected a mapping with 'applications'"),
    (b"# nothing yet\n", "is empty"),
])  # fmt: skip
def test_a_serve_config_that_cannot_be_read_is_named(tmp_path, content, said):
    config = tmp_path / "service.yaml"
    config.write_bytes(content)
    found = CliRunner().invoke(app, ["config", "check", str(config)])
    assert isinstance(found.exception, ConfigurationError)
    assert f"{config}: {said}" in str(found.exception)
