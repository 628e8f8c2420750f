from pathlib import Path

import pytest

from safemerge.config.document import parse_document
from safemerge.config.dotted_path import set_path
from safemerge.config.recipe import MergeRecipe

EXPERTS = [{"name": "math", "path": "/math"}, {"name": "code", "path": "/code"}]
WEIGHTS = {"math": 0.5, "code": 1}
METHODS = {
    "linear": {"name": "linear", "weights": {**WEIGHTS, "base": 0.1}, "normalize": False},
    "slerp": {"name": "slerp", "models": ["base", "math"], "t": 0.5},
    "task_arithmetic": {"name": "task_arithmetic", "weights": WEIGHTS, "lambda": 0.7},
    "ties": {"name": "ties", "weights": WEIGHTS, "density": {"math": 0.2, "code": 1}},
    "dare_linear": {"name": "dare_linear", "weights": WEIGHTS, "density": 0.1},
    "dare_ties": {"name": "dare_ties", "weights": WEIGHTS},
    "della": {"name": "della", "weights": WEIGHTS, "epsilon": [0.1, 0.2], "rescale": "l1"},
    "model_stock": {"name": "model_stock", "models": ["math", "code"]},
    "consensus_ta": {"name": "consensus_ta", "weights": {"math": [0, 1, 0.5], "code": 1}},
    "wudi": {"name": "wudi", "weights": WEIGHTS, "solver": "exact"},
}
GROUPS = [{"name": "early", "layers": "0-3"}, {"name": "mlp", "tensors": ["*.mlp.*"]}]


def recipe(method="task_arithmetic", **changes):
    return {
        "base": {"name": "base", "path": "/base"},
        "experts": EXPERTS,
        "method": METHODS[method] if isinstance(method, str) else method,
        **changes,
    }


def parse(document):
    return parse_document(document, MergeRecipe, where="f.yaml")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_loads_and_resolves_to_itself(method):
    loaded = parse(recipe(method, layer_groups=GROUPS, dtype="bfloat16", seed=3))
    assert parse(loaded.resolved()) == loaded
    assert parse(loaded.resolved()).digest == loaded.digest
    assert MergeRecipe.model_validate(loaded.resolved()) == loaded


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_key_is_refused_at_every_level(method, places, set_in, problems):
    loaded = parse(recipe(method, layer_groups=GROUPS))
    document = loaded.resolved()
    paths = list(places(loaded))
    assert {"", "base", "experts/0", "method", "layer_groups/1"} <= set(paths)
    for path in paths:
        changed = set_in(document, f"{path}/zzz".strip("/"), 1)
        (line,) = problems(changed, MergeRecipe)
        assert "zzz: unknown key; got 1. Known: " in line


