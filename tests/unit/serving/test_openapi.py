"""What ``/openapi.json`` says: what generators of clients and readers of ``/docs`` go by."""

from __future__ import annotations

import pytest

from refocus.serving.config import ServingConfig
from refocus.serving.http import make_app
from refocus.wire.problem import Problem


@pytest.fixture(scope="module")
def described() -> dict:
    return make_app(None, ServingConfig()).openapi()


@pytest.mark.parametrize("route", ["/v1/refocus", "/v1/focus"])
def test_each_problem_is_described_once_and_shown_as_it_would_come(described, route):
    answers = described["paths"][route]["post"]["responses"]
    assert {"400", "404", "405", "408", "413", "415", "422", "500", "503", "504"} <= set(answers)
    assert "429" not in answers
    for status, answer in answers.items():
        assert "X-Correlation-Id" in answer["headers"]
        assert ("Retry-After" in answer["headers"]) == (status in ("503", "504"))
        if status == "200":
            continue
        content = answer["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert Problem.model_validate(content["example"]).status == int(status)
    assert described["components"]["schemas"]["Problem"]["required"] == ["title", "status"]


def test_who_wins_where_file_and_caller_speak_of_the_optics_is_said(described):
    parameters = {each["name"]: each for each in described["paths"]["/v1/focus"]["post"]["parameters"]}
    for name in ("pixel_size_um", "na", "wavelength_um"):
        assert "wins over what the file says" in parameters[name]["description"]
