import shutil

import pytest
import tokenizer_kinds as kinds

from safemerge.errors import CheckpointError
from safemerge.weights import tokenizer_files
from safemerge.weights.tokenizer_files import (
    added_ids,
    has_vocabulary,
    load_tokenizer,
    same_tokenizer_files,
    tokenizer_digest,
)


@pytest.fixture
def copy(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


def test_a_vocabulary_may_stand_in_many_files(copy, tmp_path):
    assert has_vocabulary(copy)
    kinds.remove_tokenizer(copy)
    (copy / "added_tokens.json").write_text("{}")
    assert not has_vocabulary(copy)
    for name in (
        "tekken.json",
        "tokenizer.model.v3",
        "vocab.txt",
        "qwen.tiktoken",
        "spiece.model",
    ):
        (copy / name).write_text("")
        assert has_vocabulary(copy)
        (copy / name).unlink()


def test_files_are_the_same_but_for_what_gives_no_id(tiny_base, copy):
    kinds.configure(copy, model_max_length=7, chat_template="x")
    assert same_tokenizer_files(tiny_base, copy)
    assert tokenizer_digest(tiny_base) != tokenizer_digest(copy)
    kinds.configure(copy, tokenizer_class="GPT2Tokenizer")
    assert not same_tokenizer_files(tiny_base, copy)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("added_tokens.json", "[]", "must be a JSON object; got a list"),
        ("added_tokens.json", '{"<a>": "x"}', "must give an id by token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"3": "<a>"}}', "a token by id"),
        ("tokenizer_config.json", "{", "must be a JSON object; got: Expecting"),
    ],
)
def test_files_of_added_tokens_that_are_not_such_are_refused(copy, name, content, words):
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        added_ids(copy)


def test_code_of_a_folder_is_never_run(copy):
    kinds.remove_tokenizer(copy)
    (copy / "own.py").write_text("raise SystemExit('run')")
    kinds.configure(copy, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    with pytest.raises(CheckpointError, match="must hold a tokenizer that transformers loads"):
        load_tokenizer(copy)


def test_a_package_that_is_missing_is_named(copy, monkeypatch):
    kinds.remove_tokenizer(copy)
    (copy / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(tokenizer_files, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="Install sentencepiece, or save"):
        load_tokenizer(copy)
