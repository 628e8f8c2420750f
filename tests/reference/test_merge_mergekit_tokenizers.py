"""Rows, tokenizers and templates against mergekit 0.1.5, as record_mergekit.py recorded it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from word_tokenizer import word_tokenizer

from safemerge.cli import main
from safemerge.config.document import parse_document
from safemerge.config.mergekit import recipe_of_mergekit
from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.weights.chat_template import DEFAULT, read_chat_templates
from safemerge.weights.vocabulary import vocabulary

HERE = Path(__file__).resolve().parent
GIVEN = yaml.safe_load((HERE / "mergekit_tokenizers.yaml").read_text(encoding="utf-8"))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "tie_word_embeddings": False,
}

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def recorded():
    """Tensors by kind, file and name; and what tokenizer each merge has."""
    with safe_open(HERE / "mergekit_tokenizers.safetensors", framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    assert metadata["mergekit"] == "0.1.5"
    found = {}
    for key, tensor in tensors.items():
        kind, name, tensor_name = key.split("/", 2)
        found.setdefault((kind, name), {})[tensor_name] = tensor
    return found, json.loads(metadata["tokenizers"])


@pytest.fixture(scope="module")
def place(tmp_path_factory, recorded):
    """A folder with the models and the files."""
    folder = tmp_path_factory.mktemp("words")
    for name, described in GIVEN["models"].items():
        (folder / name).mkdir()
        tensors = recorded[0]["models", name]
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        rows = len(tensors["lm_head.weight"])
        documents = {**word_tokenizer(**described), "config.json": {**CONFIG, "vocab_size": rows}}
        for file, document in documents.items():
            (folder / name / file).write_text(json.dumps(document), encoding="utf-8")
    for name, document in GIVEN["files"].items():
        text = yaml.safe_dump({**document, "dtype": "float32"}, sort_keys=False)
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", GIVEN["files"])
def test_the_command_writes_what_mergekit_wrote(name, place, recorded, tmp_path):
    out = tmp_path / "out"
    assert main(["merge", str(place / f"{name}.yml"), str(out)]) == 0
    weights, theirs = recorded[0]["merged", name], recorded[1][name]
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=2e-6, msg=key)
    assert vocabulary(out) == theirs["ids"]
    assert json.loads((out / "config.json").read_text("utf-8"))["vocab_size"] == theirs["rows"]
    assert read_chat_templates(out).get(DEFAULT) == theirs["template"]


@pytest.mark.parametrize("name", [name for name in GIVEN["files"] if name != "template"])
def test_a_file_comes_back_from_its_recipe(name):
    document = GIVEN["files"][name]
    recipe = parse_document(
        recipe_of_mergekit(document, where=name).document, MergeRecipe, where=name
    )
    exported = mergekit_of_recipe(recipe)
    for key in ("tokenizer", "tokenizer_source", "merge_method"):
        assert exported.get(key) == document.get(key)
    again = recipe_of_mergekit(exported, where=name).document
    assert parse_document(again, MergeRecipe, where=name) == recipe
