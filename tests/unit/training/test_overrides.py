import pytest

from refocus.errors import ConfigurationError
from refocus.training.config import TrainingConfig
from refocus.training.overrides import with_overrides


def test_settings_reach_into_parts_and_keep_their_types():
    config = with_overrides(
        TrainingConfig(name="mine"), ["steps=700", "optics.in_focus_share=0.3", "optics.blur_radius_px=[0, 20]"]
    )
    assert (config.steps, config.optics.in_focus_share, config.optics.blur_radius_px) == (700, 0.3, (0.0, 20.0))
    assert TrainingConfig(name="mine").steps != 700


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("step=10", "steps"),
        ("optics.in_focus=0.3", "in_focus_share"),
        ("steps", "key=value"),
        ("steps=many", "valid integer"),
        ("batch_size=0", "\n  batch_size: .*greater than or equal to 1; 0 came$"),
        ("steps=[", "is no YAML"),
        ("steps.more=1", "has no parts"),
        ("seed=-1", "greater than or equal to 0"),
    ],
)
def test_a_setting_that_does_not_fit_says_what_would(assignment, said):
    with pytest.raises(ConfigurationError, match=said):
        with_overrides(TrainingConfig(name="mine"), [assignment])
