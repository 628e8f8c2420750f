import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.testing.pico import change_config
from safemerge.weights import check_agreement, check_finite, is_finite, open_checkpoint

UP_PROJ = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def base(tiny_base):
    return open_checkpoint(tiny_base)


@pytest.fixture
def folder(tiny_expert, tmp_path):
    return shutil.copytree(tiny_expert, tmp_path / "expert")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def refused(base, expert, words, **options):
    with pytest.raises(CheckpointMismatchError, match=words):
        check_agreement(base, {"gsm8k": expert}, **options)


def test_models_of_one_base_agree(base, tiny_experts, tiny_adapter):
    experts = {name: open_checkpoint(path) for name, path in tiny_experts.items()}
    check_agreement(base, {**experts, "lora": open_checkpoint(tiny_adapter, base)})


def test_a_shape_that_differs_is_told_with_tensor_expert_and_remedy(base, folder):
    expert = edit(folder, lambda tensors: tensors.update({UP_PROJ: torch.zeros(130, 64)}))
    words = (
        rf"recipe 3f9c, tensor '{UP_PROJ}': experts must share the base shape; got base "
        r"\(128, 64\), expert 'gsm8k' \(130, 64\)\. Re-export"
    )
    refused(base, expert, words, where="recipe 3f9c")


def test_at_most_three_examples_are_listed(base, folder):
    def shrink(tensors):
        for name in tensors:
            tensors[name] = torch.zeros(1)

    refused(base, edit(folder, shrink), "and 17 more")


def test_missing_and_added_tensors_are_told(base, folder):
    def rename(tensors):
        tensors["model.extra.weight"] = tensors.pop(UP_PROJ)

    words = rf"'{UP_PROJ}' only in the base; 'model\.extra\.weight' only in the expert"
    refused(base, edit(folder, rename), words)


def test_another_float_dtype_needs_a_dtype_in_the_recipe(base, folder):
    def cast(tensors):
        tensors[UP_PROJ] = tensors[UP_PROJ].bfloat16()

    expert = edit(folder, cast)
    refused(base, expert, f"'{UP_PROJ}' base float32, expert bfloat16. Set dtype in the recipe")
    check_agreement(base, {"gsm8k": expert}, mixed_dtypes=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_weights_that_cannot_be_merged_are_refused(base, folder, dtype):
    def cast(tensors):
        tensors[UP_PROJ] = tensors[UP_PROJ].to(dtype)

    expert = edit(folder, cast)
    with pytest.raises(CheckpointError, match=rf"'gsm8k'.*got '{UP_PROJ}' {str(dtype)[6:]}"):
        check_agreement(base, {"gsm8k": expert}, mixed_dtypes=True)


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "qwen2"), ("num_attention_heads", 4), ("vocab_size", 500)]
)
def test_another_architecture_is_refused(base, folder, key, value):
    change_config(folder, **{key: value})
    refused(base, open_checkpoint(folder), f"{key} base .*, expert {value!r}")


def test_another_vocabulary_is_refused(base, folder):
    document = json.loads((folder / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    vocab["th"], vocab["he"] = vocab["he"], vocab["th"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(base, open_checkpoint(folder), "must map every token to the base's id; got token 'he'")


def test_an_expert_without_tokenizer_is_fine(base, folder):
    (folder / "tokenizer.json").unlink()
    check_agreement(base, {"gsm8k": open_checkpoint(folder)})


def test_a_redundant_tied_head_equal_to_the_embedding_is_accepted(base, folder):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    check_agreement(base, {"gsm8k": edit(folder, add)})


def test_a_tied_head_that_differs_from_the_embedding_is_refused(base, folder):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0

    refused(base, edit(folder, add), r"must equal 'model\.embed_tokens\.weight'")


def test_an_untied_head_equal_to_the_embedding_is_as_good_as_a_tied_one(base, folder):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_config(folder, tie_word_embeddings=False)
    check_agreement(base, {"gsm8k": edit(folder, add)})


def test_a_head_that_is_neither_stored_nor_tied_is_refused(base, folder):
    # As transformers loads such a model: with a head of random numbers.
    change_config(folder, tie_word_embeddings=False)
    for given, expert in ((open_checkpoint(folder), base), (base, open_checkpoint(folder))):
        with pytest.raises(CheckpointMismatchError, match=r"lm_head.weight': must be stored, .*"):
            check_agreement(given, {"math": expert})
    models = [AutoModelForCausalLM.from_pretrained(folder) for _ in range(2)]
    heads = [model.get_output_embeddings().weight for model in models]
    assert not torch.equal(*heads)


def test_an_untied_head_of_its_own_is_refused_where_the_base_ties(base, folder):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0

    change_config(folder, tie_word_embeddings=False)
    refused(base, edit(folder, add), "tie embeddings as the base does; got base True, expert Fal")


def test_a_config_as_published_agrees_with_one_saved_today(base, folder):
    config = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "rope_parameters", "attention_bias", "mlp_bias", "dtype"):
        config.pop(key, None)
    config.update(rope_theta=10000, torch_dtype="float16", transformers_version="4.31.0")
    (folder / "config.json").write_text(json.dumps(config))
    published = open_checkpoint(folder)
    check_agreement(base, {"gsm8k": published})
    check_agreement(published, {"saved": base})


def test_settings_that_change_the_function_alone_are_not_refused(base, folder):
    change_config(folder, rms_norm_eps=1e-2, rope_parameters={"rope_type": "default"})
    check_agreement(base, {"gsm8k": open_checkpoint(folder)})


def test_the_first_tensor_that_is_not_finite_is_named_with_its_count(base, folder):
    def spoil(tensors):
        tensors[UP_PROJ][0, :5] = float("nan")
        tensors["model.norm.weight"][3] = float("inf")

    expert = edit(folder, spoil)
    words = rf"tensor '{UP_PROJ}': .*got 5 NaN or infinite of 8192 \(and 1 more such tensors\)"
    with pytest.raises(CheckpointError, match=words):
        check_agreement(base, {"gsm8k": expert})
    check_agreement(base, {"gsm8k": expert}, finite=False)


def test_a_sound_checkpoint_is_scanned_once(base, monkeypatch):
    check_finite(base)
    monkeypatch.setattr("safemerge.weights.agreement.is_finite", None)
    check_finite(base)


def test_a_broken_checkpoint_is_refused_every_time(folder):
    expert = edit(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="got 64 NaN"):
            check_finite(expert)


def test_an_adapter_is_scanned_in_what_it_changes(base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("nan")
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="must be finite"):
        check_finite(open_checkpoint(adapter, base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_any_single_bad_entry_is_seen(dtype, value):
    tensor = torch.ones(1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[617] = value
    assert not is_finite(tensor)


def test_infinities_of_both_signs_do_not_cancel():
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))


def test_large_sound_entries_are_finite_though_their_sum_is_not():
    assert is_finite(torch.full((100,), 3e38))


def test_integers_and_empty_tensors_are_finite():
    assert is_finite(torch.arange(3))
    assert is_finite(torch.zeros(0))
