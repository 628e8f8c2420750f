import pytest
import torch

from safemerge.errors import CheckpointMismatchError
from safemerge.merge.coefficient import check_groups, coefficient_at, group_of
from safemerge.optimize.coefficient_table import coefficient_recipe, first_values, layer_groups


def test_every_layer_the_embeddings_and_the_rest_are_groups(optimize, opened):
    table, _, _ = opened(optimize())
    assert table.groups == ("layer-0", "layer-1", "embeddings", "default")
    assert table.shape == (2, 4)
    assert table.active.all()
    by_group = {}
    for name, column in table.column_by_name.items():
        by_group.setdefault(table.groups[column], []).append(name)
    assert by_group["embeddings"] == ["model.embed_tokens.weight"]
    assert by_group["default"] == ["model.norm.weight"]
    assert all(".layers.1." in name for name in by_group["layer-1"])


def test_names_without_embeddings_make_no_such_group():
    names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    assert [group.name for group in layer_groups(names)] == ["layer-0"]


def test_one_group_is_a_plain_number(optimize, opened):
    spec = optimize(optimizer={"name": "gradient", "coefficients": "model", "start": 0.25})
    table, _, _ = opened(spec)
    recipe = coefficient_recipe(spec, table, first_values(spec, table))
    assert recipe.method.weights == {"math": 0.25, "safety": 0.25}
    assert recipe.layer_groups == []


def test_the_start_is_exactly_what_was_declared(optimize, opened, tiny_experts, tiny_aligned):
    paths = {**tiny_experts, "aligned": tiny_aligned}
    experts = [{"name": name, "path": str(path)} for name, path in paths.items()]
    spec = optimize(experts=experts)
    table, _, _ = opened(spec)
    assert first_values(spec, table).unique().tolist() == [1 / 3]


def test_declared_groups_are_kept_and_the_rest_has_one(optimize, opened):
    groups = [{"name": "mlp", "kind": "mlp"}, {"name": "first", "layers": "0"}]
    spec = optimize(
        optimizer={"name": "gradient", "coefficients": "group", "layer_groups": groups}
    )
    table, _, _ = opened(spec)
    assert table.groups == ("mlp", "first", "default")


def test_a_recipe_holds_each_coefficient_where_the_table_has_it(optimize, opened):
    spec = optimize()
    table, _, _ = opened(spec)
    values = torch.arange(8, dtype=torch.float64).view(2, 4) / 10
    recipe = coefficient_recipe(spec, table, values)
    check_groups(recipe, table.names)
    for row, expert in enumerate(table.experts):
        for name in table.names:
            group = group_of(name, recipe.layer_groups)
            got = coefficient_at(recipe.method.weights[expert], group)
            assert got == float(values[row, table.column_by_name[name]])


def test_an_expert_that_is_the_base_is_refused(optimize, opened, tiny_base, tiny_expert):
    experts = [
        {"name": "math", "path": str(tiny_expert)},
        {"name": "same", "path": str(tiny_base)},
    ]
    with pytest.raises(
        CheckpointMismatchError,
        match=r"toy, expert 'same': must differ from the base 'base'; got a task vector of zero",
    ):
        opened(optimize(experts=experts))
