"""Recipes without a part: what is left is the merge in which that part does nothing."""

import pytest
import torch

from safemerge.config.ablation import (
    REST,
    added,
    coalitions,
    parents_of,
    with_parents,
    without_layers,
    without_operators,
    without_parents,
)
from safemerge.config.recipe import MergeRecipe
from safemerge.merge import merged_tensors
from safemerge.weights import layer_of, open_checkpoint

METHODS = {
    "linear": {"name": "linear", "weights": {"base": 0.2, "math": 0.5, "safety": 0.3}},
    "linear without base": {"name": "linear", "weights": {"math": 3.0, "safety": 1.0}},
    "sum": {"name": "linear", "weights": {"math": 0.5, "safety": 0.4}, "normalize": False},
    "anchors": {"name": "linear", "weights": {"base": [0.1, 0.6], "math": [0.5, 0.2, 0.1]}},
    "task_arithmetic": {"name": "task_arithmetic", "weights": {"math": 0.5, "safety": -0.3}},
    "ties": {"name": "ties", "weights": {"math": 0.5, "safety": 0.8}, "density": 0.4},
    "dare_ties": {
        "name": "dare_ties",
        "weights": {"math": 0.5, "safety": 0.8},
        "density": {"math": 0.4, "safety": 0.7},
    },
    "della_linear": {"name": "della_linear", "weights": {"math": 0.5, "safety": 0.8}},
    "slerp": {"name": "slerp", "models": ["math", "safety"], "t": 0.3},
    "nuslerp": {"name": "nuslerp", "weights": {"math": 0.3, "safety": 0.6}},
    "karcher": {"name": "karcher", "weights": {"math": 0.3, "safety": 0.6}},
}


@pytest.fixture(scope="module")
def checkpoints(tiny_base, tiny_experts):
    opened = {name: open_checkpoint(path) for name, path in tiny_experts.items()}
    return {"base": open_checkpoint(tiny_base), **opened}


@pytest.fixture
def make(checkpoints):
    refs = [{"name": name, "path": str(item.folder)} for name, item in checkpoints.items()]

    def make(method, **fields):
        return MergeRecipe.model_validate(
            {"base": refs[0], "experts": refs[1:], "method": method, **fields}
        )

    return make


def same(left, right, *, atol=1e-6):
    left, right = dict(left), dict(right)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == torch.float32
        torch.testing.assert_close(left[name], right[name], atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_left_out_parent_is_one_that_is_the_base_itself(name, make, checkpoints):
    recipe = make(METHODS[name])
    parents = parents_of(recipe)
    assert parents == ["math", "safety"][: len(parents)]
    for variant in without_parents(recipe):
        assert variant.recipe is not None
        assert variant.recipe.digest != recipe.digest
        replaced = {**checkpoints, variant.name: checkpoints["base"]}
        same(merged_tensors(variant.recipe, checkpoints), merged_tensors(recipe, replaced))


@pytest.mark.parametrize("name", METHODS)
def test_every_set_of_parents_is_made_once_between_base_and_the_whole(name, make, checkpoints):
    recipe = make(METHODS[name])
    sets = coalitions(recipe)
    assert len({item.digest for item in sets.values()}) == 2 ** len(parents_of(recipe))
    assert sets[frozenset(parents_of(recipe))] is recipe
    base = checkpoints["base"]
    same(
        merged_tensors(sets[frozenset()], checkpoints),
        {key: base.tensor(key) for key in base.names},
    )


def test_models_without_weight_or_only_read_by_steps_are_no_parents(make):
    step = {"name": "resta", "aligned": "safety", "unaligned": "base"}
    weights = {"math": [0.0, 0.5], "safety": 0.0}
    recipe = make({"name": "task_arithmetic", "weights": weights}, steps=[step])
    assert parents_of(recipe) == ["math"]
    assert with_parents(recipe, []).steps == recipe.steps


def test_a_step_on_a_parent_goes_with_it_where_names_are_gone(make):
    step = {"name": "pre_post", "experts": ["math"], "alpha": 0.5}
    recipe = make(METHODS["slerp"], steps=[step])
    without = {item.name: item.recipe for item in without_parents(recipe)}
    assert without["math"].steps == []
    assert without["safety"].steps == recipe.steps


def test_a_mean_with_statistics_of_the_experts_alone_shares_the_weight(tiny_base, tiny_experts):
    experts = [
        {"name": name, "path": str(path), "statistics": {"path": f"/s/{name}"}}
        for name, path in tiny_experts.items()
    ]
    recipe = MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": experts,
            "method": {"name": "fisher", "weights": {"math": 1.0, "safety": 0.5}},
        }
    )
    (first, _) = without_parents(recipe)
    assert first.recipe.method.weights == {"math": 0.0, "safety": 0.5}
    layers = without_layers(recipe, num_layers=2)
    assert all(item.recipe is None and "statistics" in item.reason for item in layers)


