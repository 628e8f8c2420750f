"""Merging models of different vocabularies, from recipe to folder."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, MergeError
from safemerge.merge import ResidentCheckpoints, merged_tensors, write_merged
from safemerge.merge.stream import in_one_vocabulary
from safemerge.testing import pico
from safemerge.weights import open_checkpoint

EMBEDDING = "model.embed_tokens.weight"
METHODS = [
    {"name": "task_arithmetic", "weights": {"math": 0.5, "safety": 0.7}},
    {"name": "ties", "weights": {"math": 0.5, "safety": 0.7}, "density": 0.3},
    {"name": "dare_linear", "weights": {"math": 0.5, "safety": 0.7}, "density": 0.3},
    {"name": "linear", "weights": {"base": 0.2, "math": 0.5, "safety": 0.3}},
    {"name": "slerp", "models": ["math", "safety"], "t": 0.3},
    {"name": "karcher", "weights": {"math": 0.5, "safety": 0.7}},
    {"name": "tsv_m", "weights": {"math": 0.5, "safety": 0.7}, "embeddings": "matrix"},
]


@pytest.fixture
def folders(tiny_base, tiny_experts):
    return {"base": tiny_base, **tiny_experts}


@pytest.fixture
def added(folders, tmp_path):
    """Each expert with a token of its own, and one in common."""
    return {
        **folders,
        "math": pico.pico_with_tokens(
            folders["math"], tmp_path / "more-math", ["<|sum|>", "<|both|>"], seed=1
        ),
        "safety": pico.pico_with_tokens(
            folders["safety"], tmp_path / "more-safety", ["<|both|>", "<|stop|>"], seed=2
        ),
    }


def make_recipe(folders, method=METHODS[0], **fields):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def opened(folders):
    base = open_checkpoint(folders["base"])
    return {name: open_checkpoint(folder, base) for name, folder in folders.items()}


@pytest.mark.parametrize("how", ["base", "union"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_permuting_an_experts_tokens_changes_nothing(folders, tmp_path, method, how):
    permuted = {
        **folders,
        "math": pico.pico_permuted(folders["math"], tmp_path / "permuted", seed=5),
    }
    plain = dict(merged_tensors(make_recipe(folders, method), opened(folders)))
    recipe = make_recipe(permuted, method, vocabulary=how)
    merged = dict(ResidentCheckpoints.open(recipe).merged(recipe))
    assert merged.keys() == plain.keys()
    for name, tensor in plain.items():
        # Slerp's angle is a sum in BLAS, whose rounding depends on the memory's alignment.
        if method["name"] == "slerp" and name == EMBEDDING:
            torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(merged[name], tensor)


def test_other_vocabularies_are_refused_by_default(folders, added, tmp_path):
    with pytest.raises(CheckpointMismatchError, match=r"vocab_size.*or set vocabulary: base or"):
        ResidentCheckpoints.open(make_recipe(added))
    permuted = pico.pico_permuted(folders["math"], tmp_path / "permuted", seed=5)
    with pytest.raises(CheckpointMismatchError, match=r"every token.*set vocabulary: base or un"):
        write_merged(
            make_recipe({**folders, "math": permuted}),
            opened({**folders, "math": permuted}),
            tmp_path / "out",
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_of_a_union_loads_with_its_tokens(tmp_path, tied):
    base = pico.pico_base(tmp_path / "base", tied=tied)
    math = pico.pico_expert(base, tmp_path / "math", seed=1)
    folders = {
        "base": base,
        "math": pico.pico_with_tokens(math, tmp_path / "more", ["<|a|>", "<|b|>"], seed=1),
        "safety": pico.pico_expert(base, tmp_path / "safety", seed=2),
    }
    recipe = make_recipe(folders, vocabulary="union")
    out = write_merged(recipe, opened(folders), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("<|b|><|a|>") == [513, 512]
    assert tokenizer.encode("the") == AutoTokenizer.from_pretrained(base).encode("the")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == 514
    assert model.get_input_embeddings().weight.shape == (514, 64)
    assert model.lm_head.weight.shape == (514, 64)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    expert = load_file(folders["math"] / "model.safetensors")
    state = model.state_dict()
    names = [EMBEDDING] if tied else [EMBEDDING, "lm_head.weight"]
    for name in names:
        # The token is of one expert, so that its row is in no task vector.
        torch.testing.assert_close(state[name][512:], expert[name][512:])
        plain = dict(merged_tensors(make_recipe({**folders, "math": math}), opened(folders | {
            "math": math})))[name]  # fmt: skip
        assert torch.equal(state[name][:512], plain)
    assert model(torch.tensor([tokenizer.encode("the<|a|>")])).logits.shape[-1] == 514
    ours = open_checkpoint(out)
    assert in_one_vocabulary(recipe, {**opened(folders), "base": ours})["base"] is ours


def test_a_token_of_two_experts_starts_at_their_mean(added, tmp_path):
    method = {"name": "task_arithmetic", "weights": {"math": 0.5, "safety": 0.0}}
    recipe = make_recipe(added, method, vocabulary="union")
    merged = dict(merged_tensors(recipe, opened(added)))[EMBEDDING]
    rows = {
        name: load_file(added[name] / "model.safetensors")[EMBEDDING]
        for name in ("math", "safety")
    }
    mean = (rows["math"][513] + rows["safety"][512]) / 2
    torch.testing.assert_close(merged[513], mean + 0.5 * (rows["math"][513] - mean))
    torch.testing.assert_close(merged[512], rows["math"][512])
    torch.testing.assert_close(merged[514], rows["safety"][513])
    assert merged.shape == (515, 64)


def test_the_bases_vocabulary_keeps_its_files(added, folders, tmp_path):
    recipe = make_recipe(added, vocabulary="base")
    out = write_merged(recipe, opened(added), tmp_path / "out")
    for file in ("tokenizer.json", "config.json", "generation_config.json"):
        assert json.loads((out / file).read_text()) == json.loads(
            (folders["base"] / file).read_text()
        )
    plain = dict(merged_tensors(make_recipe(folders), opened(folders)))
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], plain[name]) for name in plain)
    assert '"vocabulary": "base"' in (out / "README.md").read_text()


def test_an_adapter_is_merged_in_a_union_too(added, tiny_adapter):
    folders = {**added, "lora": tiny_adapter}
    method = {"name": "task_arithmetic", "weights": {"lora": 1.0}}
    recipe = make_recipe(folders, method, vocabulary="union")
    merged = dict(ResidentCheckpoints.open(recipe).merged(recipe))
    assert merged[EMBEDDING].shape == (515, 64)
    adapter = opened(folders)["lora"]
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[name], adapter.tensor(name))


def test_an_engine_takes_the_bases_vocabulary_and_no_more_rows(added):
    ResidentCheckpoints.open(make_recipe(added, vocabulary="base"), for_engine=True)
    words = r"engine's model keeps the base's shape \(512, 64\); got \(515, 64\).*vocabulary: base"
    with pytest.raises(CheckpointMismatchError, match=words):
        ResidentCheckpoints.open(
            make_recipe(added, vocabulary="union"), check=False, for_engine=True
        )


def test_candidates_must_be_of_the_vocabulary_held(added):
    resident = ResidentCheckpoints.open(make_recipe(added, vocabulary="base"))
    with pytest.raises(MergeError, match=r"vocabulary must be that of the .* held, 'base'"):
        resident.merged(make_recipe(added, vocabulary="union"))


def test_the_default_leaves_digests_as_they_were(folders):
    digests = {
        how: make_recipe(folders, vocabulary=how).digest for how in ("refuse", "base", "union")
    }
    assert digests["refuse"] == make_recipe(folders).digest
    assert len(set(digests.values())) == 3
