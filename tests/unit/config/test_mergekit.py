import pytest

from safemerge.config.document import parse_document
from safemerge.config.mergekit import is_mergekit, recipe_of_mergekit
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError

MODELS = [
    {"model": "org/math-7b", "parameters": {"weight": 0.5, "density": 0.3}},
    {"model": "org/code-7b", "parameters": {"weight": 0.25}},
]
TIES = {"merge_method": "ties", "base_model": "org/base", "models": MODELS, "dtype": "bfloat16"}


def translated(document):
    found = recipe_of_mergekit(document, where="m.yml")
    return parse_document(found.document, MergeRecipe, where="m.yml"), found.num_layers


def method(document):
    return translated(document)[0].resolved()["method"]


def test_a_mergekit_file_is_told_by_its_method():
    assert is_mergekit(TIES)
    assert not is_mergekit({"method": {"name": "ties"}})
    assert not is_mergekit(["merge_method"])


def test_ties_keeps_values_and_mergekits_defaults():
    recipe, num_layers = translated(TIES)
    assert (recipe.base.name, recipe.base.path) == ("base", "org/base")
    assert [(item.name, item.path) for item in recipe.experts] == [
        ("math-7b", "org/math-7b"),
        ("code-7b", "org/code-7b"),
    ]
    assert recipe.dtype == "bfloat16"
    assert num_layers is None
    assert recipe.resolved()["method"] == {
        "name": "ties",
        "weights": {"math-7b": 0.5, "code-7b": 0.25},
        "lambda": 1.0,
        "density": {"math-7b": 0.3, "code-7b": 1.0},
        "variant": "mergekit",
        "normalize": True,
    }


@pytest.mark.parametrize("source", ["base", "union"])
def test_the_tokenizers_source_is_the_vocabulary(source):
    assert translated({**TIES, "tokenizer_source": source})[0].vocabulary == source
    assert translated(TIES)[0].vocabulary == "refuse"


def test_global_parameters_hold_where_a_model_has_none():
    document = {**TIES, "parameters": {"density": 0.7, "lambda": 0.9, "normalize": False}}
    found = method({**document, "parameters": {**document["parameters"], "int8_mask": True}})
    assert found["density"] == {"math-7b": 0.3, "code-7b": 0.7}
    assert found["lambda"] == 0.9
    assert not found["normalize"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dare_linear", {"rescale": "l1"}),
        ("dare_ties", {"rescale": "l1", "normalize": False}),
        ("della_linear", {"rescale": "l1", "epsilon": 0.15}),
        ("della", {"rescale": "l1", "epsilon": 0.15, "normalize": False}),
        ("breadcrumbs", {"gamma": 0.01}),
        ("breadcrumbs_ties", {"gamma": 0.01, "normalize": False}),
        ("task_arithmetic", {"lambda": 1.0}),
    ],
)
def test_every_task_vector_method_has_mergekits_defaults(name, expected):
    models = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}]
    document = {"merge_method": name, "base_model": "o", "models": models}
    found = method({**document, "parameters": {"weight": 0.5}})
    assert found["weights"] == {"a": 1.0, "b": 0.5}
    for key, value in expected.items():
        assert found[key] == value


def test_the_base_may_be_listed_among_the_models():
    found, _ = translated({**TIES, "models": [{"model": "org/base"}, *MODELS]})
    assert [item.name for item in found.experts] == ["math-7b", "code-7b"]


def test_gradients_become_anchors_and_filters_groups():
    parameters = {
        "t": [
            {"filter": "self_attn", "value": [0, 0.5, 1]},
            {"filter": "mlp", "value": 0.3},
            {"value": 0.5},
        ]
    }
    recipe, num_layers = translated(
        {
            "merge_method": "slerp",
            "base_model": "org/a",
            "slices": [
                {
                    "sources": [
                        {"model": "org/a", "layer_range": [0, 32]},
                        {"model": "org/b", "layer_range": [0, 32]},
                    ]
                }
            ],
            "parameters": parameters,
        }
    )
    assert num_layers == 32
    assert [group.tensors for group in recipe.layer_groups] == [["*self_attn*"], ["*mlp*"]]
    assert recipe.method.models == ["a", "b"]
    assert recipe.method.t == {"filter-1": [0.0, 0.5, 1.0], "filter-2": 0.3, "default": 0.5}


def test_linear_may_do_without_a_base():
    models = [{"model": "x/m", "parameters": {"weight": 1}}, {"model": "y/m"}]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 2}}
    recipe, _ = translated(document)
    assert (recipe.base.path, recipe.experts[0].path) == ("x/m", "y/m")
    assert recipe.method.weights == {"m": 1.0, "m-2": 2.0}


