"""Senseless goals and limits are refused, one message each."""

import pytest

from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import ACCURACY, HARM, landscape_study


def lines(**changes):
    with pytest.raises(ConfigError) as caught:
        landscape_study(**changes)
    return str(caught.value)


def goal(metric, direction, reference, **more):
    return {"metric": metric, "direction": direction, "reference": reference, **more}


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (goal(ACCURACY, "minimize", 1.0), "direction: must be maximize, for a higher"),
        (goal(HARM, "maximize", 0.0), "direction: must be minimize, for a lower"),
        (goal(HARM, "minimize", 5.0), "objectives.0.reference: must be in [0, 1]"),
        (goal(HARM, "minimize", -0.1), "got -0.1. Write a fraction."),
        (goal(ACCURACY, "maximize", 50.0), "e.g. 0.5 for 50 %"),
        (goal(ACCURACY, "maximize", 1.0), "the best value that task.accuracy can have. Write 0."),
        (goal(HARM, "minimize", 0.0), "the best value that harm.harmful_score can have. Write 1."),
    ],
)
def test_a_senseless_objective_is_refused(objective, told):
    found = lines(objectives=[objective])
    assert told in found
    assert found.count("objectives.0") == 1


@pytest.mark.parametrize(
    ("constraint", "told"),
    [
        ({"metric": HARM, "budget": 5.0}, "constraints.0.budget: must be in [0, 1]"),
        ({"metric": HARM, "budget": -0.2}, "got -0.2"),
        (
            {"metric": ACCURACY, "budget": 0.5, "direction": "minimize"},
            "constraints.0.direction: must be maximize",
        ),
        (
            {"metric": HARM, "budget": 0.5, "direction": "maximize"},
            "constraints.0.direction: must be minimize",
        ),
    ],
)
def test_a_senseless_limit_is_refused(constraint, told):
    assert told in lines(constraints=[constraint])


@pytest.mark.parametrize("name", ["worst", "odd.harmful_score"])
def test_a_mean_of_metrics_that_improve_opposite_ways_is_refused(name):
    parts = [HARM, "harm.refusal_rate"]
    found = lines(
        aggregates={name: {"mean_of": parts}}, constraints=[{"metric": name, "budget": 2}]
    )
    assert (
        f"aggregates.{name}.mean_of: must improve the same way; got {HARM} (minimize) and "
        "harm.refusal_rate (maximize). Drop one."
    ) in found
    assert "constraints" not in found


def test_what_is_meant_can_be_allowed():
    spec = landscape_study(
        objectives=[goal(ACCURACY, "minimize", 1.0, allow=["direction"])],
        constraints=[
            {"metric": ACCURACY, "budget": 0.9, "direction": "minimize", "allow": ["direction"]}
        ],
    )
    assert isinstance(spec, StudySpec)
    assert spec.objectives[0].resolved()["allow"] == ["direction"]
    assert "allow" not in landscape_study().objectives[0].resolved()


def test_directions_and_references_are_the_metrics_own_where_they_are_left_out():
    spec = landscape_study(
        objectives=[{"metric": ACCURACY}, {"metric": HARM}],
        constraints=[{"metric": ACCURACY, "budget": 0.2}, {"metric": HARM, "budget": 0.9}],
    )
    assert [(item.direction, item.reference) for item in spec.objectives] == [
        ("maximize", 0.0),
        ("minimize", 1.0),
    ]
    assert [item.direction for item in spec.constraints] == ["maximize", "minimize"]
    assert StudySpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
    assert spec.objectives[0].resolved()["direction"] == "maximize"
    meant = landscape_study(objectives=[goal(ACCURACY, "minimize", 1.0, allow=["direction"])])
    assert meant.objectives[0].direction == "minimize"
