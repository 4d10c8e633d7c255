"""What the job of training is told, before it looks for a store."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from refocus.errors import ConfigurationError
from refocus.training.config import TrainingConfig
from refocus.workflows.train import train


@pytest.mark.parametrize("wait", [-1.0, math.nan])
def test_a_time_that_nobody_can_wait_is_refused(wait):
    with pytest.raises(ConfigurationError, match=f"--wait {wait:g} was given; expected a number of seconds"):
        train(
            TrainingConfig(name="t"), dataset="d", run="r", workers=None, resume=False, console=Console(quiet=True),
            wait=wait,
        )  # fmt: skip
