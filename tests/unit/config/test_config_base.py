from typing import Annotated

import pytest
from pydantic import Field

from safemerge.config.base import CONTENT, FREE, LATER, StrictModel
from safemerge.config.study import EvaluatorSpec
from safemerge.testing.landscapes import landscape_study


class Inner(StrictModel):
    """A part."""

    rate: float = 1.0
    batch: Annotated[int, FREE] = 8
    clip: Annotated[float | None, LATER] = None


class Outer(StrictModel):
    """A declaration."""

    name: Annotated[str, FREE]
    data: Annotated[str, CONTENT]
    part: Inner = Field(default_factory=Inner)
    parts: list[Inner] = Field(default_factory=list)
    by_name: dict[str, Inner] = Field(default_factory=dict)
    lambda_: Annotated[float, LATER] = Field(default=0.5, alias="lambda")


def test_what_is_marked_does_not_count_at_any_depth():
    one = Outer(name="a", data="x", parts=[Inner()], by_name={"k": Inner(batch=2)})
    assert one.counted() == {
        "part": {"rate": 1.0},
        "parts": [{"rate": 1.0}],
        "by_name": {"k": {"rate": 1.0}},
    }


def test_a_later_field_counts_once_it_is_not_at_its_default():
    one = Outer.model_validate(
        {"name": "a", "data": "x", "part": {"clip": 2.0}, "lambda": 0.25, "parts": []}
    )
    assert one.counted()["part"] == {"rate": 1.0, "clip": 2.0}
    assert one.counted()["lambda"] == 0.25


def test_counting_leaves_the_declaration_as_it_is():
    one = Outer(name="a", data="x")
    one.counted()
    assert one.resolved()["part"] == {"rate": 1.0, "batch": 8, "clip": None}


@pytest.mark.parametrize("field", ["engine", "max_model_len", "dtype"])
def test_what_changes_answers_counts_of_an_evaluator(field):
    assert field in EvaluatorSpec().counted()


def test_budget_and_machines_do_not_count_of_a_study():
    counted = landscape_study().counted()
    assert not {"num_trials", "storage", "judge_service", "start", "inputs"} & set(counted)
    assert set(counted["evaluator"]) == {"engine", "max_model_len", "dtype"}
