"""Varied settings of training files: which variants they make, and what is refused."""

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import parse_document
from safemerge.config.identity import study_identity
from safemerge.config.models import study_models
from safemerge.config.range import FloatRange
from safemerge.config.study import StudySpec
from safemerge.config.variant import (
    declared_variants,
    expert_settings,
    same_settings,
    training_path,
)
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study

LAMBDA = "experts.safety.booster.lambda"
TRAINED = [
    {"name": "skill", "path": "/nowhere/skill"},
    {"name": "safety", "align": "/nowhere/safety.yaml"},
]


def study_document(vary, experts=TRAINED):
    document = landscape_study().resolved()
    document["experts"] = experts
    document["spaces"][0]["vary"].update(vary)
    return document


def study(vary, **changes):
    return StudySpec.model_validate({**study_document(vary), **changes})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (LAMBDA, ("safety", "booster.lambda")),
        ("experts.safety.learning_rate", ("safety", "learning_rate")),
        ("experts.safety.path", None),
        ("experts.safety", None),
        ("method.weights.safety", None),
    ],
)
def test_a_path_into_an_expert_leads_into_its_training_file(path, expected):
    assert training_path(path) == expected


def test_values_are_told_apart_by_expert():
    params = {LAMBDA: 5, "experts.safety.booster.alpha": 0.1, "method.weights.skill": 1.0}
    assert expert_settings(params) == {"safety": {"booster.lambda": 5, "booster.alpha": 0.1}}


def test_settings_are_the_same_up_to_rounding_and_kind():
    assert same_settings({"a": 0.1 + 0.2}, {"a": 0.3})
    assert same_settings({"a": 5}, {"a": 5.0})
    assert not same_settings({"a": 1}, {"a": True})
    assert not same_settings({"a": 1}, {"a": 1, "b": 1})
    assert not same_settings({"a": "linear"}, {"a": "constant"})


def test_each_combination_is_one_variant_however_many_spaces_have_it():
    experts = [CheckpointRef(name="safety", align="/a.yaml", settings={"seed": 3})]
    grids = [
        {LAMBDA: (0, 5), "experts.safety.booster.alpha": (0.1, 0.2)},
        {LAMBDA: (5.0, 20), "experts.safety.booster.alpha": (0.1,)},
        {},
    ]
    found = list(declared_variants(experts, grids))
    assert [v.label for v in found] == [
        "safety[booster.lambda=0, booster.alpha=0.1]",
        "safety[booster.lambda=0, booster.alpha=0.2]",
        "safety[booster.lambda=5, booster.alpha=0.1]",
        "safety[booster.lambda=5, booster.alpha=0.2]",
        "safety[booster.lambda=20, booster.alpha=0.1]",
    ]
    assert len({v.checkpoint.name for v in found}) == 5
    assert found[0].checkpoint.settings == {"seed": 3, "booster.lambda": 0, "booster.alpha": 0.1}


def test_a_study_knows_its_variants_before_and_after_they_are_trained():
    spec = study({LAMBDA: {"choices": [0, 5]}})
    names = [variant.checkpoint.name for variant in spec.variants]
    assert names == ["safety--1", "safety--2"]
    made = {
        ref.name: ref.resolved_to(f"/made/{ref.name}", fingerprint=f"digest {ref.name}")
        for ref in spec.all_checkpoints
    }
    resolved = spec.with_checkpoints(made)
    assert [v.settings for v in resolved.variants] == [v.settings for v in spec.variants]
    assert [v.checkpoint.path for v in resolved.variants] == ["/made/safety--1", "/made/safety--2"]
    again = parse_document(resolved.resolved(), StudySpec, where="f")
    assert again == resolved
    assert [ref.name for ref in study_models(again).experts] == ["skill", "safety", *names]
    assert study_identity(again) == study_identity(resolved)
    assert study_identity(resolved)["trained"][0]["digest"] == "digest safety--1"


def test_a_study_without_variants_is_the_study_that_it_was():
    identity = study_identity(landscape_study())
    assert "trained" not in identity
    assert all("settings" not in item for item in (identity["base"], *identity["experts"]))


def test_a_step_makes_a_grid_with_both_ends():
    assert FloatRange(low=0.0, high=1.0, step=0.25).grid() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert FloatRange(low=0.1, high=0.35, step=0.1).grid() == (0.1, 0.2, 0.3)
    assert FloatRange(low=0.0, high=1.0).grid() is None
    spec = study({LAMBDA: {"low": 0.0, "high": 10.0, "step": 5.0}})
    assert [v.settings["booster.lambda"] for v in spec.variants] == [0.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (
            {"experts.skill.booster.lambda": {"choices": [1, 2]}},
            r"only a trained expert \(align, finetune\) has settings to vary; got 'skill'",
        ),
        (
            {"experts.safty.booster.lambda": {"choices": [1, 2]}},
            r"vary\.experts\.safty\.booster\.lambda: no such expert\. Did you mean 'safety'\?",
        ),
        (
            {LAMBDA: {"low": 1.0, "high": 20.0, "log": True}},
            r"there must be choices, a step or knots; got every number from 1\.0 to 20\.0",
        ),
        (
            {LAMBDA: {"choices": list(range(65))}},
            r"at most 64 variants of an expert are trained; got 65 of 'safety'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(vary, words):
    with pytest.raises(ConfigError, match=words):
        parse_document(study_document(vary), StudySpec, where="study.yaml")


def test_settings_need_a_training_file():
    with pytest.raises(ValueError, match=r"settings change a training file .* beside path"):
        CheckpointRef(name="a", path="/a", settings={"seed": 1})
