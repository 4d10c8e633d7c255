from __future__ import annotations

from typer.testing import CliRunner

from refocus.cli.main import app
from refocus.errors import ConfigurationError


def test_a_plot_of_a_run_replaces_no_file_and_is_png(tmp_path):
    (tmp_path / "there.png").write_bytes(b"a figure")
    for name, said in (("there.png", "exists"), ("curve.pdf", "expected .png")):
        refused = CliRunner().invoke(app, ["runs", "plot", "plate7-a", str(tmp_path / name)])
        assert isinstance(refused.exception, ConfigurationError)
        assert said in str(refused.exception)
    assert (tmp_path / "there.png").read_bytes() == b"a figure"
