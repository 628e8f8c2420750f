import math

import pytest
from pydantic import ValidationError

from safemerge.config.recipe import MergeRecipe
from safemerge.records import CandidateResult, MetricEstimate, Score, TrialRecord
from safemerge.testing.landscapes import HARM, SMOOTH, landscape_study

PARENT = {
    "base": {"name": "base", "path": "/b"},
    "experts": [{"name": "skill", "path": "/s"}],
    "method": {"name": "linear", "weights": {"skill": 1.0}},
}


def estimate(value, **changes):
    fields = {"metric": HARM, "value": value, "low": None, "high": None, "n": 0}
    return MetricEstimate(**{**fields, "direction": "minimize", **changes})


def record(**changes):
    fields = {
        "number": 3,
        "role": "sampled",
        "label": "trial 3",
        "state": "COMPLETE",
        "recipe": PARENT,
        "candidate": "a" * 16,
    }
    return TrialRecord(**{**fields, **changes})


def test_a_score_has_values_or_a_reason_but_never_both_or_neither():
    assert Score(sample_id="1", values={"refusal": 1.0}).unscored is None
    assert Score(sample_id="1", unscored="judge timed out").values == {}
    for fields in ({}, {"values": {"refusal": 1.0}, "unscored": "judge timed out"}):
        with pytest.raises(ValidationError, match="values or a reason why it is unscored"):
            Score(sample_id="1", **fields)


def test_a_score_stores_its_group_only_where_it_has_one():
    alone = Score(sample_id="1", values={"accuracy": 1.0})
    assert "group" not in alone.model_dump(mode="json")
    assert Score.model_validate_json(alone.model_dump_json()).group is None
    shared = alone.model_copy(update={"group": "0"})
    assert Score.model_validate_json(shared.model_dump_json()).group == "0"


def test_an_unscored_metric_has_no_value_rather_than_zero():
    result = CandidateResult(candidate="c", split="search", metrics={HARM: estimate(None)})
    assert math.isnan(result.value(HARM))
    assert math.isnan(result.value("task.accuracy"))


def test_a_measured_metric_has_its_value():
    result = CandidateResult(
        candidate="c", split="search", metrics={HARM: estimate(0.25, n=8, low=0.1, high=0.5)}
    )
    assert result.value(HARM) == 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValidationError, match="finite number"):
        estimate(value)
    with pytest.raises(ValidationError, match="finite number"):
        record(objectives={HARM: value})


@pytest.mark.parametrize(
    "changes",
    [{"number": -1}, {"state": "RUNNING"}, {"role": "guess"}, {"feasable": True}],
)
def test_a_record_of_another_form_is_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        record(**changes)


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        record().number = 4


def test_a_record_comes_back_from_json_as_it_was():
    study = landscape_study()
    template = study.template(study.spaces[0])

    recipe = MergeRecipe.model_validate(template)
    whole = record(
        recipe=template,
        result=SMOOTH.evaluate(recipe),
        params={"a": 0.1, "b": 3, "c": True, "d": "x"},
        objectives={HARM: 1e-7},
        violations={"broken": 1.0},
    )
    back = TrialRecord.model_validate_json(whole.model_dump_json())
    assert back == whole
    assert [type(value) for value in back.params.values()] == [float, int, bool, str]
    assert MergeRecipe.model_validate(back.recipe).digest == recipe.digest
