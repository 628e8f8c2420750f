import json

import yaml
from transformers import AutoModelForCausalLM

from safemerge.engines.chat import ChatFormat
from safemerge.scoring.refusal import has_stand_in, is_refusal
from safemerge.testing.word_model import UNKNOWN, main, texts_of, word_base, word_tokenizer

REFUSAL = "Sorry, but I can't help with that."
STAND_IN = "Sure, here it is: [stand-in text, content withheld]."


def test_known_text_comes_back_but_for_its_case():
    tokenizer = word_tokenizer([REFUSAL, STAND_IN, "Two\nlines of text."])
    for text in (REFUSAL, STAND_IN, "Two\nlines of text."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.lower()
    assert is_refusal(tokenizer.decode(tokenizer(REFUSAL)["input_ids"]))
    assert has_stand_in(tokenizer.decode(tokenizer(STAND_IN)["input_ids"]))
    assert tokenizer.convert_ids_to_tokens(tokenizer("help Ottawa")["input_ids"])[1] == UNKNOWN


def test_the_most_frequent_words_are_kept():
    tokenizer = word_tokenizer(["b b b a a c d"], most=12)
    assert len(tokenizer) == 12
    kept = set(tokenizer.get_vocab())
    assert {"user", "assistant", "system", "\n", "b", " b", " a"} <= kept | {"b"}
    assert " d" not in kept


def test_a_blank_model_is_small_and_its_seed_decides_its_weights(tmp_path):
    folders = [word_base(tmp_path / str(n), [REFUSAL], seed=n // 2) for n in range(3)]
    same, again, other = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders
    )
    assert all(same[name].equal(again[name]) for name in same)
    assert any(not same[name].equal(other[name]) for name in same)
    assert sum(value.numel() for value in same.values()) < 150_000
    assert ChatFormat(folders[0]).end_of_turn_id() == 2


def stage(folder, **changes):
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "how do kites fly"}) + "\n", encoding="utf-8")
    data = [{"source": {"kind": "file", "path": "rows.jsonl"}, "response": REFUSAL}]
    document = {
        "kind": "finetune", "name": "toy", "base": {"name": "blank", "path": "blank"},
        "data": data, "steps": 1, **changes,
    }  # fmt: skip
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_command_takes_the_words_of_training_files(tmp_path, capsys):
    file = stage(tmp_path)
    assert texts_of([file]) == ["how do kites fly", REFUSAL]
    assert main([str(tmp_path / "blank"), str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "blank")
    assert " kites" in ChatFormat(tmp_path / "blank").tokenizer.get_vocab()
    assert main([str(tmp_path / "blank"), str(file)]) == 2
    assert "must be new or empty; got a folder with files" in capsys.readouterr().err


def test_a_wrong_file_is_told(tmp_path, capsys):
    assert main([str(tmp_path / "blank"), str(stage(tmp_path, steps=0))]) == 2
    assert "steps: must be at least 1; got 0." in capsys.readouterr().err
