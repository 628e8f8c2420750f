import pytest

from safemerge.config.recipe import LayerGroup, MergeRecipe
from safemerge.errors import ConfigError
from safemerge.merge.coefficient import (
    check_groups,
    coefficient_at,
    coefficients_for,
    depth_of,
    group_of,
    step_numbers,
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
    assert coefficients_for(method, "default")[:5] == ({}, {}, 1.0, 0.3, {})


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


# --- depth and kind ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "value"), [(0.0, 0.2), (0.25, 0.6), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)]
)
def test_anchors_are_linear_in_between(depth, value):
    assert coefficient_at([0.2, 1.0, 0.0], "default", depth) == pytest.approx(value, abs=1e-12)


def test_anchors_may_stand_in_a_group():
    by_group = {"attention": [0.0, 1.0], "default": 0.3}
    assert coefficient_at(by_group, "attention", 0.25) == pytest.approx(0.25)
    assert coefficient_at(by_group, "default", 0.25) == 0.3


def test_anchors_need_a_known_depth():
    with pytest.raises(ConfigError, match=r"anchors need a model with a known number of layers"):
        coefficient_at([0.0, 1.0], "default")


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.embed_tokens.weight", 0.0),
        ("model.layers.0.mlp.up.weight", 0.0),
        ("model.layers.1.mlp.up.weight", 0.25),
        ("model.layers.4.mlp.up.weight", 1.0),
        ("model.norm.weight", 1.0),
        ("lm_head.weight", 1.0),
    ],
)
def test_depth_runs_from_the_embeddings_to_the_head(name, depth):
    assert depth_of(name, 5) == depth


def test_the_depth_of_a_layer_is_unknown_without_their_number():
    assert depth_of("model.layers.0.mlp.up.weight", None) is None
    assert depth_of("model.layers.0.mlp.up.weight", 1) == 0.0
    assert depth_of("model.norm.weight", None) == 1.0


@pytest.mark.parametrize(
    ("rules", "matching"),
    [
        ({"kind": "mlp"}, {2, 4, 6, 8}),
        ({"kind": "attention", "layers": "1-2"}, {5, 7}),
        ({"layers": "3"}, {8, 9}),
        ({"kind": "norms"}, {1}),
        ({"kind": "embeddings"}, {0}),
        ({"kind": "mlp", "tensors": ["*.0.*", "*.3.*"]}, {2, 8}),
    ],
)
def test_every_rule_of_a_group_must_hold(rules, matching):
    group = LayerGroup.model_validate({"name": "some", **rules})
    order = [*NAMES[:2], *(name for at in range(2, 10, 2) for name in NAMES[at : at + 2][::-1])]
    found = {at for at, name in enumerate(order) if group_of(name, [group]) == "some"}
    assert found == matching


def test_density_and_further_numbers_may_differ_by_layer():
    method = recipe(
        {
            "name": "breadcrumbs",
            "weights": {"x": 1.0, "y": [0.0, 1.0]},
            "density": {"x": [0.2, 0.4], "y": {"early": 0.1, "default": 0.3}},
            "gamma": [0.0, 0.1],
        },
        [EARLY],
    ).method
    numbers = coefficients_for(method, "early", 0.5)
    assert numbers.weights == {"x": 1.0, "y": 0.5}
    assert numbers.density == {"x": pytest.approx(0.3), "y": 0.1}
    assert numbers.options == {"gamma": 0.05, "rescale": "none", "normalize": False}
    assert numbers.number("gamma") == 0.05


def test_density_for_all_experts_may_have_anchors():
    method = recipe(
        {"name": "ties", "weights": {"x": 1.0, "y": 1.0}, "density": [0.2, 0.6]}
    ).method
    assert coefficients_for(method, "default", 0.5).density == pytest.approx({"x": 0.4, "y": 0.4})


def test_model_stock_weighs_its_models_alike():
    method = recipe({"name": "model_stock", "models": ["y", "x"], "lambda": 0.5}).method
    numbers = coefficients_for(method)
    assert numbers[:4] == ({"x": 1.0, "y": 1.0}, {}, 0.5, 0.0)
    assert numbers.options == {"variant": "clamped", "vectors": "tensor"}


