"""What a person reads: one line for an error, and names of files as they are."""

from __future__ import annotations

import pytest

from refocus.cli import clear_errors, console
from refocus.errors import ConfigurationError, PromotionRefused


@pytest.mark.parametrize(("error", "status", "said"), [
    (ConfigurationError("out.png exists."), 1, "ConfigurationError: out.png exists.\n"),
    (PromotionRefused("refused"), 3, "PromotionRefused: refused\n"),
    (FileNotFoundError(2, "No such file or directory", "a/b.png"), 1,
     "FileNotFoundError: a/b.png: No such file or directory.\n"),
    (OSError("the disk is gone"), 1, "OSError: the disk is gone\n"),
    (KeyboardInterrupt(), 130, "Interrupted.\n"),
])  # fmt: skip
def test_an_error_is_one_line_and_an_exit_status(error, status, said, capsys, monkeypatch):
    monkeypatch.delenv("REFOCUS_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == said


def test_a_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("REFOCUS_TRACEBACK", "1")
    with pytest.raises(PermissionError), clear_errors():
        raise PermissionError(13, "Permission denied", "a.tif")


def test_names_with_brackets_and_colons_are_printed_as_they_are(capsys):
    for name in ("[red]odd[/]", "[/]", "plate:smile:7", "[bold]x"):
        console().print(f"{name}.tif written")
        assert capsys.readouterr().out == f"{name}.tif written\n"