@pytest.mark.parametrize(
    ("key", "near"),
    [("densty", "density"), ("lamda", "lambda"), ("wieghts", "weights"), ("lambda_", "lambda")],
)
def test_a_mistyped_key_is_answered_with_the_nearest(key, near, problems):
    method = {**METHODS["ties"], key: 0.2}
    assert problems(recipe(method), MergeRecipe) == [
        f"f.yaml: method.{key}: unknown key; got 0.2. Did you mean '{near}'?"
    ]


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("ties", {"density": 0}, "method.density: must be above 0; got 0."),
        ("ties", {"density": 1.01}, "method.density: must be at most 1; got 1.01."),
        ("ties", {"density": "half"}, 'method.density: must be a number; got "half".'),
        (
            "ties",
            {"density": {"math": 2, "code": 1}},
            "method.density.math: must be at most 1; got 2.",
        ),
        (
            "ties",
            {"density": {"math": 0.5}},
            "method.density: must name the experts of method.weights, ['code', 'math']; "
            "got ['math'].",
        ),
        ("slerp", {"t": -0.1}, "method.t: must be at least 0; got -0.1."),
        ("slerp", {"t": 1.1}, "method.t: must be at most 1; got 1.1."),
        ("slerp", {"t": [0.1, 1.1]}, "method.t.1: must be at most 1; got 1.1."),
        ("slerp", {"t": [0.1]}, "method.t: must have at least 2 items; got [0.1]."),
        ("della", {"epsilon": 0.5}, "method.epsilon: must be below 0.5; got 0.5."),
        (
            "della",
            {"density": 0.9, "epsilon": 0.2},
            "method: density - epsilon and density + epsilon must be in (0, 1); got density 0.9 "
            "to 0.9, epsilon 0.2. Make epsilon smaller.",
        ),
        (
            "della",
            {"density": {"math": 1, "code": [0.5, 1]}, "epsilon": 0.1},
            "method: density - epsilon and density + epsilon must be in (0, 1); got density 0.5 "
            "to 1, epsilon 0.1. Make epsilon smaller.",
        ),
        (
            "consensus_ta",
            {"min_agreeing": 3},
            "method: min_agreeing must not exceed the number of weights; got 3 and 2, which "
            "keeps nothing. Lower it.",
        ),
        (
            "model_stock",
            {"models": ["base"]},
            "method: names an unknown model; got 'base'. Known: math, code.",
        ),
        (
            "wudi",
            {"density": 0.5},
            "method.density: unknown key; got 0.5. Known: embeddings, lambda, learning_rate, "
            "name, num_steps, solver, weights.",
        ),
        (
            "slerp",
            {"models": ["math"]},
            'method.models: must have at least 2 items; got ["math"].',
        ),
        (
            "slerp",
            {"models": ["math", "cod"]},
            "method: names an unknown model; got 'cod'. Did you mean 'code'?",
        ),
        (
            "task_arithmetic",
            {"weights": {"maths": 1}},
            "method: names an unknown model; got 'maths'. Did you mean 'math'?",
        ),
        (
            "ties",
            {"weights": {"base": 1}, "density": 0.5},
            "method: names an unknown model; got 'base'. Known: math, code.",
        ),
        ("linear", {"weights": {}}, "method.weights: must have at least 1 item; got {}."),
        ("linear", {"weights": [1, 2]}, "method.weights: must be a mapping; got [1, 2]."),
        ("linear", {"normalize": 1}, "method.normalize: must be true or false; got 1."),
        (
            "linear",
            {"weights": {"math": "1"}},
            'method.weights.math: must be a number; got "1".',
        ),
        (
            "linear",
            {"weights": {"math": {"early": "x"}}},
            'method.weights.math.early: must be a number; got "x".',
        ),
        (
            "task_arithmetic",
            {"lambda": {"earley": 1, "default": 0}},
            "method.lambda: names an unknown layer group; got 'earley'. Did you mean 'early'?",
        ),
        (
            "task_arithmetic",
            {"lambda": {"early": 1}},
            "method.lambda: must name every layer group or 'default'; missing 'mlp'.",
        ),
        (
            "slerp",
            {"t": {}},
            "method.t: must name every layer group or 'default'; missing 'early'.",
        ),
        (
            {"name": "tise"},
            {},
            "method.name: unknown choice; got \"tise\". Did you mean 'ties'?",
        ),
        ({"weights": {}}, {}, "method.name: required key is missing. Add it."),
    ],
)
def test_a_method_out_of_range_is_told_with_place_and_value(method, changes, line, problems):
    template = METHODS[method] if isinstance(method, str) else method
    document = recipe({**template, **changes}, layer_groups=GROUPS)
    assert problems(document, MergeRecipe) == [f"f.yaml: {line}"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"experts": [*EXPERTS, {"name": "math", "path": "/x"}]},
            "names of base and experts must be unique; got ['base', 'math', 'code', 'math'].",
        ),
        (
            {"base": {"name": "math", "path": "/b"}},
            "names of base and experts must be unique; got ['math', 'math', 'code'].",
        ),
        ({"experts": []}, "experts: must have at least 1 item; got 0."),
        (
            {"base": {"name": "base"}},
            "base: exactly one of path, hub, package, align, finetune, stack must be given; got "
            "none. Keep one.",
        ),
        (
            {"base": {"name": "base", "path": "/b", "align": "a.yaml"}},
            "base: exactly one of path, hub, package, align, finetune, stack must be given; "
            "got path, align. Keep one.",
        ),
        (
            {"experts": [{"name": "math", "path": 3}, EXPERTS[1]]},
            "experts.math.path: must be text; got 3. Quote it.",
        ),
        (
            {"dtype": "float61"},
            "dtype: must be 'base', 'float32', 'bfloat16' or 'float16'; got \"float61\". "
            "Did you mean 'float16'?",
        ),
        ({"seed": -1}, "seed: must be at least 0; got -1."),
        ({"seed": 2**63}, f"seed: must be below 9.22337e+18; got {2**63}."),
        (
            {"layer_groups": [{"name": "early", "layers": "3-1"}]},
            "layer_groups.early: first layer must not exceed the last; got '3-1'.",
        ),
        (
            {"layer_groups": [{"name": "early"}]},
            "layer_groups.early: at least one of layers, kind, tensors, outside must be given. "
            "Add one.",
        ),
        (
            {"layer_groups": [{"name": "early", "layers": "a-b"}]},
            'layer_groups.early.layers: must match the pattern ^\\d+(-\\d+)?$; got "a-b".',
        ),
        (
            {"layer_groups": [GROUPS[0], GROUPS[0]]},
            "layer_groups: names must be unique; got ['early', 'early'].",
        ),
    ],
)
def test_a_recipe_that_breaks_a_rule_is_told_with_place_and_value(changes, line, problems):
    found = problems(recipe(**changes), MergeRecipe)
    assert f"f.yaml: {line}" in found


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (
            [{"name": "resta", "aligned": "math", "unaligned": "harm"}],
            "steps.resta: names an unknown model; got 'harm'. Known: base, math, code.",
        ),
        (
            [{"name": "pre_post", "alpha": 1.5}],
            "steps.pre_post.alpha: must be at most 1; got 1.5.",
        ),
        (
            [{"name": "pre_post"}] * 2,
            "steps: each may be taken once; got ['pre_post', 'pre_post'].",
        ),
        (
            [{"name": "pre_post", "experts": ["cod"]}],
            "steps.pre_post.experts: must be experts that the method merges; got 'cod'. "
            "Did you mean 'code'?",
        ),
        (
            [{"name": "pre_post", "on": "merged", "experts": ["code"]}],
            "steps.pre_post: experts may be named with 'on: experts' only. Drop one of the two.",
        ),
        (
            [{"name": "safe_merge", "aligned": "math", "safe": "code"}],
            "steps.safe_merge: must change an expert; got none left, for the method merges only "
            "what the step reads. Name experts, or take 'on: merged'.",
        ),
        (
            [{"name": "resta", "aligned": "math", "unaligned": "code", "scale": {"late": 1}}],
            "steps.resta.scale: names an unknown layer group; got 'late'. Known: default.",
        ),
        ([{"name": "safelora", "aligned": "math"}], "steps.safelora.name: unknown choice; got"),
    ],
)
def test_a_step_that_breaks_a_rule_is_told_with_place_and_value(steps, line, problems):
    found = problems(recipe(steps=steps), MergeRecipe)
    assert any(item.startswith(f"f.yaml: {line}") for item in found), found


