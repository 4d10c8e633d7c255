import math

import pytest
import yaml

from refocus.data.sidecar import Answers, Rule, Sidecar
from refocus.errors import ConfigurationError


def sidecar(text: str) -> Sidecar:
    return Sidecar.parse(text, source="raw/acquisition.yaml")


def test_first_matching_rule_answers():
    answers = Answers(
        {"raw": sidecar("rules: [{match: 'nuclei/*', modality: fluorescence}, {match: '*', modality: brightfield}]")}
    )
    assert answers.rule_for("raw/nuclei/a.tif").modality == "fluorescence"
    assert answers.rule_for("raw/tissue/a.tif").modality == "brightfield"


def test_nearest_sidecar_wins():
    answers = Answers(
        {
            "raw": sidecar("rules: [{modality: brightfield}]"),
            "raw/day2": sidecar("rules: [{match: '*.tif', modality: fluorescence}]"),
        }
    )
    assert answers.rule_for("raw/day2/a.tif").modality == "fluorescence"
    assert answers.rule_for("raw/day2/a.png").modality == "brightfield"


def test_command_line_fills_what_a_rule_leaves_open_and_no_more():
    answers = Answers({"raw": sidecar("rules: [{z_step_um: 0.5}]")}, Rule(z_step_um=2.0, pixel_size_um=0.325))
    assert answers.rule_for("raw/a.tif").z_step_um == 0.5
    assert answers.rule_for("raw/a.tif").pixel_size_um == 0.325


def test_specimen_pattern_of_a_rule_is_used():
    answers = Answers({"raw": sidecar(r"rules: [{specimen: '(slide\d+)_.*'}]")})
    assert answers.specimen_for("raw/slide3_t4.tif") == "slide3"


@pytest.mark.parametrize(
    "text",
    ["rules: [{modalitty: fluorescence}]", "rules: [{modality: xray}]", "[", "just words", "rules: [{z_step_um: -1}]"],
)
def test_a_sidecar_that_is_not_understood_is_refused_by_name(text):
    with pytest.raises(ConfigurationError, match=r"raw/acquisition\.yaml"):
        sidecar(text)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"modality": "confocal"}, "modality: .*; 'confocal' came"),
        ({"pixel_size_um": 325}, "pixel_size_um: .* 100; 325 came"),
        ({"wavelength_um": 525.0}, "wavelength_um: .* 2; 525.0 came"),
        ({"z_step_um": math.inf}, "z_step_um: .*; inf came"),
        ({"axes": "zyx"}, "axes: 'zyx' came; expected letters of TCZYXS"),
        ({"specimen": "slide.*"}, "specimen: .* has no group; expected"),
        ({"specimen": "(slide"}, "specimen: .* is not a regular expression"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_before_any_image_is_read(answers, said):
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        Rule.answering(answers)
    with pytest.raises(ConfigurationError, match=rf"\n  rules\.0\.{said}"):
        sidecar(f"rules: [{yaml.safe_dump(answers, default_flow_style=True)}]")
