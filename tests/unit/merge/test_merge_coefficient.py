import pytest

from safemerge.config.recipe import LayerGroup, MergeRecipe
from safemerge.errors import ConfigError
from safemerge.merge.coefficient import (
    check_groups,
    coefficient_at,
    coefficients_for,
    group_of,
)

NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.{at}.{part}.weight" for at in range(4) for part in ("self_attn.q", "mlp.up")),
]
EARLY = {"name": "early", "layers": "0-1"}
ATTENTION = {"name": "attention", "tensors": ["*.self_attn.*", "*.norm.*"]}


def recipe(method, groups=()):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": "b"},
            "experts": [{"name": "x", "path": "x"}, {"name": "y", "path": "y"}],
            "method": method,
            "layer_groups": list(groups),
        }
    )


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.0.mlp.up.weight", "early"),
        ("model.layers.1.self_attn.q.weight", "early"),
        ("model.layers.2.self_attn.q.weight", "attention"),
        ("model.layers.2.mlp.up.weight", "default"),
        ("model.norm.weight", "attention"),
        ("model.embed_tokens.weight", "default"),
        ("transformer.h.1.ln.weight", "early"),
        ("model.layers.10.mlp.up.weight", "default"),
    ],
)
def test_the_first_group_that_matches_holds(name, group):
    groups = [LayerGroup.model_validate(item) for item in (EARLY, ATTENTION)]
    assert group_of(name, groups) == group


def test_a_single_layer_is_a_range():
    assert group_of("model.layers.3.w", [LayerGroup(name="last", layers="3")]) == "last"


def test_a_number_holds_everywhere_and_a_mapping_by_group():
    assert coefficient_at(0.4, "any") == 0.4
    assert coefficient_at({"early": 0.1, "default": 0.2}, "early") == 0.1
    assert coefficient_at({"early": 0.1, "default": 0.2}, "late") == 0.2


def test_a_mapping_without_a_value_for_the_rest_is_refused():
    with pytest.raises(ConfigError, match=r"must name 'default'.*group 'late'"):
        coefficient_at({"early": 0.1}, "late")


def test_coefficients_of_a_group():
    method = recipe(
        {
            "name": "ties",
            "weights": {"x": {"early": 0.1, "default": 0.2}, "y": 0.3},
            "density": {"x": 0.4, "y": 0.5},
            "lambda": {"early": 2.0, "default": 1.0},
        },
        [EARLY],
    ).method
    found = coefficients_for(method, "early")
    assert found.weights == {"x": 0.1, "y": 0.3}
    assert found.density == {"x": 0.4, "y": 0.5}
    assert (found.lambda_, found.t) == (2.0, 0.0)
    assert coefficients_for(method, "default").weights == {"x": 0.2, "y": 0.3}


def test_one_density_is_that_of_every_expert():
    method = recipe({"name": "ties", "weights": {"x": 1.0, "y": 1.0}, "density": 0.2}).method
    assert coefficients_for(method, "default").density == {"x": 0.2, "y": 0.2}


def test_slerp_has_a_position_and_no_weights():
    method = recipe({"name": "slerp", "models": ["base", "x"], "t": 0.3}).method
    assert coefficients_for(method, "default") == ({}, {}, 1.0, 0.3, {})


def test_groups_that_cover_are_fine():
    weights = {"x": {"early": 0.1, "default": 0.2}}
    check_groups(recipe({"name": "task_arithmetic", "weights": weights}, [EARLY]), NAMES)


@pytest.mark.parametrize(
    ("group", "shown"),
    [
        ({"name": "late", "layers": "4-9"}, "'4-9'"),
        ({"name": "typo", "tensors": ["*.self_atn.*"]}, r"'\*\.self_atn\.\*'"),
        ({"name": "shadowed", "layers": "1"}, "'1'"),
    ],
)
def test_a_group_that_matches_nothing_is_refused(group, shown):
    method = {"name": "task_arithmetic", "weights": {"x": 1.0}}
    words = rf"layer_groups\.{group['name']}: must match a tensor.*got none for {shown}"
    with pytest.raises(ConfigError, match=words):
        check_groups(recipe(method, [EARLY, group]), NAMES)


def test_tensors_outside_every_group_need_a_default():
    method = {"name": "task_arithmetic", "weights": {"x": {"early": 0.1}}}
    with pytest.raises(ConfigError, match=r"method\.weights\.x: must name 'default'.*'model\."):
        check_groups(recipe(method, [EARLY]), NAMES)
    everything = {"name": "early", "tensors": ["*"]}
    check_groups(recipe(method, [everything]), NAMES)
