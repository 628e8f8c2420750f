import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config, pico_base
from safemerge.weights import DenseCheckpoint, layer_of, open_checkpoint


@pytest.fixture
def copy(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


def shard(folder, num_shards=2):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{at + 1:05d}-of-{num_shards:05d}.safetensors" for at in range(num_shards)]
    weight_map = {name: files[at % num_shards] for at, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_tensors_names_shapes_and_settings_are_those_of_the_files(tiny_base):
    checkpoint = open_checkpoint(tiny_base)
    tensors = load_file(tiny_base / "model.safetensors")
    assert checkpoint.names == tuple(sorted(tensors))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
    assert checkpoint.config["model_type"] == "llama"
    assert (checkpoint.num_layers, checkpoint.tied_embeddings) == (2, True)
    assert checkpoint.input_embedding == "model.embed_tokens.weight"
    assert checkpoint.num_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_tensors_are_memory_mapped_and_not_copied(tiny_base):
    checkpoint = open_checkpoint(tiny_base)
    name = checkpoint.names[0]
    address = checkpoint.tensor(name).data_ptr()
    assert checkpoint.tensor(name).data_ptr() == address
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if str(tiny_base) in line]
    assert any(
        int(span.split("-")[0], 16) <= address < int(span.split("-")[1], 16)
        for span in (line.split()[0] for line in mapped)
    )


def test_shards_read_as_one(copy, tiny_base):
    shard(copy)
    whole, parts = open_checkpoint(tiny_base), open_checkpoint(copy)
    assert parts.names == whole.names
    assert all(torch.equal(parts.tensor(name), whole.tensor(name)) for name in whole.names)


def test_untied_models_have_a_head(tmp_path):
    checkpoint = open_checkpoint(pico_base(tmp_path / "untied", tied=False))
    assert not checkpoint.tied_embeddings
    assert "lm_head.weight" in checkpoint.distinct_names


def test_a_silent_config_is_read_from_the_names(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["tie_word_embeddings"], config["num_hidden_layers"]
    (copy / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(copy).tied_embeddings
    assert open_checkpoint(copy).num_layers == 2


def test_a_redundant_tied_head_is_stored_but_not_distinct(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copy / "model.safetensors")
    checkpoint = open_checkpoint(copy)
    assert "lm_head.weight" in checkpoint.names
    assert "lm_head.weight" not in checkpoint.distinct_names


def test_settings_of_nested_text_models_are_found(copy):
    change_config(copy, hidden_size=None, text_config={"hidden_size": 64})
    assert open_checkpoint(copy).setting("hidden_size") == 64


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", 11),
        ("transformer.h.0.attn.c_attn.weight", 0),
        ("h.3.ln_1.weight", 3),
        ("model.embed_tokens.weight", None),
        ("model.mylayers.4.weight", None),
    ],
)
def test_layer_is_read_from_the_name(name, layer):
    assert layer_of(name) == layer


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: .*got nothing there"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="must be a folder; got a file"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_folder_without_config_is_refused(copy):
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"must hold config\.json"):
        open_checkpoint(copy)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: must be"):
        open_checkpoint(copy)


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="got no weights"):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_weights_are_refused_by_name(copy, name):
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(CheckpointError, match=rf"pickle checkpoint \({name}\).*Convert it to saf"):
        open_checkpoint(copy)


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_refused_by_name_at_any_length(copy, size):
    path = copy / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*truncated"):
        open_checkpoint(copy)


def test_an_overlap_that_only_safetensors_sees_is_a_checkpoint_error(copy):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"must be a valid safetensors file; got"):
        open_checkpoint(copy)


def test_a_file_without_tensors_is_refused(copy):
    save_file({}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="must hold tensors; got none"):
        open_checkpoint(copy)


def test_a_missing_shard_is_named(copy):
    files = shard(copy)
    (copy / files[1]).unlink()
    with pytest.raises(CheckpointError, match=f"got no '{files[1]}'"):
        open_checkpoint(copy)


def test_an_index_that_names_the_wrong_shard_is_refused(copy):
    files = shard(copy)
    index = copy / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["model.norm.weight"] = (
        files[1] if document["weight_map"]["model.norm.weight"] == files[0] else files[0]
    )
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.norm\.weight': must be in the sh"):
        open_checkpoint(copy)


def test_a_tensor_in_two_shards_is_refused(copy):
    files = shard(copy)
    save_file({**load_file(copy / files[0]), **load_file(copy / files[1])}, copy / files[1])
    with pytest.raises(CheckpointError, match="must be in one shard only"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    "weight_map", [None, {}, {"a": "../elsewhere.safetensors"}, {"a": 3}], ids=str
)
def test_a_damaged_index_is_refused(copy, weight_map):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json: "):
        open_checkpoint(copy)


def test_an_unknown_tensor_is_named(tiny_base):
    checkpoint = DenseCheckpoint(tiny_base)
    assert "model.norm.weight" in checkpoint
    assert "none" not in checkpoint
    with pytest.raises(CheckpointError, match="got no 'none'"):
        checkpoint.tensor("none")