def test_a_recipe_with_steps_resolves_to_itself():
    steps = [
        {"name": "safe_lora", "aligned": "math", "experts": ["code"]},
        {"name": "merge_align", "aligned": "math", "alpha": [0.2, 0.9]},
    ]
    loaded = parse(recipe(steps=steps))
    assert parse(loaded.resolved()) == loaded
    assert loaded.digest != parse(recipe()).digest


def test_anchors_are_addressed_by_their_place():
    document = parse(recipe("consensus_ta")).resolved()
    set_path(document, "method.weights.math.1", 0.25)
    assert parse(document).method.weights["math"] == [0.0, 0.25, 0.5]
    with pytest.raises(KeyError, match=r"wrong at '3'. Known: 0, 1, 2"):
        set_path(document, "method.weights.math.3", 0.25)


def test_the_name_of_the_rest_cannot_be_a_groups(problems):
    found = problems(recipe(layer_groups=[{"name": "default", "layers": "1"}]), MergeRecipe)
    assert len(found) == 1
    assert "'default' stands for the rest" in found[0]


def test_rules_between_fields_are_told_all_at_once(problems):
    method = {"name": "ties", "weights": {"maths": {"late": 1.0}}, "density": {"code": 0.5}}
    assert len(problems(recipe(method), MergeRecipe)) == 3


def test_layer_ranges_are_inclusive():
    groups = parse(
        recipe(layer_groups=[{"name": "a", "layers": "2-5"}, {"name": "b", "layers": "7"}])
    )
    assert [group.layer_range for group in groups.layer_groups] == [(2, 5), (7, 7)]


def test_relative_references_are_taken_from_the_files_folder():
    document = recipe(base={"name": "base", "align": "stages/safe.yaml"})
    document["experts"] = [{"name": "math", "path": "../math"}, EXPERTS[1]]
    located = parse(document).located(Path("/studies/one"))
    assert located.base.align == "/studies/one/stages/safe.yaml"
    assert [item.path for item in located.experts] == ["/studies/math", "/code"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("method.weights.math", 0.25),
        ("method.lambda", 0.5),
        ("seed", 1),
        ("dtype", "float16"),
        ("experts.math.path", "/other"),
    ],
)
def test_the_digest_changes_with_everything_the_weights_depend_on(path, value):
    document = parse(recipe()).resolved()
    before = parse(document).digest
    set_path(document, path, value)
    assert parse(document).digest != before


def test_the_digest_of_a_moved_checkpoint_goes_by_its_fingerprint():
    def moved(path, fingerprint):
        expert = {"name": "math", "path": path, "digest": fingerprint}
        return parse(recipe(experts=[expert, EXPERTS[1]])).digest

    assert moved("/a", "f1") == moved("/b", "f1") != moved("/a", "f2")


def test_an_unknown_path_is_told_with_the_nearest_member():
    document = parse(recipe()).resolved()
    for path, advice in (
        ("method.weights.mathe", "Did you mean 'math'"),
        ("experts.kode.path", "Did you mean 'code'"),
        ("seed.deeper", "It goes deeper than the template does"),
    ):
        with pytest.raises(
            KeyError, match=f"no such path in the template; got '{path}'.*{advice}"
        ):
            set_path(document, path, 1)
