"""The tokenizer and template of a merge, as written and as it is scored with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from safemerge.config.recipe import MergeRecipe
from safemerge.engines.chat import ChatFormat
from safemerge.errors import CheckpointMismatchError, MergeError
from safemerge.merge import ResidentCheckpoints, write_merged
from safemerge.merge.candidate_tokenizer import candidate_tokenizer, tokenizer_models
from safemerge.testing import pico

EMBEDDING = "model.embed_tokens.weight"
TEMPLATE = "{% for message in messages %}<|call|>{{ message['content'] }}{% endfor %}"


@pytest.fixture
def folders(tiny_base, tiny_experts, tmp_path):
    """A base, an expert of its tokenizer, and one with its own token, template and end."""
    chat = pico.pico_with_tokens(tiny_experts["safety"], tmp_path / "chat", ["<|call|>"], seed=3)
    (chat / "chat_template.jinja").write_text(TEMPLATE)
    configure(chat, eos_token="<|call|>")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((chat / name).read_text())
        (chat / name).write_text(json.dumps({**settings, "eos_token_id": 512}))
    return {"base": tiny_base, "math": tiny_experts["math"], "chat": chat}


def configure(folder, **settings):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def make_recipe(folders, **fields):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    weights = {name: 0.5 for name in folders if name != "base"}
    method = {"name": "task_arithmetic", "weights": weights}
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def written(recipe, out):
    return write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, out)


def same_tokenizer(first, second):
    one, other = AutoTokenizer.from_pretrained(first), AutoTokenizer.from_pretrained(second)
    return (
        one.get_vocab() == other.get_vocab()
        and one.chat_template == other.chat_template
        and one.special_tokens_map == other.special_tokens_map
    )


CHOICES = {
    "base": {"vocabulary": "base"},
    "union": {"vocabulary": "union"},
    "union, template": {"vocabulary": "union", "tokenizer": {"chat_template": "chat"}},
    "text": {"vocabulary": "base", "tokenizer": {"chat_template": {"text": "{{ 1 }}"}}},
    "tokenizer": {"vocabulary": "tokenizer", "tokenizer": {"from": "chat"}},
    "tokenizer, template": {
        "vocabulary": "tokenizer",
        "tokenizer": {"from": "chat", "chat_template": "base"},
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_merge_is_scored_with_the_tokenizer_it_is_written_with(folders, tmp_path, choice):
    recipe = make_recipe(folders, **CHOICES[choice])
    scored, out = candidate_tokenizer(recipe), written(recipe, tmp_path / "out")
    assert same_tokenizer(scored, out)
    assert (scored == folders["base"]) is (choice == "base")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert ("<|call|>" in tokenizer.get_vocab()) is (choice not in ("base", "text"))
    assert tokenizer.eos_token == ("<|call|>" if choice.startswith("tokenizer") else "<|im_end|>")
    expected = {"union, template": TEMPLATE, "tokenizer": TEMPLATE, "text": "{{ 1 }}"}
    assert tokenizer.chat_template == expected.get(choice, pico.CHAT_TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size == len(model.get_input_embeddings().weight)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_prompts_are_written_with_the_chosen_template(folders):
    recipe = make_recipe(folders, vocabulary="union", tokenizer={"chat_template": "chat"})
    chat = ChatFormat(candidate_tokenizer(recipe))
    assert chat.prompt_ids("the")[0] == 512
    plain = ChatFormat(candidate_tokenizer(make_recipe(folders, vocabulary="base")))
    assert 512 not in plain.prompt_ids("the")


def test_the_cached_folder_is_made_once_and_anew_for_other_files(folders):
    recipe = make_recipe(folders, vocabulary="base", tokenizer={"chat_template": "chat"})
    first = candidate_tokenizer(recipe)
    assert candidate_tokenizer(recipe) == first
    (folders["chat"] / "chat_template.jinja").write_text("{{ 2 }}")
    second = candidate_tokenizer(recipe)
    assert second != first
    assert AutoTokenizer.from_pretrained(second).chat_template == "{{ 2 }}"
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(
        [first.name, second.name]
    )


def test_an_experts_order_is_a_merge_with_the_rows_elsewhere(folders, tmp_path):
    models = {**folders, "math": pico.pico_permuted(folders["math"], tmp_path / "p", seed=4)}
    kept = written(make_recipe(models, vocabulary="base"), tmp_path / "kept")
    recipe = make_recipe(models, vocabulary="tokenizer", tokenizer={"from": "math"})
    led = written(recipe, tmp_path / "led")
    assert same_tokenizer(led, models["math"])
    first, second = (load_file(folder / "model.safetensors") for folder in (kept, led))
    ids, turned = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (kept, led))
    rows = [ids[token] for token in ids], [turned[token] for token in ids]
    assert torch.equal(first[EMBEDDING][rows[0]], second[EMBEDDING][rows[1]])
    others = first.keys() - {EMBEDDING}
    assert all(torch.equal(first[name], second[name]) for name in others)
    settings = json.loads((led / "config.json").read_text())
    assert settings["eos_token_id"] == turned["<|im_end|>"] != ids["<|im_end|>"]


def test_a_tokenizer_of_the_same_ids_comes_with_its_end(folders, tmp_path):
    other = shutil.copytree(folders["math"], tmp_path / "other")
    configure(other, eos_token="<|endoftext|>")
    models = {"base": folders["base"], "math": other}
    out = written(make_recipe(models, tokenizer={"from": "math"}), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|endoftext|>"


def test_an_adapters_tokenizer_gives_the_ids_of_its_end(tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "lora")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / name, adapter / name)
    configure(adapter, eos_token="<|endoftext|>")
    models = {"base": tiny_base, "lora": adapter}
    out = written(make_recipe(models, tokenizer={"from": "lora"}), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 3
    assert not (out / "adapter_config.json").exists()
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"from": "math"}, r"tokenizer\.from must name a model that has a tokenizer; got 'math'"),
        ({"chat_template": "math"}, r"chat_template must name a model that has a chat template"),
    ],
)
def test_a_model_without_what_it_is_named_for_is_refused(folders, tmp_path, choice, words):
    bare = shutil.copytree(folders["math"], tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    recipe = make_recipe({"base": folders["base"], "math": bare}, tokenizer=choice)
    with pytest.raises(CheckpointMismatchError, match=words):
        candidate_tokenizer(recipe)
    with pytest.raises(CheckpointMismatchError, match=words):
        written(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_models_that_are_read_are_known_before(folders):
    assert tokenizer_models(make_recipe(folders)) == {"base"}
    named = make_recipe(folders, tokenizer={"from": "math", "chat_template": "chat"})
    assert tokenizer_models(named) == {"base", "math", "chat"}
    assert tokenizer_models(make_recipe(folders, vocabulary="union")) == {"base", "math", "chat"}


def test_checkpoints_held_in_another_order_are_not_merged_by_it(folders, tmp_path):
    models = {**folders, "math": pico.pico_permuted(folders["math"], tmp_path / "p", seed=4)}
    held = ResidentCheckpoints.open(
        make_recipe(models, vocabulary="tokenizer", tokenizer={"from": "math"})
    )
    other = make_recipe(models, vocabulary="tokenizer", tokenizer={"from": "chat"})
    with pytest.raises(MergeError, match="vocabulary must be that of the checkpoints held"):
        held.merged(other)
