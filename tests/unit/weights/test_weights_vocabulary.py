import json
import shutil

import pytest

from safemerge.errors import CheckpointError
from safemerge.weights.vocabulary import vocabulary, vocabulary_difference


@pytest.fixture
def copy(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


def change(folder, edit):
    document = json.loads((folder / "tokenizer.json").read_text())
    edit(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))


def test_vocabulary_is_token_to_id_with_added_tokens(tiny_base):
    ids = vocabulary(tiny_base)
    assert len(ids) == 512
    assert (ids["<|pad|>"], ids["th"]) == (0, ids["th"])
    assert sorted(ids.values()) == list(range(512))


def test_unigram_vocabularies_are_lists(tmp_path):
    document = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert vocabulary(tmp_path) == {"a": 0, "b": 1}


def test_a_folder_without_tokenizer_agrees_with_any(tiny_base, tmp_path):
    assert vocabulary(tmp_path) is None
    assert vocabulary_difference(tiny_base, tmp_path) == []
    assert vocabulary_difference(tmp_path, tiny_base) == []


def test_layout_does_not_count(tiny_base, copy):
    change(copy, lambda document: document.update(truncation=None, padding=None))
    assert vocabulary_difference(tiny_base, copy) == []


def test_a_swap_and_an_addition_are_differences(tiny_base, copy):
    def edit(document):
        vocab = document["model"]["vocab"]
        vocab["th"], vocab["he"] = vocab["he"], vocab["th"]
        document["added_tokens"].append({"content": "<|new|>", "id": 512})

    change(copy, edit)
    found = vocabulary_difference(tiny_base, copy)
    assert found[0] == "token '<|new|>': base none, expert 512"
    assert len(found) == 3


def test_many_differences_are_counted(tiny_base, copy):
    change(copy, lambda document: document["model"].update(vocab={"a": 0}))
    found = vocabulary_difference(tiny_base, copy)
    assert len(found) == 3
    assert "(of 508 tokens)" in found[-1]


def test_sentencepiece_models_are_compared_by_bytes(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two"), ("d", b"three")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    assert vocabulary_difference(tmp_path / "a", tmp_path / "b") == []
    for other in "cd":
        assert vocabulary_difference(tmp_path / "a", tmp_path / other) == [
            "tokenizer.model differs in content"
        ]


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {}}', '{"model": {"vocab": 3}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: must be a tokenizers file"):
        vocabulary(tmp_path)
