"""What the job of ingest is told, before it looks for a store."""

from __future__ import annotations

import pytest
from rich.console import Console

from refocus.errors import ConfigurationError
from refocus.workflows.ingest import ingest


@pytest.mark.parametrize(("answers", "said"), [
    ({"modality": "fluorescense"}, r"modality: .*'fluorescence', 'brightfield'.*'fluorescense' came"),
    ({"pixel_size_um": -1.0, "z_step_um": 0.0}, r"pixel_size_um: .*-1\.0 came\nz_step_um: .*0\.0 came"),
])  # fmt: skip
def test_an_answer_that_cannot_be_is_named_with_what_it_was(answers, said):
    with pytest.raises(ConfigurationError, match=said):
        ingest(raw="raw", dataset="plate7", version=None, answers=answers, console=Console(quiet=True))
