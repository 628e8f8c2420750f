import pytest
import torch

from safemerge.config.document import parse_document
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointError, CheckpointMismatchError, ConfigError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.stacked import Layers, StackedCheckpoint

UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture
def models(tiny_base, tiny_experts):
    return open_checkpoint(tiny_base), open_checkpoint(tiny_experts["math"])


def test_layers_are_numbered_anew_and_the_ends_are_of_the_outer_models(models):
    base, math = models
    stack = StackedCheckpoint([Layers(base, 0, 1), Layers(math, 1, 1)], where="m")
    assert stack.num_layers == 3
    assert stack.config["num_hidden_layers"] == 3
    assert stack.config["eos_token_id"] == base.config["eos_token_id"]
    for at, (model, layer) in enumerate(((base, 0), (base, 1), (math, 1))):
        assert torch.equal(stack.tensor(UP.format(at)), model.tensor(UP.format(layer)))
    for name, model in (("model.embed_tokens.weight", base), ("model.norm.weight", math)):
        assert torch.equal(stack.tensor(name), model.tensor(name))
        assert stack.shape(name) == model.shape(name)
    assert "model.layers.3.mlp.up_proj.weight" not in stack


def test_lists_of_the_config_with_an_item_for_each_layer_follow(models):
    base, _ = models
    base.config = {**base.config, "layer_types": ["sliding", "full"], "eos_token_id": [1, 2]}
    stack = StackedCheckpoint([Layers(base, 1, 1), Layers(base, 0, 1)], where="m")
    assert stack.config["layer_types"] == ["full", "sliding", "full"]
    assert stack.config["eos_token_id"] == [1, 2]


def test_what_cannot_be_stacked_is_refused(models):
    base, math = models
    with pytest.raises(CheckpointError, match="layers must be of the model; got layer 2 of"):
        StackedCheckpoint([Layers(base, 0, 2)], where="m")
    math.config = {**math.config, "num_attention_heads": 4}
    with pytest.raises(CheckpointMismatchError, match=r"share num_attention_heads; got 2 .* 4 in"):
        StackedCheckpoint([Layers(base, 0, 1), Layers(math, 0, 1)], where="m")
    base.config = {**base.config, "mlp_only_layers": [1]}
    with pytest.raises(CheckpointError, match=r"names some by number; got mlp_only_layers \[1\]"):
        StackedCheckpoint([Layers(base, 0, 1)], where="m")


def test_an_engine_cannot_start_from_a_stack(tiny_base):
    model = {"name": "b", "path": str(tiny_base)}
    document = {
        "base": {"name": "base", "stack": [{"model": model, "layers": "0-1"}]},
        "experts": [],
        "method": {"name": "passthrough", "models": ["base"]},
    }
    recipe = parse_document(document, MergeRecipe, where="r.yaml")
    with pytest.raises(ConfigError, match="Run 'safemerge merge', then 'safemerge evaluate"):
        ResidentCheckpoints.open(recipe, for_engine=True)
    merged = dict(ResidentCheckpoints.open(recipe).merged(recipe))
    base = open_checkpoint(tiny_base)
    assert torch.equal(merged[UP.format(1)], base.tensor(UP.format(1)))
