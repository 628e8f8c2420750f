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


WEIGHT = {"parameters": {"weight": 1}}


def layers(*sources):
    """A slice of mergekit: models with their first layer and the one to stop before."""
    listed = [{"model": name, "layer_range": [start, stop]} for name, start, stop in sources]
    return {"sources": listed}


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
        ("della", {"rescale": "l1", "epsilon": 0.15, "normalize": True}),
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
        ({"merge_method": "rams"}, "merge_method: must be one of linear, .*; got 'rams'"),
        ({"base_model": None}, "base_model: is needed by ties"),
        ({"tokenizer_source": ["a"]}, "tokenizer_source: must be a model's folder"),
        ({"tokenizer": {"tokens": {"<s>": "a"}}}, "tokenizer.tokens.<s>: must have a source"),
        (
            {"tokenizer": {"tokens": {"x": {"force": True}}}},
            "tokenizer.tokens.x: must have a source",
        ),
        (
            {"tokenizer": {"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}},
            "tokenizer.tokens.x.source: must be a model, {kind: zero}, or",
        ),
        (
            {"tokenizer": {"tokens": {"x": {"source": "elsewhere"}}}},
            "tokenizer.tokens.x.source: must be one of the merged models; got 'elsewhere'",
        ),
        (
            {"tokenizer": {"pad_to_multiple_of": 0}},
            "tokenizer.pad_to_multiple_of: must be a whole number",
        ),
        ({"tokenizer": {"sorce": "a"}}, "tokenizer.sorce: is no key of mergekit"),
        ({"chat_template": "zephyr"}, "chat_template: must be auto, chatml, llama3, or Jinja"),
        ({"chat_template": ["auto"]}, "chat_template: must be text"),
        ({"models": None, "slices": [{}, {}]}, "slices.1.sources: must list models"),
        ({"models": None, "slices": []}, "slices: must list slices"),
        ({"models": None}, "models: must be given, or slices, or modules"),
        ({"slices": [{}]}, "models: must be given, or slices, .*; got 'models and slices'"),
        ({"models": None, "modules": {"a": {}, "b": {}}}, "modules: must be one module"),
        ({"dtype": "float64"}, "dtype: must be one of float32, bfloat16, float16; got 'float64'"),
        ({"merge_methd": 1}, "merge_methd: is no key of mergekit"),
        ({"parameters": {"densty": 1}}, "parameters.densty: .*Did you mean 'density'.*drop para"),
        ({"models": [{"model": "org/base"}]}, "models: must list a model besides the base"),
        ({"models": [MODELS[0], MODELS[0]]}, "models.1: lists a model again; got 'org/math-7b'"),
        (
            {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp"}]}}]},
            "models.0.parameters.weight: must have a value, and at most a filter, in each item",
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
        ({"parameters": {"normalize": "yes"}}, "parameters.normalize: must be true or false"),
        ({"models": [{"model": "a"}]}, "parameters.weight: is needed"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "models: slerp takes the base and"),
        ({"merge_method": "nuslerp", "models": MODELS[:1]}, "models: nuslerp takes two models"),
        (
            {"merge_method": "passthrough", "base_model": None},
            "models: passthrough takes one model for each slice; got 2",
        ),
        (
            {
                "models": [
                    {"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}
                ]
            },
            "parameters.weight: must end with a value for the rest",
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": "x"}}]},
            "models.0.parameters.weight: must be a number or a list",
        ),
        (
            {"models": None, "slices": [layers(["a", 0, 2]), layers(["a", 2, 4], ["b", 2, 4])]},
            "slices: every slice must merge as many models as the first; got .2, 3.",
        ),
    ],
)
def test_what_is_not_supported_is_named(changes, words):
    with pytest.raises(ConfigError, match=f"m.yml: mergekit's {words}"):
        translated({**TIES, **changes})


def test_every_problem_of_a_file_is_named_at_once():
    models = [{"model": "a", "parameters": {"weight": "x", "densty": 1}}, {"model": "b@v1"}]
    document = {**TIES, "models": models, "dtype": "int8", "extra": 1}
    with pytest.raises(ConfigError) as error:
        translated(document)
    lines = str(error.value).splitlines()
    places = ("extra", "dtype", "models.1.model", "models.0.parameters.densty")
    for place in (*places, "models.0.parameters.weight"):
        assert sum(f"mergekit's {place}:" in line for line in lines) == 1, lines
    assert len(lines) == 5


def test_what_mergekit_does_not_read_is_noted_and_left_out():
    models = [{"model": "a", "parameters": {"weight": 0.3, "dtype": "bfloat16"}}, {"model": "b"}]
    document = {"merge_method": "model_stock", "base_model": "o", "models": models, "name": "s"}
    found = recipe_of_mergekit(document, where="m.yml")
    assert [note.partition(":")[0] for note in found.notes] == [
        "models.0.parameters.weight",
        "models.0.parameters.dtype",
    ]
    whole = {**TIES, "models": [{"model": "a", "parameters": {"weight": 1, "lambda": 2}}]}
    assert recipe_of_mergekit(whole, where="m.yml").notes == (
        "models.0.parameters.lambda: mergekit reads it for the whole merge only; left out",
    )


def test_mergekits_variants_are_named_where_they_matter():
    negative = [{"model": "a", "parameters": {"weight": [-0.5, 1]}}]
    assert method({**TIES, "models": negative})["divisor"] == "signed"
    assert "divisor" not in method(TIES)
    assert translated({**TIES, "models": negative})[0].anchors == "mergekit"
    assert translated(TIES)[0].anchors == "depth"
    own = [{"model": name, "parameters": {"weight": 1, "epsilon": at}}
           for name, at in (("a", 0.1), ("b", 0.2))]  # fmt: skip
    found = method({**TIES, "merge_method": "della", "models": own})
    assert found["epsilon_by_expert"] == {"a": 0.1, "b": 0.2}


def test_numbers_may_be_text_and_a_filter_for_all_is_the_rest():
    models = [
        {
            "model": "a",
            "parameters": {
                "weight": [{"filter": "mlp", "value": "1e-1"}, {"filter": "*", "value": 1}]
            },
        }
    ]
    assert method({**TIES, "models": models})["weights"] == {
        "a": {"filter-1": 0.1, "default": 1.0}
    }


def test_filters_that_differ_become_groups_that_must_not_overlap():
    parameters = {
        "weight": [{"filter": "attn", "value": 0.1}, {"value": 0.2}],
        "density": [{"filter": "mlp", "value": 0.3}, {"filter": "mlp.up", "value": 0.9}],
    }
    document = {**TIES, "models": [{"model": "a", "parameters": parameters}]}
    found = recipe_of_mergekit(document, where="m.yml")
    assert [group["tensors"] for group in found.document["layer_groups"]] == [
        ["*attn*"], ["*mlp.up*"], ["*mlp*"],
    ]  # fmt: skip
    made = found.document["method"]
    assert made["weights"]["a"] == {
        "filter-1": 0.1, "filter-2": 0.2, "filter-3": 0.2, "default": 0.2,
    }  # fmt: skip
    assert made["density"]["a"] == {
        "filter-1": 1.0, "filter-2": 0.3, "filter-3": 0.3, "default": 1.0,
    }  # fmt: skip
    assert found.apart == (("attn", "mlp"), ("attn", "mlp.up"))


def test_the_tokenizer_may_be_a_models():
    other = {**TIES, "tokenizer": {"source": "org/code-7b"}, "chat_template": "chatml"}
    recipe, _ = translated(other)
    assert (recipe.vocabulary, recipe.tokenizer.from_) == ("tokenizer", "code-7b")
    assert "<|im_start|>" in recipe.tokenizer.chat_template.text
    assert translated({**TIES, "tokenizer": {"source": "org/base"}})[0].vocabulary == "base"
    assert translated({**TIES, "tokenizer": {}})[0].vocabulary == "union"
    third, _ = translated({**TIES, "tokenizer_source": "org/third"})
    assert [ref.name for ref in third.experts] == ["math-7b", "code-7b", "third"]
    assert recipe_of_mergekit({**TIES, "chat_template": "auto"}, where="m.yml").auto_template


def test_an_adapter_on_another_model_names_it():
    document = {**TIES, "base_model": "org/base+l", "models": [{"model": "x/y+m", **WEIGHT}]}
    recipe, _ = translated(document)
    assert (recipe.base.path, recipe.base.on.path) == ("l", "org/base")
    assert (recipe.experts[0].path, recipe.experts[0].on.path) == ("m", "x/y")


def test_slices_of_several_models_are_a_stack():
    slices = [layers(["a", 0, 2]), layers(["b", 1, 3])]
    recipe, num_layers = translated({"merge_method": "passthrough", "slices": slices})
    assert num_layers == 4
    assert recipe.experts == []
    stack = [(item.model.path, item.layers) for item in recipe.base.stack]
    assert stack == [("a", "0-1"), ("b", "1-2")]
    assert recipe.method.models == [recipe.base.name]


def test_slices_in_order_are_whole_models_with_values_by_slice():
    slices = [layers(["a", 0, 2], ["b", 0, 2]), layers(["a", 2, 3], ["b", 2, 3])]
    for item, t in zip(slices, ([0.1, 0.5], [0.3, 0.9]), strict=True):
        item["parameters"] = {"t": t}
    document = {"merge_method": "slerp", "base_model": "a", "slices": slices}
    recipe, num_layers = translated(document)
    assert num_layers == 3
    assert [ref.path for ref in recipe.checkpoints] == ["a", "b"]
    assert recipe.method.t == {
        "before": 0.1, "slice-1": [0.1, 0.5, 0.5], "slice-2": [0.9, 0.9, 0.9], "after": 0.3,
        "default": 0.1,
    }  # fmt: skip
