import shutil

import pytest
import tokenizer_kinds as kinds
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.testing import pico
from safemerge.weights import check_agreement, open_checkpoint, share_vocabulary
from safemerge.weights.shared_vocabulary import VocabularyView, stored_checkpoint
from safemerge.weights.vocabulary import vocabulary

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@pytest.fixture
def base(tiny_base):
    return open_checkpoint(tiny_base)


def shared(base, how, **folders):
    experts = {name: open_checkpoint(folder, base) for name, folder in folders.items()}
    return share_vocabulary(base, experts, how=how, where="recipe 3f9c")


def refused(base, how, words, error=CheckpointMismatchError, **folders):
    with pytest.raises(error, match=words):
        shared(base, how, **folders)


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pad_rows(folder, num_rows, value=9.0):
    """Rows that no token names, as models have for speed."""

    def pad(tensors):
        rows = torch.full((num_rows - len(tensors[EMBEDDING]), 64), value)
        tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING], rows])

    edit_tensors(folder, pad)
    pico.change_config(folder, vocab_size=num_rows)


@pytest.mark.parametrize("how", ["base", "union"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_permuted_expert_is_the_expert(tmp_path, how, tied):
    folder = pico.pico_base(tmp_path / "base", tied=tied)
    expert = open_checkpoint(pico.pico_expert(folder, tmp_path / "expert", seed=1))
    permuted = pico.pico_permuted(expert.folder, tmp_path / "permuted", seed=2)
    base, experts = shared(open_checkpoint(folder), how, a=permuted)
    assert not isinstance(base, VocabularyView)
    check_agreement(base, experts)
    assert experts["a"].names == expert.names
    stored = load_file(permuted / "model.safetensors")
    for name in expert.names:
        assert torch.equal(experts["a"].tensor(name), expert.tensor(name))
        changes = name in (EMBEDDING, HEAD)
        assert torch.equal(stored[name], expert.tensor(name)) is not changes


def test_rows_in_place_are_the_stored_ones_uncopied(base, tiny_expert):
    _, experts = shared(base, "base", a=tiny_expert)
    assert experts["a"].in_place
    source = stored_checkpoint(experts["a"])
    assert experts["a"].tensor(EMBEDDING).data_ptr() == source.tensor(EMBEDDING).data_ptr()
    assert stored_checkpoint(base) is base


def test_the_bases_vocabulary_leaves_an_experts_other_tokens_out(base, tiny_expert, tmp_path):
    folder = pico.pico_with_tokens(tiny_expert, tmp_path / "more", ["<|call|>"], seed=1)
    same, experts = shared(base, "base", a=folder)
    assert same is base
    assert experts["a"].shape(EMBEDDING) == (512, 64)
    assert experts["a"].setting("vocab_size") == 512
    check_agreement(base, experts)
    assert torch.equal(
        experts["a"].tensor(EMBEDDING), open_checkpoint(tiny_expert).tensor(EMBEDDING)
    )


@pytest.mark.parametrize("how", ["base", "union"])
def test_an_expert_that_lacks_a_token_has_the_bases_row(tiny_base, tiny_expert, tmp_path, how):
    folder = pico.pico_with_tokens(tiny_base, tmp_path / "base", ["<|a|>", "<|b|>"], seed=1)
    base, experts = shared(open_checkpoint(folder), how, a=tiny_expert)
    rows = experts["a"].tensor(EMBEDDING)
    assert torch.equal(rows[512:], base.tensor(EMBEDDING)[512:])
    assert torch.equal(rows[:512], open_checkpoint(tiny_expert).tensor(EMBEDDING))


def test_a_union_appends_tokens_expert_by_expert(base, tiny_experts, tmp_path):
    first = pico.pico_with_tokens(
        tiny_experts["math"], tmp_path / "first", ["<|b|>", "<|a|>"], seed=1
    )
    second = pico.pico_with_tokens(
        tiny_experts["safety"], tmp_path / "second", ["<|c|>", "<|a|>"], seed=2
    )
    union, experts = shared(base, "union", math=first, safety=second)
    assert [(entry["content"], entry["id"]) for entry in union.added] == [
        ("<|b|>", 512),
        ("<|a|>", 513),
        ("<|c|>", 514),
    ]
    assert union.shape(EMBEDDING) == (515, 64)
    assert union.setting("vocab_size") == 515
    check_agreement(union, experts)
    of_first = load_file(first / "model.safetensors")[EMBEDDING]
    of_second = load_file(second / "model.safetensors")[EMBEDDING]
    b, a, c = of_first[512], (of_first[513] + of_second[513]) / 2, of_second[512]
    torch.testing.assert_close(union.tensor(EMBEDDING)[512:], torch.stack([b, a, c]))
    assert torch.equal(union.tensor(EMBEDDING)[:512], base.tensor(EMBEDDING))
    assert torch.equal(experts["math"].tensor(EMBEDDING)[512:], torch.stack([b, of_first[513], c]))
    assert torch.equal(
        experts["safety"].tensor(EMBEDDING)[512:], torch.stack([b, of_second[513], c])
    )


def test_an_expert_without_the_token_has_exactly_the_mean_even_in_another_dtype(
    tmp_path, tiny_base
):
    folder = pico.pico_base(tmp_path / "base", dtype=torch.bfloat16)
    narrow = pico.pico_expert(folder, tmp_path / "narrow", seed=1)
    wide = pico.pico_expert(tiny_base, tmp_path / "wide", seed=2)
    tokens = ["<|a|>"]
    first = pico.pico_with_tokens(wide, tmp_path / "first", tokens, seed=3)
    second = pico.pico_with_tokens(wide, tmp_path / "second", tokens, seed=4)
    half = tmp_path / "half"
    shutil.copytree(narrow, half)
    edit_tensors(half, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    union, experts = shared(
        open_checkpoint(folder), "union", a=first, b=second, narrow=narrow, half=half
    )
    assert union.dtype(EMBEDDING) == union.tensor(EMBEDDING).dtype == torch.bfloat16
    assert experts["narrow"].dtype(EMBEDDING) == torch.bfloat16
    assert experts["half"].dtype(EMBEDDING) == torch.float32
    rows = [load_file(at / "model.safetensors")[EMBEDDING][512] for at in (first, second)]
    mean = (torch.stack(rows).sum(0) / 2).bfloat16()
    assert torch.equal(union.tensor(EMBEDDING)[512], mean)
    for name in ("narrow", "half"):
        got = experts[name].tensor(EMBEDDING)
        assert got.dtype == experts[name].dtype(EMBEDDING)
        assert torch.equal(got[512].float(), mean.float())


@pytest.mark.parametrize("how", ["base", "union"])
def test_rows_without_a_token_are_the_bases(tiny_base, tiny_expert, tmp_path, how):
    padded = {
        name: shutil.copytree(folder, tmp_path / name)
        for name, folder in {"base": tiny_base, "expert": tiny_expert}.items()
    }
    pad_rows(padded["base"], 520)
    pad_rows(padded["expert"], 528, value=-9.0)
    base, experts = shared(open_checkpoint(padded["base"]), how, a=padded["expert"])
    rows = experts["a"].tensor(EMBEDDING)
    assert rows.shape == (520, 64)
    assert (rows[512:] == 9.0).all()
    check_agreement(base, experts)


def test_a_union_takes_rows_that_no_token_had(tiny_base, tiny_expert, tmp_path):
    padded = shutil.copytree(tiny_base, tmp_path / "base")
    pad_rows(padded, 520)
    more = pico.pico_with_tokens(tiny_expert, tmp_path / "more", ["<|a|>"], seed=1)
    base, experts = shared(open_checkpoint(padded), "union", a=more)
    own = load_file(more / "model.safetensors")[EMBEDDING]
    for checkpoint in (base, experts["a"]):
        assert checkpoint.shape(EMBEDDING) == (520, 64)
        assert torch.equal(checkpoint.tensor(EMBEDDING)[512], own[512])
        assert (checkpoint.tensor(EMBEDDING)[513:] == 9.0).all()


def test_a_token_of_the_base_without_a_row_gets_an_experts(tiny_base, tiny_expert, tmp_path):
    short = kinds.add_entry(shutil.copytree(tiny_base, tmp_path / "base"), "<|a|>", 512)
    more = pico.pico_with_tokens(tiny_expert, tmp_path / "more", ["<|a|>"], seed=1)
    own = load_file(more / "model.safetensors")[EMBEDDING]
    union, _ = shared(open_checkpoint(short), "union", a=more)
    assert union.added == ()
    assert torch.equal(union.tensor(EMBEDDING)[512], own[512])
    base, experts = shared(open_checkpoint(short), "base", a=more)
    assert base.shape(EMBEDDING) == experts["a"].shape(EMBEDDING) == (512, 64)


def test_an_added_token_without_a_row_stays_out_of_the_union(base, tiny_expert, tmp_path):
    folder = kinds.add_entry(shutil.copytree(tiny_expert, tmp_path / "expert"), "<|a|>", 512)
    union, experts = shared(base, "union", a=folder)
    assert union is base
    assert experts["a"].in_place


def test_an_adapter_goes_by_its_own_tokenizer_too(base, tiny_adapter, tiny_base, tmp_path):
    _, experts = shared(base, "union", lora=tiny_adapter)
    assert experts["lora"].in_place
    folder = shutil.copytree(tiny_adapter, tmp_path / "lora")
    permuted = pico.pico_permuted(tiny_base, tmp_path / "permuted", seed=1)
    shutil.copyfile(permuted / "tokenizer.json", folder / "tokenizer.json")
    _, experts = shared(open_checkpoint(permuted), "base", lora=folder)
    assert experts["lora"].in_place


def test_an_expert_without_tokenizer_has_the_bases_ids(base, tiny_expert, tmp_path):
    folder = shutil.copytree(tiny_expert, tmp_path / "expert")
    (folder / "tokenizer.json").unlink()
    _, experts = shared(base, "union", a=folder)
    assert experts["a"].in_place


def test_a_tied_head_stored_by_one_model_alone_is_filled_from_embeddings(
    base, tiny_expert, tmp_path
):
    more = pico.pico_with_tokens(tiny_expert, tmp_path / "more", ["<|a|>"], seed=1)
    edit_tensors(more, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    other = shutil.copytree(tiny_expert, tmp_path / "other")
    edit_tensors(other, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    union, experts = shared(base, "union", a=more, b=other)
    check_agreement(union, experts)
    for expert in experts.values():
        assert torch.equal(expert.tensor(HEAD), expert.tensor(EMBEDDING))


@pytest.mark.parametrize("how", ["base", "union"])
def test_the_base_must_have_a_tokenizer(tiny_base, tiny_expert, tmp_path, how):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    words = r"recipe 3f9c, base .*need the base's tokenizer; got no file of one"
    refused(open_checkpoint(folder), how, words, a=tiny_expert)


def test_a_tokenizer_that_cannot_be_loaded_is_refused(base, tiny_expert, tmp_path):
    folder = kinds.remove_tokenizer(shutil.copytree(tiny_expert, tmp_path / "expert"))
    (folder / "tokenizer.model").write_text("no vocabulary")
    words = "must hold a tokenizer that transformers loads; got tokenizer.model"
    refused(base, "base", words, CheckpointError, a=folder)


def test_tokens_added_to_no_vocabulary_must_be_the_bases(base, tiny_expert, tmp_path):
    folder = kinds.remove_tokenizer(shutil.copytree(tiny_expert, tmp_path / "expert"))
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 3}')
    words = r"expert 'a'.*must be the base's; got token '<\|im_end\|>': base 2, expert 3"
    refused(base, "base", words, a=folder)


def test_rows_go_by_the_tokens_of_any_kind_of_file(tiny_base, tiny_expert, tmp_path):
    tokens = [f"w{index}" for index in range(512)]
    order = [tokens[0], *tokens[:0:-1]]
    own = kinds.byte_pairs(shutil.copytree(tiny_base, tmp_path / "base"), tokens)
    other = kinds.byte_pairs(shutil.copytree(tiny_expert, tmp_path / "expert"), order)
    base, experts = shared(open_checkpoint(own), "base", a=other)
    stored = load_file(other / "model.safetensors")[EMBEDDING]
    place = [order.index(token) for token in tokens]
    assert torch.equal(experts["a"].tensor(EMBEDDING), stored[place])
    check_agreement(base, experts)


def test_another_models_order_gives_the_same_rows_by_its_ids(tiny_base, tiny_experts, tmp_path):
    permuted = pico.pico_permuted(tiny_experts["math"], tmp_path / "permuted", seed=3)
    experts = {"math": permuted, "safety": tiny_experts["safety"]}
    base = open_checkpoint(tiny_base)
    opened = {name: open_checkpoint(folder, base) for name, folder in experts.items()}
    own, led = share_vocabulary(base, opened, how="tokenizer", owner="math")
    plain, kept = share_vocabulary(base, opened, how="base")
    ids, turned = vocabulary(tiny_base), vocabulary(permuted)
    place = torch.tensor([turned[token] for token in ids])
    rows = torch.tensor(list(ids.values()))
    for one, other in ((own, plain), (led["math"], kept["math"]), (led["safety"], kept["safety"])):
        assert torch.equal(one.tensor(EMBEDDING)[place], other.tensor(EMBEDDING)[rows])
    assert led["math"].in_place
    check_agreement(own, led)


def test_another_models_vocabulary_has_its_tokens_and_padding(tiny_base, tiny_experts, tmp_path):
    more = pico.pico_with_tokens(tiny_experts["math"], tmp_path / "more", ["<|a|>"], seed=1)
    pad_rows(more, 520, value=-9.0)
    base = open_checkpoint(tiny_base)
    opened = {
        "math": open_checkpoint(more, base), "safety": open_checkpoint(tiny_experts["safety"])
    }  # fmt: skip
    own, led = share_vocabulary(base, opened, how="tokenizer", owner="math")
    stored = load_file(more / "model.safetensors")[EMBEDDING]
    for checkpoint in (own, *led.values()):
        assert checkpoint.shape(EMBEDDING) == (520, 64)
        assert checkpoint.setting("vocab_size") == 520
        assert torch.equal(checkpoint.tensor(EMBEDDING)[512:], stored[512:])
    assert torch.equal(own.tensor(EMBEDDING)[:512], base.tensor(EMBEDDING))
    check_agreement(own, led)


def test_a_base_in_the_owners_order_is_itself(base, tiny_expert):
    opened = {"a": open_checkpoint(tiny_expert, base)}
    own, _ = share_vocabulary(base, opened, how="tokenizer", owner="a")
    assert own is base


def test_an_expert_that_shares_no_token_is_refused(base, tiny_expert, tmp_path):
    folder = kinds.byte_pairs(
        shutil.copytree(tiny_expert, tmp_path / "expert"), [f"w{index}" for index in range(512)]
    )
    refused(base, "base", "'a': must share tokens with the base; got none of 512", a=folder)


def test_a_union_refuses_another_segmentation(base, tiny_expert, tmp_path):
    folder = shutil.copytree(tiny_expert, tmp_path / "expert")

    def rename(document):
        model = document["model"]
        model["vocab"]["zz"] = model["vocab"].pop("th")
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) != "th"]

    kinds.change_tokenizer(folder, rename)
    words = "added tokens only; got 1 tokens of another segmentation, e.g. 'zz'. Use vocabulary"
    refused(base, "union", words, a=folder)
    shared(base, "base", a=folder)


def test_other_tensors_that_go_by_token_are_refused(tiny_base, tiny_expert, tmp_path):
    folder = shutil.copytree(tiny_expert, tmp_path / "expert")
    name = "model.embed_tokens_per_layer.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(512, 8)}))
    words = rf"expert 'a', tensor '{name}': rows must go by token .*got \(512, 8\)"
    refused(open_checkpoint(tiny_base), "base", words, CheckpointError, a=folder)


def test_a_base_without_a_usual_embedding_is_refused(tiny_base, tiny_expert, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    edit_tensors(folder, lambda tensors: tensors.update(table=tensors.pop(EMBEDDING)))
    words = "base .*need an input embedding of a usual name; got none"
    refused(open_checkpoint(folder), "base", words, CheckpointError, a=tiny_expert)


def test_a_token_without_a_row_below_a_union_is_refused(tiny_base, tiny_expert, tmp_path):
    folder = kinds.add_entry(shutil.copytree(tiny_base, tmp_path / "base"), "<|far|>", 512)
    more = pico.pico_with_tokens(tiny_expert, tmp_path / "more", ["<|a|>"], seed=1)
    words = "every id of a union must be a token with a row.*got id 512"
    refused(open_checkpoint(folder), "union", words, a=more)
