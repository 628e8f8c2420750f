import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config, pico_base
from safemerge.weights import open_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{at:05d}-of-00003.safetensors" for at in (1, 2, 3)]
    weight_map = {name: files[at % 3] for at, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def weight_map(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


@pytest.mark.parametrize("num_shards_there", [0, 3])
def test_an_index_beside_a_single_file_is_refused_and_both_are_named(
    num_shards_there, sharded, tiny_base
):
    shutil.copy(tiny_base / "model.safetensors", sharded)
    if not num_shards_there:
        for shard in sharded.glob("model-*"):
            shard.unlink()
    words = rf"got both model\.safetensors and {INDEX} \({num_shards_there} of its 3 shards are"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(sharded)


def test_an_index_of_the_single_file_is_fine(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "one")
    names = load_file(folder / "model.safetensors")
    write_index(folder, dict.fromkeys(names, "model.safetensors"))
    assert open_checkpoint(folder).names == open_checkpoint(tiny_base).names


def test_missing_shards_are_told_together(sharded):
    for shard in sorted(sharded.glob("model-*"))[:2]:
        shard.unlink()
    words = r"got no 'model-00001-of-00003\.safetensors', 'model-00002-.*\(2 of 3 shards missing\)"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
)
def test_an_index_may_name_a_tied_head_or_a_dead_buffer_that_is_not_stored(name, sharded):
    write_index(sharded, {**weight_map(sharded), name: "model-00001-of-00003.safetensors"})
    assert name not in open_checkpoint(sharded).names


def test_a_head_that_is_not_tied_must_be_stored(sharded):
    change_config(sharded, tie_word_embeddings=False)
    write_index(
        sharded, {**weight_map(sharded), "lm_head.weight": "model-00001-of-00003.safetensors"}
    )
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.weight': .*found in 'none'"):
        open_checkpoint(sharded)


def test_a_silent_config_with_a_stored_head_ties_as_its_class_does(tmp_path):
    folder = pico_base(tmp_path / "base", tied=False)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert not open_checkpoint(folder).tied_embeddings
    config.update(model_type="gemma", head_dim=32)
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).tied_embeddings


def test_shards_without_their_index_are_named(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match="shards need their index"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("consolidated.safetensors", r"got 'consolidated\.safetensors', which transformers does"),
        ("model-q4.gguf", r"got GGUF \('model-q4\.gguf'\), which is quantised"),
    ],
)
def test_weights_that_transformers_does_not_load_are_named(name, words, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "other")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)
