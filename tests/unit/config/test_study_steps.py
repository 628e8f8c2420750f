"""Search spaces over steps and anchors."""

import pytest

from safemerge.config.study import StudySpec
from safemerge.search.space import recipe_at
from safemerge.testing.landscapes import landscape_study

STEPS = [{"name": "resta", "aligned": "safety", "unaligned": "base", "scale": [0.0, 1.0]}]


def study(vary):
    space = {
        "name": "steps",
        "method": {"name": "task_arithmetic", "weights": {"skill": [0.2, 0.4]}},
        "steps": STEPS,
        "vary": vary,
    }
    return landscape_study(spaces=[space])


def test_a_steps_numbers_and_anchors_are_dimensions_of_a_search():
    spec = study(
        {
            "steps.resta.scale.1": {"low": 0.0, "high": 2.0},
            "method.weights.skill.0": {"low": 0.0, "high": 1.0},
        }
    )
    recipe = recipe_at(
        spec, spec.spaces[0], {"steps.resta.scale.1": 1.5, "method.weights.skill.0": 0.9}
    )
    assert recipe.steps[0].scale == [0.0, 1.5]
    assert recipe.method.weights == {"skill": [0.9, 0.4]}
    assert StudySpec.model_validate(spec.resolved()) == spec


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("steps.resta.alpha", "wrong at 'alpha'"),
        ("steps.safe_lora.scale", "wrong at 'safe_lora'. Known: resta|Did you mean 'resta'"),
        ("steps.resta.scale.2", "wrong at '2'. Known: 0, 1"),
    ],
)
def test_a_path_that_is_not_there_is_named(path, words):
    with pytest.raises(ValueError, match=words):
        study({path: {"low": 0.0, "high": 1.0}})