def test_an_adapter_on_the_base_is_an_expert():
    models = [{"model": "org/base+lora/a"}, {"model": {"model": "org/base", "lora": "lora/b"}}]
    document = {**TIES, "models": models, "parameters": {"weight": 1}}
    recipe, _ = translated(document)
    assert recipe.base.path == "org/base"
    assert [(item.name, item.path) for item in recipe.experts] == [
        ("a", "lora/a"),
        ("b", "lora/b"),
    ]


def test_the_model_under_an_adapter_is_the_base_where_none_is_named():
    models = [{"model": "org/base+lora/a"}, {"model": "org/b"}]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    recipe, _ = translated(document)
    assert recipe.base.path == "org/base"
    assert recipe.method.weights == {"a": 1.0, "b": 1.0}


def test_one_filter_may_stand_without_a_list():
    parameters = {"weight": 0.5, "density": {"filter": "mlp", "value": [0.1, 0.2]}}
    found = method({**TIES, "models": [{"model": "a", "parameters": parameters}]})
    assert found["density"] == {"a": {"filter-1": [0.1, 0.2], "default": 1.0}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model_stock", {"models": ["a", "b"]}),
        ("karcher", {"weights": {"a": 1.0, "b": 1.0}, "num_steps": 10, "tolerance": 1e-5}),
        ("multislerp", {"weights": {"a": 0.5, "b": 0.5}, "variant": "mergekit"}),
    ],
)
def test_methods_by_angles_are_translated(name, expected):
    document = {"merge_method": name, "models": [{"model": "a"}, {"model": "b"}]}
    if name == "model_stock":
        document["base_model"] = "o"
    if name == "multislerp":
        document["parameters"] = {"weight": 0.5}
    found = method(document)
    for key, value in expected.items():
        assert found[key] == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge_method": "sce"}, "merge_method: must be one of linear, .*; got 'sce'"),
        ({"base_model": None}, "base_model: is needed by ties"),
        ({"tokenizer_source": "m/a"}, "tokenizer_source: must be base or union; got 'm/a'"),
        ({"chat_template": "chatml"}, "chat_template: is not supported: the base's is kept"),
        ({"models": None, "slices": [{}, {}]}, "slices: layers cannot be rearranged"),
        ({"dtype": "float64"}, "dtype: must be one of float32, bfloat16, float16; got 'float64'"),
        ({"merge_methd": 1}, "merge_methd: is no key of mergekit"),
        ({"parameters": {"gamma": 0.1}}, "parameters.gamma: is not supported for ties; got 0.1"),
        ({"parameters": {"rescale": True}}, "parameters.rescale: is not supported for ties"),
        (
            {"models": [{"model": "a+b"}]},
            "models: an adapter must be on the base, 'org/base'; got",
        ),
        ({"base_model": "org/base+b"}, "base_model: must be a whole model; got 'org/base.b'"),
        ({"models": [{"model": "org/base"}]}, "models: must list a model besides the base"),
        ({"models": [MODELS[0], MODELS[0]]}, "models.1: lists a model again; got 'org/math-7b'"),
        (
            {"models": [{"model": "a", "parameters": {"weight": 1, "normalize": False}}]},
            "models.parameters.normalize: is one for the whole merge; got False",
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp"}]}}]},
            "parameters.weight: must have a value, and at most a filter, in each item",
        ),
        (
            {"merge_method": "karcher", "parameters": {"max_iter": "ten"}},
            "parameters.max_iter: must be a w",
        ),
        (
            {"merge_method": "karcher", "parameters": {"max_iter": 1.5}},
            "parameters.max_iter: must be a",
        ),
        (
            {"merge_method": "karcher", "parameters": {"tol": [1]}},
            "parameters.tol: must be a number",
        ),
        ({"models": [{"model": "a"}]}, "parameters.weight: is needed"),
        (
            {
                "models": [
                    {"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}
                ]
            },
            "parameters.weight: must end with a value for the rest",
        ),
        (
            {
                "models": [
                    {
                        "model": "a",
                        "parameters": {
                            "weight": [{"filter": "mlp", "value": 1}, {"value": 0.5}],
                            "density": [{"filter": "attn", "value": 1}, {"value": 0.5}],
                        },
                    }
                ]
            },
            "all filtered values must have the same filters in one order",
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": "x"}}]},
            "must be a number or a list",
        ),
        (
            {
                "merge_method": "breadcrumbs",
                "models": [
                    {"model": "a", "parameters": {"weight": 1, "gamma": 0.1}},
                    {"model": "b", "parameters": {"weight": 1, "gamma": 0.2}},
                ],
            },
            "models.parameters.gamma: must be one for all models",
        ),
        (
            {"merge_method": "task_arithmetic", "parameters": {"normalize": True}},
            "parameters.normalize: is not supported for task_arithmetic",
        ),
    ],
)
def test_what_is_not_supported_is_named(changes, words):
    with pytest.raises(ConfigError, match=f"m.yml: mergekit's {words}" if ":" in words else words):
        translated({**TIES, **changes})
