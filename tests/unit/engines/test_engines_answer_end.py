import json
import shutil

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.answer_end import answer_ends, text_behind, turn_end
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import TokenizedPrompt
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import CheckpointError
from safemerge.testing.pico import (
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    change_config,
    pico_base,
    pico_permuted,
    pico_saying,
    pico_tokenizer,
)
from safemerge.weights.generation_config import named_ends

TURN, TEXT = 2, 3
"""Ids of the pico end of turn and end of text."""


def change(folder, name, **settings):
    path = folder / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **settings}))


@pytest.fixture
def copied(tiny_base, tmp_path):
    def copied(name):
        return shutil.copytree(tiny_base, tmp_path / name)

    return copied


def ends(base, *experts, vocabulary="refuse"):
    refs = [CheckpointRef(name=folder.name, path=str(folder)) for folder in (base, *experts)]
    models = models_recipe(refs[0], refs[1:] or [refs[0].model_copy(update={"name": "same"})])
    models = models.model_copy(update={"vocabulary": vocabulary})
    return answer_ends(models, ChatFormat(base))


def test_the_template_the_tokenizer_and_every_generation_config_name_ends(copied):
    base, expert = copied("base"), copied("expert")
    assert ends(base) == (TURN,)
    change(base, "tokenizer_config.json", eos_token=END_OF_TEXT)
    assert ends(base) == (TURN, TEXT)
    change(base, "generation_config.json", eos_token_id=[TURN, 300])
    assert ends(base) == (TURN, TEXT, 300)
    change(expert, "generation_config.json", eos_token_id=400)
    assert ends(base, expert) == (TURN, TEXT, 300, 400)


def test_config_json_counts_where_no_generation_config_names_an_end(copied):
    base = copied("base")
    change_config(base, eos_token_id=[300])
    assert ends(base) == (TURN,)
    (base / "generation_config.json").unlink()
    assert ends(base) == (TURN, 300)
    change_config(base, eos_token_id=None, text_config={"eos_token_id": 301})
    assert named_ends(base) == [301]


def test_the_tokenizer_beside_an_adapter_names_an_end(copied, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    base = copied("base")
    assert ends(base, adapter) == (TURN,)
    change(adapter, "tokenizer_config.json", eos_token={"content": END_OF_TEXT})
    assert ends(base, adapter) == (TURN, TEXT)
    change(adapter, "tokenizer_config.json", eos_token="<|unknown|>")
    assert ends(base, adapter) == (TURN,)


def test_ends_of_another_vocabulary_are_found_by_their_tokens(copied, tmp_path):
    base = copied("base")
    other = pico_permuted(base, tmp_path / "other", seed=4)
    known = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    change(other, "generation_config.json", eos_token_id=known[END_OF_TEXT])
    assert ends(base, other, vocabulary="base") == (TURN, TEXT)


def test_a_model_that_is_still_to_be_trained_names_none(copied, tmp_path):
    assert ends(copied("base"), tmp_path / "later") == (TURN,)


def test_an_id_beyond_the_vocabulary_ends_nothing(copied):
    base = copied("base")
    change(base, "generation_config.json", eos_token_id=[TURN, 512, -1])
    assert ends(base) == (TURN,)


@pytest.mark.parametrize("given", ["<|im_end|>", [2, "3"], True])
def test_an_end_that_is_no_id_is_refused(copied, given):
    base = copied("base")
    change(base, "generation_config.json", eos_token_id=given)
    words = r"generation_config\.json: eos_token_id must be a token's id or a list of such; got "
    with pytest.raises(CheckpointError, match=words):
        ends(base)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"a{END_OF_TURN}\n{END_OF_TEXT}", TURN),
        (f" {END_OF_TURN}b a\n{END_OF_TEXT}{END_OF_TURN}", TEXT),
        ("b a\n", None),
        (f"b{END_OF_TURN}", None),
    ],
)
def test_the_end_of_a_turn_is_the_first_special_token_behind_the_answer(text, found):
    assert turn_end(pico_tokenizer(), text, "a") == found


@pytest.fixture(scope="module")
def sayings(tmp_path_factory):
    """Models that say 42, each with another end, which something of theirs names."""
    root = tmp_path_factory.mktemp("sayings")
    folders = {
        end: pico_saying(root / name, "42", end=end)
        for name, end in (("turn", END_OF_TURN), ("text", END_OF_TEXT), ("named", PAD))
    }
    change(folders[END_OF_TURN], "tokenizer_config.json", eos_token=END_OF_TEXT)
    change(folders[PAD], "generation_config.json", eos_token_id=[TURN, 0])
    return folders


@pytest.mark.parametrize("end", [END_OF_TURN, END_OF_TEXT, PAD])
def test_an_answer_stops_at_any_end_of_base_or_experts_and_does_not_show_it(sayings, end):
    base, *experts = [CheckpointRef(name=f.name, path=str(f)) for f in sayings.values()]
    models = models_recipe(base, experts)
    engine = TransformersEngine(models, EvaluatorSpec(dtype="float32", max_num_seqs=4))
    method = models.method.model_copy(update={"weights": {sayings[end].name: 1.0}})
    engine.load(models.model_copy(update={"method": method}))
    ids = tuple(ChatFormat(sayings[END_OF_TURN]).prompt_ids("What is 6 times 7?"))
    whole, cut = engine.generate([TokenizedPrompt("a", ids, 12), TokenizedPrompt("b", ids, 2)])
    engine.close()
    assert (whole.text, whole.finished, whole.num_tokens) == ("42", True, 3)
    assert (cut.text, cut.finished, cut.num_tokens) == ("42", False, 2)


def test_penalties_of_a_generation_config_do_not_change_greedy_answers(tmp_path):
    folder = pico_base(tmp_path / "base", seed=5)
    base = CheckpointRef(name="base", path=str(folder))
    models = models_recipe(base, [base.model_copy(update={"name": "same"})])
    prompt = TokenizedPrompt("a", tuple(ChatFormat(folder).prompt_ids("Hi")), 12)

    def answer():
        engine = TransformersEngine(models, EvaluatorSpec(dtype="float32"))
        engine.load(models)
        (found,) = engine.generate([prompt])
        engine.close()
        return found.text

    before = answer()
    change(folder, "generation_config.json", repetition_penalty=5.0, no_repeat_ngram_size=1)
    assert answer() == before


def test_words_are_found_in_a_template_that_writes_in_capitals():
    assert text_behind("what is ö? (a)", "x WHAT IS Ö? (A)<end>") == "<end>"
    assert text_behind("what", "that") is None
    assert turn_end(pico_tokenizer(), "AN ANSWER<|im_end|>\n", "an answer") == 2
