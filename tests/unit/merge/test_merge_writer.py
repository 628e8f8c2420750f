import errno
import json
import shutil
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import (
    CheckpointError,
    CheckpointMismatchError,
    MergeError,
    PreflightError,
    UserError,
)
from safemerge.merge import folder as target
from safemerge.merge import merged_tensors, shard, write_merged
from safemerge.testing.pico import change_config
from safemerge.weights import check_agreement, open_checkpoint


@pytest.fixture
def checkpoints(tiny_base, tiny_experts):
    opened = {name: open_checkpoint(path) for name, path in tiny_experts.items()}
    return {"base": open_checkpoint(tiny_base), **opened}


@pytest.fixture
def recipe(checkpoints):
    return make_recipe(checkpoints)


def make_recipe(checkpoints, **fields):
    refs = [
        {"name": name, "path": str(checkpoint.folder), "digest": "0123456789abcdef"}
        for name, checkpoint in checkpoints.items()
    ]
    method = {"name": "ties", "weights": {"math": 0.5, "safety": 0.7}, "density": 0.5}
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def test_the_folder_loads_in_transformers_with_the_merged_weights(recipe, checkpoints, tmp_path):
    out = write_merged(recipe, checkpoints, tmp_path / "out")
    state = AutoModelForCausalLM.from_pretrained(out).state_dict()
    for name, tensor in merged_tensors(recipe, checkpoints):
        assert torch.equal(state[name], tensor)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("two words")) == "two words"
    assert "<|im_start|>" in tokenizer.chat_template


def test_the_folder_is_a_checkpoint_that_agrees_with_its_base(recipe, checkpoints, tmp_path):
    out = write_merged(recipe, checkpoints, tmp_path / "out")
    check_agreement(checkpoints["base"], {"merged": open_checkpoint(out)})


def test_files_are_the_expected_ones_and_readable_like_others(recipe, checkpoints, tmp_path):
    out = write_merged(recipe, checkpoints, tmp_path / "out")
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "safemerge_recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    modes = {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()}
    (tmp_path / "ordinary").write_text("")
    assert modes == {stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)}
    (tmp_path / "folder").mkdir()
    assert out.stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_whatever_transformers_loads_beside_the_weights_is_copied_and_nothing_else(
    checkpoints, tmp_path
):
    folder = shutil.copytree(checkpoints["base"].folder, tmp_path / "base")
    wanted = [
        "added_tokens.json",
        "additional_chat_templates/tools.jinja",
        "chat_template.json",
        "LICENSE.md",
        "merges.txt",
        "NOTICE",
        "preprocessor_config.json",
        "processor_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "tokenizer.model",
        "video_preprocessor_config.json",
        "vocab.json",
    ]
    others = [
        "modeling_custom.py",
        "model.safetensors.index.json.bak",
        "optimizer.pt",
        "pytorch_model.bin",
        "README.txt",
        "trainer_state.json",
        "training_args.bin",
    ]
    for name in (*wanted, *others):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"of the base: {name}")
    opened = {**checkpoints, "base": open_checkpoint(folder)}
    out = write_merged(make_recipe(opened), opened, tmp_path / "out", check=False)
    copied = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert copied.issuperset(wanted)
    assert copied.isdisjoint(others)
    assert {(out / name).read_text() for name in wanted} == {f"of the base: {n}" for n in wanted}


def test_a_quantization_config_beside_dense_weights_is_left_out(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["base"].folder, tmp_path / "base")
    left = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    change_config(folder, quantization_config=left, text_config={"quantization_config": left})
    opened = {**checkpoints, "base": open_checkpoint(folder)}
    out = write_merged(make_recipe(opened), opened, tmp_path / "out", check=False)
    written = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in {**written, **written["text_config"]}
    assert "quantization_config (bitsandbytes, 4-bit) is left" in (out / "README.md").read_text()


def test_the_card_names_both_values_of_settings_that_differ(recipe, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["math"].folder, tmp_path / "math")
    change_config(folder, rms_norm_eps=1e-2)
    opened = {**checkpoints, "math": open_checkpoint(folder)}
    out = write_merged(recipe, opened, tmp_path / "out", card="# Measured\n")
    card = (out / "README.md").read_text()
    assert card.startswith("# Measured\n\n## Notes on the models\n\n- expert 'math' has settings")
    assert "rms_norm_eps base 1e-06, expert 0.01" in card
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 1e-6


def test_a_card_given_by_the_caller_is_the_readme(recipe, checkpoints, tmp_path):
    out = write_merged(recipe, checkpoints, tmp_path / "out", card="# Measured\n")
    assert (out / "README.md").read_text() == "# Measured\n"


def test_the_recipe_comes_back(recipe, checkpoints, tmp_path):
    out = write_merged(recipe, checkpoints, tmp_path / "out")
    text = (out / "safemerge_recipe.json").read_text()
    assert str(tmp_path) not in text
    assert MergeRecipe.model_validate_json(text).located(out) == recipe


