"""Whole files against what mergekit 0.1.5 made of them, recorded by record_mergekit.py.

Models and merges are float32 and stand in mergekit.safetensors; random masks are safemerge's on
both sides. A merge may differ by 2e-6 in every entry.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safemerge.cli import main
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.mergekit import recipe_of_mergekit
from safemerge.config.mergekit_file import locate_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.warm_start import read_recipe
from safemerge.merge.resident import ResidentCheckpoints

HERE = Path(__file__).resolve().parent
DOCUMENTS = yaml.safe_load((HERE / "mergekit.yaml").read_text(encoding="utf-8"))
TOLERANCE = 2e-6
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "tie_word_embeddings": False,
}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def recorded():
    """Tensors by file and name, and the versions they were made with."""
    with safe_open(HERE / "mergekit.safetensors", framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        assert opened.metadata()["mergekit"] == "0.1.5"
    found = {}
    for key, tensor in tensors.items():
        kind, name, tensor_name = key.split("/", 2)
        found.setdefault((kind, name), {})[tensor_name] = tensor
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, recorded):
    """A folder with the models and the files."""
    folder = tmp_path_factory.mktemp("recorded")
    for (kind, name), tensors in recorded.items():
        if kind == "models":
            (folder / name).mkdir()
            is_adapter = name.startswith("lora")
            config = "adapter_config.json" if is_adapter else "config.json"
            weights = "adapter_model.safetensors" if is_adapter else "model.safetensors"
            text = json.dumps(ADAPTER if is_adapter else CONFIG)
            (folder / name / config).write_text(text, encoding="utf-8")
            save_file(tensors, folder / name / weights, metadata={"format": "pt"})
    for name, document in DOCUMENTS.items():
        text = yaml.safe_dump({**document, "dtype": "float32"})
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    return folder


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=TOLERANCE, msg=key)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_file_merges_to_what_mergekit_made_of_it(name, place, recorded):
    file = place / f"{name}.yml"
    document = recipe_of_mergekit(read_yaml(file), where=name).document
    assert list(locate_models(document, file, place)) == []
    recipe = parse_document(document, MergeRecipe, where=name)
    ours = dict(ResidentCheckpoints.open(recipe).merged(recipe))
    assert_same(ours, recorded["merged", name])


@pytest.mark.parametrize("name", ["passthrough", "adapter-base"])
def test_the_command_writes_it(name, place, recorded, tmp_path):
    assert main(["merge", str(place / f"{name}.yml"), str(tmp_path / "out")]) == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(ours, recorded["merged", name])
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == (5 if name == "passthrough" else 3)
    again = read_recipe(str(tmp_path / "out" / "safemerge_recipe.json"))
    assert_same(dict(ResidentCheckpoints.open(again).merged(again)), recorded["merged", name])


def test_the_recorded_merges_differ_from_each_other(recorded):
    # A comparison of merges that come to the same would prove nothing.
    name = "model.layers.0.mlp.up_proj.weight"
    merged = [tensors[name] for (kind, _), tensors in recorded.items() if kind == "merged"]
    alike = sum(
        torch.allclose(one, other, atol=1e-6)
        for at, one in enumerate(merged)
        for other in merged[:at]
    )
    assert alike <= 3  # two stacks and the two adapters leave the first layer's projection alone