def test_an_experts_own_number_goes_before_that_of_all():
    method = recipe(
        {
            "name": "della",
            "weights": {"x": 1.0, "y": 1.0},
            "epsilon_by_expert": {"x": [0.1, 0.3], "y": 0.2},
        }
    ).method
    numbers = coefficients_for(method, "default", 0.5)
    assert numbers.number_of("x", "epsilon") == pytest.approx(0.2)
    assert numbers.number_of("y", "epsilon") == 0.2


def test_mergekits_anchors_are_the_first_outside_the_layers():
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert [depth_of(name, 4) for name in names] == [0.0, 1.0, 1.0]
    assert [depth_of(name, 4, "mergekit") for name in names] == [0.0, 0.0, 0.0]
    layer = "model.layers.0.mlp.up.weight"
    assert [depth_of(layer, layers, "mergekit") for layers in (1, 4)] == [1.0, 0.0]


def test_groups_may_be_outside_the_layers_and_match_nothing():
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up.weight", "model.norm.weight"]
    before, after = (LayerGroup(name=place, outside=place) for place in ("before", "after"))
    assert [group_of(name, [before, after]) for name in names] == ["before", "default", "after"]
    weights = {"x": {"head": 0.5, "default": 1.0}}
    for optional in (False, True):
        group = {"name": "head", "tensors": ["*lm_head*"], "optional": optional}
        merged = recipe({"name": "linear", "weights": weights}, [group])
        if optional:
            check_groups(merged, names)
        else:
            with pytest.raises(ConfigError, match="head: must match a tensor"):
                check_groups(merged, names)


def test_a_steps_numbers_are_read_like_a_methods():
    steps = [
        {
            "name": "safe_merge",
            "aligned": "x",
            "safe": "x",
            "alpha": {"early": 0.4, "default": 0.1},
        }
    ]
    document = recipe({"name": "task_arithmetic", "weights": {"y": 1.0}}, [EARLY]).resolved()
    step = MergeRecipe.model_validate({**document, "steps": steps}).steps[0]
    assert step_numbers(step, "early") == {"threshold": 0.35, "alpha": 0.4}
    assert step_numbers(step, "default", 0.5) == {"threshold": 0.35, "alpha": 0.1}


def test_a_pattern_that_matches_nothing_is_refused():
    groups = [{"name": "some", "tensors": ["*.mlp.*", "*.ffn.*"]}]
    with pytest.raises(ConfigError, match=r"layer_groups.some.tensors: every pattern .* '\*.ffn"):
        check_groups(recipe({"name": "linear", "weights": {"x": 1.0}}, groups), NAMES)


def test_a_kind_that_matches_nothing_is_refused():
    groups = [{"name": "some", "kind": "mlp", "layers": "7"}]
    with pytest.raises(
        ConfigError, match=r"layer_groups.some: must match .* none for '7 and mlp'"
    ):
        check_groups(recipe({"name": "linear", "weights": {"x": 1.0}}, groups), NAMES)


def test_anchors_without_numbered_layers_are_refused():
    method = {"name": "linear", "weights": {"x": [0.0, 1.0]}}
    with pytest.raises(ConfigError, match=r"method.weights.x: anchors need tensors of numbered"):
        check_groups(recipe(method), ["a.weight", "b.weight"])


def test_a_step_by_group_must_cover_every_tensor():
    document = recipe({"name": "linear", "weights": {"x": 1.0}}, [EARLY]).resolved()
    steps = [{"name": "merge_align", "aligned": "y", "alpha": {"early": 0.5}}]
    with pytest.raises(ConfigError, match=r"steps.merge_align.alpha: must name 'default'"):
        check_groups(MergeRecipe.model_validate({**document, "steps": steps}), NAMES)


VISION_LAYER = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("rules", [{"layers": "0"}, {"kind": "attention"}])
def test_layers_and_kinds_are_those_of_the_text_decoder(rules):
    groups = [LayerGroup.model_validate({"name": "some", **rules})]
    assert group_of("language_model.model.layers.0.self_attn.q_proj.weight", groups) == "some"
    assert group_of(VISION_LAYER, groups) == "default"
    named = [LayerGroup(name="vision", tensors=["vision_tower.*"])]
    assert group_of(VISION_LAYER, named) == "vision"


def test_other_towers_are_read_at_the_middle_of_the_anchors():
    assert depth_of(VISION_LAYER, 4) == 0.5
    assert depth_of("multi_modal_projector.linear_1.weight", None) == 0.5
