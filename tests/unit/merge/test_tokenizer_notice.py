import json
import shutil

import pytest

from safemerge.config.recipe import MergeRecipe
from safemerge.merge import ResidentCheckpoints, write_merged
from safemerge.merge.tokenizer_notice import tokenizer_notices

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def expert(tiny_expert, tmp_path):
    return shutil.copytree(tiny_expert, tmp_path / "expert")


def make_recipe(base, expert, **fields):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": str(base)},
            "experts": [{"name": "chat", "path": str(expert)}],
            "method": {"name": "task_arithmetic", "weights": {"chat": 1.0}},
            **fields,
        }
    )


def configure(folder, **settings):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_equal_tokenizers_and_templates_are_nothing_to_say(tiny_base, expert):
    configure(expert, model_max_length=7)
    assert tokenizer_notices(make_recipe(tiny_base, expert)) == ()


def test_an_adapter_without_a_tokenizer_is_nothing_to_say(tiny_base, tiny_adapter):
    assert tokenizer_notices(make_recipe(tiny_base, tiny_adapter)) == ()


def test_a_template_that_only_the_expert_has_is_reported(tiny_base, expert, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    (found,) = tokenizer_notices(make_recipe(base, expert))
    assert found == (
        "'chat' has a chat template and 'base' none, so the merge has none; "
        "'tokenizer: {chat_template: chat}' gives it this one"
    )
    assert tokenizer_notices(make_recipe(expert, base)) == ()


def test_a_template_that_differs_is_reported_with_the_choice_that_takes_it(tiny_base, expert):
    (expert / "chat_template.jinja").write_text("{{ 1 }}")
    (found,) = tokenizer_notices(make_recipe(tiny_base, expert))
    assert "'chat' has another chat template than 'base', whose the merge has" in found
    chosen = make_recipe(tiny_base, expert, tokenizer={"chat_template": "chat"})
    assert tokenizer_notices(chosen) == ("the merge has the chat template of 'chat'",)


def test_an_end_that_differs_is_reported(tiny_base, expert):
    configure(expert, eos_token="<|endoftext|>", unk_token="<|pad|>")
    (found,) = tokenizer_notices(make_recipe(tiny_base, expert))
    assert found == (
        "'chat' has other special tokens than the base, whose the merge has: eos_token "
        "'<|endoftext|>' (base '<|im_end|>'), unk_token '<|pad|>' (base 'none'); "
        "'tokenizer: {from: chat}' gives it these"
    )
    chosen = make_recipe(tiny_base, expert, tokenizer={"from": "chat"})
    assert tokenizer_notices(chosen) == ("the merge has the tokenizer of 'chat'",)
    (found,) = tokenizer_notices(make_recipe(tiny_base, expert, vocabulary="base"))
    assert found.endswith("'vocabulary: tokenizer' with 'tokenizer: {from: chat}' gives it these")


def test_models_without_a_tokenizer_are_reported(tiny_base, expert, tmp_path):
    for name in FILES:
        (expert / name).unlink()
    (found,) = tokenizer_notices(make_recipe(tiny_base, expert))
    assert found == "expert 'chat' has no tokenizer: its ids are taken to be the base's"
    found = tokenizer_notices(make_recipe(expert, tiny_base))
    assert found[0].startswith(
        "the base has no tokenizer: its ids are taken to be those of 'chat'"
    )
    (found,) = tokenizer_notices(make_recipe(expert, expert))
    assert found.startswith("no model has a tokenizer")


def test_tokenizers_that_cannot_be_loaded_are_reported(tiny_base, expert, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for folder in (base, expert):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_text("the same")
    configure(expert, unk_token="<|pad|>")
    (found,) = tokenizer_notices(make_recipe(base, expert))
    assert found.startswith("special tokens of 'chat' were not compared with the base's")


def test_the_card_says_it(tiny_base, expert, tmp_path):
    (expert / "chat_template.jinja").write_text("{{ 1 }}")
    recipe = make_recipe(tiny_base, expert)
    out = write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "## Notes on the models\n\n- 'chat' has another chat template than" in card


def test_an_end_that_only_the_experts_generation_config_names_is_reported(tiny_base, expert):
    tokens = json.loads((tiny_base / "tokenizer.json").read_text(encoding="utf-8"))
    pad = next(item["id"] for item in tokens["added_tokens"] if item["content"] == "<|pad|>")
    (expert / "generation_config.json").write_text(json.dumps({"eos_token_id": [pad]}))
    (found,) = tokenizer_notices(make_recipe(tiny_base, expert))
    assert found == (
        f"generation_config.json of 'chat' ends answers at '<|pad|>' ({pad}) too, the base's does "
        "not: scoring ends them there, the merge's own files will not; "
        "'tokenizer: {from: chat}' gives it these"
    )
    chosen = make_recipe(tiny_base, expert, tokenizer={"from": "chat"})
    assert not [one for one in tokenizer_notices(chosen) if "generation_config" in one]
    assert tokenizer_notices(make_recipe(expert, tiny_base)) == ()