def test_the_card_names_method_digests_and_no_folders_of_this_machine(
    recipe, checkpoints, tmp_path
):
    card = (write_merged(recipe, checkpoints, tmp_path / "out") / "README.md").read_text()
    for words in (recipe.digest, "0123456789abcdef", "arxiv.org/abs/2306.01708", "| math |"):
        assert words in card
    assert str(checkpoints["base"].folder.parent) not in card


def test_shards_and_index_give_the_same_weights(recipe, checkpoints, tmp_path):
    whole = write_merged(recipe, checkpoints, tmp_path / "whole")
    parts = write_merged(recipe, checkpoints, tmp_path / "parts", max_shard_bytes=100_000)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (parts / "model.safetensors").exists()
    tensors = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    opened = open_checkpoint(parts)
    assert opened.names == tuple(sorted(tensors))
    assert all(torch.equal(opened.tensor(name), tensors[name]) for name in tensors)
    for file in files[1:]:
        assert sum(tensor.nbytes for tensor in load_file(parts / file).values()) <= 100_000


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_config_gets_the_merged_dtype(checkpoints, tmp_path, key):
    folder = shutil.copytree(checkpoints["base"].folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    config["text_config"] = {key: "float32"}
    (folder / "config.json").write_text(json.dumps({**config, key: "float32"}))
    opened = {**checkpoints, "base": open_checkpoint(folder)}
    asked = make_recipe(opened, dtype="bfloat16")
    out = write_merged(asked, opened, tmp_path / "out", check=False)
    written = json.loads((out / "config.json").read_text())
    assert written[key] == written["text_config"][key] == "bfloat16"
    assert {open_checkpoint(out).dtype(name) for name in open_checkpoint(out).names} == {
        torch.bfloat16
    }


def test_progress_counts_tensors(recipe, checkpoints, tmp_path):
    told = []
    write_merged(
        recipe, checkpoints, tmp_path / "out", progress=lambda *counts: told.append(counts)
    )
    assert told == [(done, 20) for done in range(1, 21)]


def test_an_empty_folder_is_taken_and_parents_are_made(recipe, checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    assert write_merged(recipe, checkpoints, tmp_path / "empty") == tmp_path / "empty"
    deep = tmp_path / "not" / "yet"
    assert (write_merged(recipe, checkpoints, deep) / "config.json").is_file()


def test_a_folder_with_files_is_refused_and_left_alone(recipe, checkpoints, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=r"must be missing or empty.*Choose another folder"):
        write_merged(recipe, checkpoints, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_a_file_is_refused(recipe, checkpoints, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="must be a folder; got a file"):
        write_merged(recipe, checkpoints, tmp_path / "out")


def interrupted(done, total):
    if done == 5:
        raise KeyboardInterrupt


def test_an_interrupted_merge_leaves_nothing(recipe, checkpoints, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_merged(recipe, checkpoints, tmp_path / "out", progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_merge_leaves_nothing(checkpoints, tmp_path):
    asked = make_recipe(
        checkpoints, method={"name": "task_arithmetic", "weights": {"math": 1e30}}, dtype="float16"
    )
    with pytest.raises(MergeError, match="merged weights must be finite"):
        write_merged(asked, checkpoints, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_anything_is_written(
    recipe, checkpoints, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PreflightError, match=r"needs 0\.06 GiB of disk space; got 0\.00 GiB free"):
        write_merged(recipe, checkpoints, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "needs 0.06 GiB .* a full disk"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "a full disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "a full disk"),
        (OSError(errno.EROFS, "Read-only file system"), "must be a place that can be written"),
    ],
)
def test_a_disk_that_fails_while_writing_is_a_preflight_error_and_leaves_nothing(
    recipe, checkpoints, tmp_path, monkeypatch, error, words
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(shard.os, "pwrite", fail)
    with pytest.raises(PreflightError, match=words):
        write_merged(recipe, checkpoints, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_disagree_are_refused_before_writing(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["math"].folder, tmp_path / "math")
    change_config(folder, num_attention_heads=4)
    opened = {**checkpoints, "math": open_checkpoint(folder)}
    with pytest.raises(CheckpointMismatchError, match="num_attention_heads"):
        write_merged(make_recipe(opened), opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_vanishes_is_not_blamed_on_the_disk(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["math"].folder, tmp_path / "math")
    opened = {**checkpoints, "math": open_checkpoint(folder)}
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"math/model\.safetensors: must stay as it was"):
        write_merged(make_recipe(opened), opened, tmp_path / "out", check=False)


def test_the_card_names_the_safety_operators(recipe, checkpoints, tmp_path):
    document = recipe.resolved()
    expert = document["experts"][0]["name"]
    steps = [{"name": "merge_align", "aligned": expert, "alpha": 0.9}]
    stepped = MergeRecipe.model_validate({**document, "steps": steps})
    card = (write_merged(stepped, checkpoints, tmp_path / "out") / "README.md").read_text()
    assert "With MergeAlign, on merged: Thakkar et al." in card
    assert "https://arxiv.org/abs/2411.06824" in card
    assert '"alpha": 0.9' in card
