import pytest

from safemerge.config.mergekit_file import MergekitFile

SOURCES = [{"model": name, "layer_range": [0, 4]} for name in ("a", "b")]


def read(**changes):
    document = {"merge_method": "slerp", "base_model": "a", **changes}
    return MergekitFile(document, "m.yml", ("slerp", "ties"))


def test_a_slice_has_its_own_base_and_its_parameters_go_before_the_files():
    whole = {"sources": SOURCES, "base_model": "b", "parameters": {"t": 0.2}}
    found = read(slices=[whole], parameters={"t": 0.1, "int8_mask": True})
    (item,) = found.slices
    assert [source.model.path for source in item.sources] == ["a", "b"]
    assert [source.layers for source in item.sources] == [(0, 4), (0, 4)]
    assert item.base.path == "b"
    assert [level.parameters for level in item.shared] == [
        {"t": 0.2}, {"t": 0.1, "int8_mask": True},
    ]  # fmt: skip
    assert found.problems == []


def test_one_module_is_read_as_the_whole():
    module = {"models": [{"model": "a"}], "parameters": {"t": 0.3}}
    found = read(modules={"text_decoder": module}, parameters={"t": 0.1})
    (item,) = found.slices
    assert [level.parameters for level in item.shared] == [{"t": 0.3}, {"t": 0.1}]


def test_the_result_has_the_type_it_is_written_in():
    models = [{"model": "a"}]
    assert read(models=models, dtype="float32", out_dtype="torch.bfloat16").dtype == "bfloat16"
    assert read(models=models, dtype="float64", out_dtype="float16").problems == []
    assert read(models=models, dtype="float32").dtype == "float32"
    assert read(models=models).dtype is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slices": "all"}, "slices: must list slices; got 'all'"),
        ({"slices": ["a"]}, "slices.0: must be a mapping of names; got 'a'"),
        ({"slices": [{}]}, "slices.0.sources: must list models"),
        ({"slices": [{"sources": {"model": "a"}}]}, "slices.0.sources: must list models"),
        ({"slices": [{"sources": ["a"]}]}, "slices.0.sources.0: must be a mapping with 'model'"),
        (
            {"slices": [{"sources": SOURCES, "residual_weight": 0.5}]},
            "slices.0.residual_weight: is not supported; got 0.5",
        ),
        (
            {"slices": [{"sources": [{"model": "a", "layer_range": 2}]}]},
            "slices.0.sources.0.layer_range: must be the first layer and the one to stop before; "
            "got 2",
        ),
        (
            {"slices": [{"sources": [{"model": "a"}]}]},
            "slices.0.sources.0.layer_range: must be the first layer",
        ),
        (
            {"slices": [{"sources": [SOURCES[0], {"model": "b", "layer_range": [0, 2]}]}]},
            "slices.0: sources of a slice must have the same number of layers",
        ),
        ({"models": {"model": "a"}}, "models: must list models; got {'model': 'a'}"),
        ({"models": [{"model": "a", "layer_range": [0, 2]}]}, "models.0.layer_range: is not supp"),
        ({"models": [{"model": "a", "parameters": [1]}]}, "models.0.parameters: must be a mapp"),
        ({"models": [{"model": "./a@v2"}]}, "models.0.model: a revision .* got './a@v2'. For a "),
        ({"models": [{"model": "a"}], "parameters": {1: 2}}, "parameters: must be a mapping"),
        ({"models": [{"model": "a"}], "base_model": ["a"]}, "base_model: must be a model's fold"),
        ({"models": [{"model": "a"}], "layers": 4}, "layers: is no key of mergekit"),
        (
            {"models": [{"model": "a"}], "tokenizer": {}, "tokenizer_source": "base"},
            "tokenizer: must not stand beside tokenizer_source",
        ),
    ],
)
def test_every_malformed_part_is_named(changes, words):
    (problem,) = read(**changes).problems
    assert problem.startswith("m.yml: mergekit's ")
    words = words.split(".* ")
    assert all(part in problem for part in words), problem
