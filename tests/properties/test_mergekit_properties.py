"""A mergekit file, however malformed, is translated or refused in one message."""

import copy
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.config.document import parse_document, read_yaml
from safemerge.config.mergekit import is_mergekit, recipe_of_mergekit
from safemerge.config.mergekit_file import locate_models
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError

SLICES = [{"sources": [{"model": name, "layer_range": [0, 2]} for name in ("base", "math")]}]
EXPERT = {
    "weight": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}],
    "density": 0.3,
    "epsilon": 0.1,
}
FILES = [
    {
        "merge_method": "della",
        "base_model": {"model": {"path": "base"}},
        "models": [{"model": "base"}, {"model": "base+math", "parameters": EXPERT}],
        "parameters": {"lambda": 0.9, "normalize": True, "rescale": False, "int8_mask": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "tokenizer_source": "union",
    },
    {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": SLICES,
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]},
    },
    {
        "merge_method": "karcher",
        "models": [{"model": "base"}, {"model": "math"}],
        "parameters": {"max_iter": 5, "tol": 1e-6},
    },
    {
        "merge_method": "multislerp",
        "models": [{"model": "base"}, {"model": "math"}],
        "parameters": {"weight": 0.5, "normalize_weights": True, "eps": 1e-8},
    },
    {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [{"model": "math"}],
        "parameters": {"filter_wise": False},
    },
]
KEYS = sorted(
    {"merge_method", "base_model", "models", "slices", "parameters", "model", "lora", "path"}
    | {"revision", "sources", "layer_range", "filter", "value", "weight", "residual_weight"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats()
    | st.sampled_from(["", "ten", "base", "math", "a+b+c", "a@b", "org/m", "\0", "slerp", "ties"])
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS) | st.integers(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def places(node, path=()):
    """Every place of a document, by the keys that lead there."""
    yield path
    inner = dict(enumerate(node)) if isinstance(node, list) else node
    for key, item in inner.items() if isinstance(inner, dict) else ():
        yield from places(item, (*path, key))


@st.composite
def mutated(draw):
    document = copy.deepcopy(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 2))):
        found = [path for path in places(document) if path]
        if not found:
            break
        *outer, key = draw(st.sampled_from(found))
        parent = document
        for step in outer:
            parent = parent[step]
        change = draw(st.sampled_from(["replace", "drop", "repeat", "add"]))
        if change == "drop":
            del parent[key]
        elif change == "repeat" and isinstance(parent, list):
            parent.append(parent[key])
        elif change == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS))] = draw(VALUES)
        else:
            parent[key] = draw(VALUES)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    for name in ("base", "math"):
        (place / name).mkdir()
    return place


def read(text, folder):
    file = folder / "m.yml"
    file.write_text(text, encoding="utf-8")
    document = read_yaml(file)
    if not is_mergekit(document):
        return None
    found = recipe_of_mergekit(document, where=str(file)).document
    list(locate_models(found, file, folder))
    return parse_document(found, MergeRecipe, where=str(file))


@pytest.mark.parametrize("document", FILES, ids=lambda document: document["merge_method"])
def test_the_files_that_are_changed_are_valid(document, folder):
    assert isinstance(read(yaml.safe_dump(document), folder), MergeRecipe)


@given(mutated())
@settings(max_examples=400)
def test_a_malformed_file_is_refused_in_one_message(folder, document):
    with suppress(ConfigError):
        read(yaml.safe_dump(document, allow_unicode=True), folder)


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear\nmodels: &a [*a]\n",
        "merge_method: linear\nmodels: [&a {model: base, parameters: {weight: &b [*b]}}]\n",
        "merge_method: linear\nmodels: [{model: base}]\nparameters: &a {weight: *a}\n",
        "merge_method: linear\nmodels: [{model: base}]\nparameters: {weight: 2026-13-45}\n",
        "merge_method: linear\nmodels: [{model: base}]\nparameters: {weight: "
        + "9" * 5000
        + "}\n",
    ],
    ids=["models", "weight", "parameters", "date", "digits"],
)
def test_what_only_yaml_can_say_is_refused_too(text, folder):
    with pytest.raises(ConfigError, match=r"m\.yml"):
        read(text, folder)
