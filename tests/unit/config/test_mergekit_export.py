import pytest

from safemerge.config.document import parse_document
from safemerge.config.mergekit import recipe_of_mergekit
from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError

WEIGHTS = {"math": 0.5, "code": 0.25}
GROUPS = [{"name": "filter-1", "tensors": ["*mlp*"]}, {"name": "filter-2", "tensors": ["*attn*"]}]


def recipe(method, **changes):
    document = {
        "base": {"name": "base", "path": "org/base"},
        "experts": [
            {"name": "math", "path": "org/math"},
            {"name": "code", "path": "org/code"},
        ],
        "method": method,
        **changes,
    }
    return parse_document(document, MergeRecipe, where="r.yaml")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "linear", "weights": {"base": 0.2, **WEIGHTS}, "normalize": False},
        {"name": "slerp", "models": ["base", "code"], "t": [0.0, 0.5, 1.0]},
        {"name": "slerp", "models": ["base", "code"], "t": {"filter-1": 0.3, "default": 0.5}},
        {"name": "multi_slerp", "weights": WEIGHTS, "variant": "mergekit"},
        {"name": "karcher", "weights": {"math": 1.0, "code": 1.0}, "num_steps": 7},
        {"name": "task_arithmetic", "weights": {"math": -0.5, "code": 1.0}, "lambda": 0.7},
        {"name": "ties", "weights": WEIGHTS, "density": {"math": 0.2, "code": [0.3, 0.9]}},
        {"name": "ties", "weights": {"math": {"filter-1": 0.1, "filter-2": [0, 1]}, "code": 1.0}},
        {"name": "dare_linear", "weights": WEIGHTS, "rescale": "l1", "density": 0.3},
        {"name": "dare_ties", "weights": WEIGHTS, "rescale": "none", "normalize": False},
        {"name": "della", "weights": WEIGHTS, "rescale": "l1", "epsilon": [0.1, 0.2]},
        {"name": "della_linear", "weights": WEIGHTS, "rescale": "l1"},
        {"name": "breadcrumbs", "weights": WEIGHTS, "gamma": 0.05},
        {"name": "breadcrumbs_ties", "weights": WEIGHTS},
        {"name": "model_stock", "models": ["math", "code"], "variant": "mergekit"},
        {
            "name": "model_stock",
            "models": ["math", "code"],
            "variant": "mergekit",
            "vectors": "rows",
        },
        {"name": "multi_slerp", "weights": WEIGHTS, "variant": "mergekit", "origin": "base"},
        {"name": "nuslerp", "weights": WEIGHTS, "vectors": "columns"},
        {"name": "nuslerp", "weights": WEIGHTS, "vectors": "rows", "origin": "base"},
        {"name": "sce", "models": ["math", "code"], "density": [0.2, 0.4], "variant": "mergekit"},
        {"name": "arcee_fusion", "models": ["math"]},
        {"name": "nearswap", "models": ["math"], "t": [0.01, 0.02]},
        {"name": "ram", "models": ["math", "code"], "epsilon": 0.01},
        {"name": "ram", "models": ["math", "code"], "boost": 0.3, "boost_cap": [0.1, 0.4]},
        {"name": "passthrough", "models": ["math"], "scale": 0.5},
        {"name": "task_arithmetic", "weights": WEIGHTS, "normalize": True},
        {"name": "ties", "weights": {"math": -0.5, "code": 1.0}, "divisor": "signed"},
        {"name": "ties", "weights": WEIGHTS, "rescale": "l1"},
        {
            "name": "della",
            "weights": WEIGHTS,
            "rescale": "l1",
            "epsilon_by_expert": {"math": 0.1, "code": [0.1, 0.2]},
        },
        {
            "name": "breadcrumbs",
            "weights": WEIGHTS,
            "gamma_by_expert": {"math": 0.1, "code": 0.2},
        },
    ],
    ids=lambda method: method["name"],
)
def test_a_file_made_from_a_recipe_is_read_as_the_same_recipe(method):
    if "filter-2" in str(method):
        method["weights"]["math"]["default"] = 0.5
    used = GROUPS if "filter-2" in str(method) else GROUPS[: "filter-1" in str(method)]
    given = recipe(method, layer_groups=used, dtype="bfloat16", vocabulary="union")
    document = mergekit_of_recipe(given)
    back = parse_document(
        recipe_of_mergekit(document, where="m.yml").document, MergeRecipe, where="m.yml"
    )
    before, after = given.resolved()["method"], back.resolved()["method"]
    if not isinstance(before.get("density", {}), dict) and "weights" in before:
        before["density"] = dict.fromkeys(WEIGHTS, before["density"])
    assert after == before
    assert back.dtype == given.dtype
    assert back.vocabulary == given.vocabulary
    assert [group.tensors for group in back.layer_groups] == [group["tensors"] for group in used]


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ({"name": "wudi", "weights": WEIGHTS}, {}, "method 'wudi'"),
        ({"name": "ties", "weights": WEIGHTS, "variant": "peft"}, {}, "variant 'peft'"),
        ({"name": "multi_slerp", "weights": WEIGHTS}, {}, "variant 'tangent'"),
        ({"name": "karcher", "weights": WEIGHTS}, {}, "different weights in a Karcher mean"),
        ({"name": "dare_linear", "weights": WEIGHTS}, {}, "rescale 'probability'"),
        ({"name": "breadcrumbs", "weights": WEIGHTS, "gamma": 0}, {}, "gamma 0"),
        ({"name": "ties", "weights": {"math": -1.0}}, {}, "a negative weight in a normalised"),
        ({"name": "model_stock", "models": ["math"], "lambda": 0.5}, {}, "lambda 0.5"),
        (
            {"name": "ties", "weights": WEIGHTS},
            {"steps": [{"name": "pre_post"}]},
            "the step 'pre_post'",
        ),
        (
            {"name": "ties", "weights": WEIGHTS},
            {"layer_groups": [{"name": "early", "layers": "0-3"}]},
            "layer group 'early' \\(0-3\\)",
        ),
        (
            {"name": "ties", "weights": WEIGHTS},
            {"base": {"name": "base", "align": "a.yaml"}},
            "model 'base' without a path",
        ),
    ],
)
def test_what_mergekit_cannot_express_is_named(method, changes, words):
    with pytest.raises(ConfigError, match=f"mergekit cannot express it; got {words}"):
        mergekit_of_recipe(recipe(method, **changes))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_an_adapter_is_written_on_its_base_and_read_back(method):
    given = recipe({"name": method, "weights": WEIGHTS})
    document = mergekit_of_recipe(given, adapters=["math"])
    assert [item["model"] for item in document["models"]] == ["org/base+org/math", "org/code"]
    assert document.get("base_model") in (None, "org/base")
    back = recipe_of_mergekit(document, where="m.yml").document
    back = parse_document(back, MergeRecipe, where="m.yml")
    assert (back.base.path, [ref.path for ref in back.experts]) == (
        "org/base",
        ["org/math", "org/code"],
    )
    assert back.method.weights == WEIGHTS
