import pytest
from pydantic import ValidationError

from safemerge.config.budget import BudgetSpec
from safemerge.testing.landscapes import landscape_study


def test_a_budget_is_no_part_of_what_a_study_measures():
    with_budget = landscape_study(budget={"wall_time": 3600, "hypervolume_plateau": 20})
    assert with_budget.budget == BudgetSpec(wall_time=3600, hypervolume_plateau=20)
    assert with_budget.counted() == landscape_study().counted()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wall_time", 0),
        ("wall_time", float("nan")),
        ("evaluator_seconds", -1),
        ("hypervolume_plateau", 0),
        ("hypervolume_plateau", 2.5),
        ("plateau_growth", 1.0),
        ("num_trials", 10),
    ],
)
def test_a_budget_that_nothing_can_keep_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        BudgetSpec.model_validate({key: value})