def test_operators_are_steps_sparsification_and_election(make, checkpoints):
    step = {"name": "resta", "aligned": "safety", "unaligned": "base", "scale": 0.5}
    recipe = make(METHODS["ties"], steps=[step])
    found = {item.name: item.recipe for item in without_operators(recipe)}
    assert list(found) == ["step resta", "sparsification", "sign election"]
    assert found["step resta"] == make(METHODS["ties"])
    assert found["sparsification"].method.density == 1.0
    # The same trim, and the mean by all weights in place of the agreeing ones.
    plain = make({"name": "ties", "weights": {"math": 0.5}, "density": 0.4})
    other = make({"name": "ties", "weights": {"safety": 0.8}, "density": 0.4})
    summed = dict(merged_tensors(found["sign election"], checkpoints))
    lacking = make(METHODS["ties"])
    unelected = {item.name: item.recipe for item in without_operators(lacking)}["sign election"]
    base = checkpoints["base"]
    parts = [dict(merged_tensors(item, checkpoints)) for item in (plain, other)]
    for key, tensor in merged_tensors(unelected, checkpoints):
        origin = base.tensor(key)
        mean = (0.5 * (parts[0][key] - origin) + 0.8 * (parts[1][key] - origin)) / 1.3
        torch.testing.assert_close(tensor, origin + mean, atol=1e-6, rtol=1e-5)
    assert summed.keys() == parts[0].keys()


@pytest.mark.parametrize("method", ["dare_ties", "della", "breadcrumbs_ties"])
def test_every_election_has_its_sum(method, make):
    recipe = make({"name": method, "weights": {"math": 0.5, "safety": 0.8}})
    found = {item.name: item for item in without_operators(recipe)}
    assert (
        found["sign election"].recipe.method.name
        == {
            "dare_ties": "dare_linear",
            "della": "della_linear",
            "breadcrumbs_ties": "breadcrumbs",
        }[method]
    )
    assert found["sparsification"].recipe.method.density == 1.0


@pytest.mark.parametrize(
    "name", ["linear", "sum", "anchors", "task_arithmetic", "ties", "karcher"]
)
def test_in_a_left_out_group_the_base_stands_and_elsewhere_the_merge(name, make, checkpoints):
    recipe = make(METHODS[name])
    base, whole = checkpoints["base"], dict(merged_tensors(recipe, checkpoints))
    found = without_layers(recipe, num_layers=2)
    assert [item.name for item in found] == ["layers 0-0", "layers 1-1", REST, "attention", "mlp"]
    in_group = {
        "layers 0-0": lambda key: layer_of(key) == 0,
        "layers 1-1": lambda key: layer_of(key) == 1,
        REST: lambda key: layer_of(key) is None,
        "attention": lambda key: ".self_attn." in key,
        "mlp": lambda key: ".mlp." in key,
    }
    for item in found:
        for key, tensor in merged_tensors(item.recipe, checkpoints):
            wanted = base.tensor(key) if in_group[item.name](key) else whole[key]
            torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)


def test_a_recipe_with_groups_of_its_own_is_cut_by_these(make, checkpoints):
    groups = [{"name": "first", "layers": "0"}]
    weights = {"math": {"first": 0.2, "default": 0.8}, "safety": 0.25}
    recipe = make({"name": "task_arithmetic", "weights": weights}, layer_groups=groups)
    found = without_layers(recipe, num_layers=1)
    assert [item.name for item in found] == ["group first", "outside the groups"]
    base, whole = checkpoints["base"], dict(merged_tensors(recipe, checkpoints))
    for item, is_first in zip(found, (True, False), strict=True):
        for key, tensor in merged_tensors(item.recipe, checkpoints):
            wanted = base.tensor(key) if (layer_of(key) == 0) == is_first else whole[key]
            torch.testing.assert_close(tensor, wanted)


def test_a_method_that_cannot_give_the_base_in_a_group_says_so(make):
    found = without_layers(make(METHODS["slerp"]), num_layers=2)
    assert all(item.recipe is None for item in found)
    assert found[0].reason == "slerp has no coefficient that gives the base there"


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        (0.25, 0.5, 0.75),
        ([0.0, 1.0], 1.0, [1.0, 2.0]),
        ([0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.5, 1.0]),
        ([0.0, 6.0], [0.0, 3.0, 6.0, 9.0], [0.0, 5.0, 10.0, 15.0]),
        ({"a": 0.5, "default": 1.0}, 0.5, {"a": 1.0, "default": 1.5}),
        ({"a": 0.5, "b": [0.0, 1.0]}, {"a": 0.5, "default": 1.0}, {"a": 1.0, "b": [1.0, 2.0]}),
    ],
)
def test_coefficients_add_up_at_every_depth(one, other, total):
    assert added(one, other) == total
    assert added(other, one) == total
