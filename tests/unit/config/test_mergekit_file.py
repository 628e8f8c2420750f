import pytest

from safemerge.config.mergekit_file import MergekitFile
from safemerge.errors import ConfigError

SOURCES = [{"model": name, "layer_range": [0, 4]} for name in ("a", "b")]


def read(**changes):
    document = {"merge_method": "slerp", "base_model": "a", **changes}
    return MergekitFile(document, "m.yml", ("slerp", "ties"))


def test_a_slice_gives_its_models_its_layers_and_what_it_sets_itself():
    whole = {"sources": SOURCES, "base_model": "b", "parameters": {"t": 0.2}}
    found = read(slices=[whole], parameters={"t": 0.1, "int8_mask": True})
    assert [source.model.path for source in found.sources] == ["a", "b"]
    assert found.num_layers == 4
    assert found.base.path == "b"
    assert found.parameters == {"t": 0.2, "int8_mask": True}


def test_the_result_has_the_type_it_is_written_in():
    models = [{"model": "a"}]
    assert read(models=models, dtype="float32", out_dtype="bfloat16").dtype == "bfloat16"
    assert read(models=models, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slices": "all"}, "slices: layers cannot be rearranged.*; got 'all'"),
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
            "slices.0: sources must share one layer_range from 0",
        ),
        ({"models": {"model": "a"}}, "models: must list models; got {'model': 'a'}"),
        ({"models": [{"model": "a", "layer_range": [0, 2]}]}, "models.0.layer_range: is not supp"),
        ({"models": [{"model": "a", "parameters": [1]}]}, "models.0.parameters: must be a mapp"),
        ({"models": [{"model": "a@v2"}]}, "models.0.model: a revision .* got 'a@v2'. For a fold"),
        ({"models": [{"model": "a"}], "parameters": {1: 2}}, "parameters: must be a mapping"),
        ({"models": [{"model": "a"}], "base_model": ["a"]}, "base_model: must be a model's fold"),
        ({"models": [{"model": "a"}], "layers": 4}, "layers: is no key of mergekit"),
    ],
)
def test_every_malformed_part_is_named(changes, words):
    with pytest.raises(ConfigError, match=f"^m.yml: mergekit's {words}"):
        read(**changes)
