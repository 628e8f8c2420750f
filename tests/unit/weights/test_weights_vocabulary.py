import json
import shutil

import pytest
import tokenizer_kinds as kinds

from safemerge.errors import CheckpointError
from safemerge.weights.vocabulary import read_tokens, vocabulary, vocabulary_difference

PIECES = ["ab", "\u2581ab", "\u2581", "a", "b", "c"]
WORDS = [f"w{index}" for index in range(20)]
MADE = {
    "tokenizer.model": lambda folder, turned: kinds.sentencepiece(
        folder, PIECES[::-1] if turned else PIECES
    ),
    "vocab.json and merges.txt": lambda folder, turned: kinds.byte_pairs(
        folder, [WORDS[0], *(WORDS[:0:-1] if turned else WORDS[1:])]
    ),
    "tekken.json": lambda folder, turned: kinds.tekken(
        folder, ["the", "of"] if turned else ["of", "the"]
    ),
}


@pytest.fixture
def copy(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


@pytest.fixture
def made(tiny_base, tmp_path):
    """Return a folder with a tokenizer in some kind of file, its ids turned round or not."""

    def made(kind, name, *, turned=False):
        if kind == "tokenizer.model":
            pytest.importorskip("sentencepiece")
        return MADE[kind](shutil.copytree(tiny_base, tmp_path / name), turned)

    return made


def test_vocabulary_is_token_to_id_with_added_tokens(tiny_base):
    ids = vocabulary(tiny_base)
    assert len(ids) == 512
    assert (ids["<|pad|>"], ids["th"]) == (0, ids["th"])
    assert sorted(ids.values()) == list(range(512))


def test_tokens_have_their_settings_and_roles(tiny_base):
    found = read_tokens(tiny_base)
    assert found.added["<|im_end|>"] == kinds.entry("<|im_end|>", 2)
    assert list(found.added) == ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert found.special["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("kind", MADE)
def test_the_same_token_must_have_the_same_id_whatever_its_file(made, kind):
    first, same, other = made(kind, "a"), made(kind, "b"), made(kind, "c", turned=True)
    kinds.configure(same, model_max_length=12, chat_template="{{ 1 }}")
    assert vocabulary_difference(first, same) == []
    kinds.configure(same, bos_token="</s>" if "</s>" in vocabulary(same) else "w0")
    assert vocabulary_difference(first, same) == []
    assert vocabulary_difference(first, other)[0].startswith("token '")
    assert vocabulary(first).keys() == vocabulary(other).keys()


def test_one_tokenizer_in_two_kinds_of_files_agrees(made, tiny_base, tmp_path):
    from transformers import AutoTokenizer

    first, saved = made("tokenizer.model", "a"), tmp_path / "saved"
    AutoTokenizer.from_pretrained(first).save_pretrained(saved)
    assert (saved / "tokenizer.json").exists()
    assert not (saved / "tokenizer.model").exists()
    assert vocabulary_difference(first, saved) == []
    assert len(vocabulary_difference(first, tiny_base)) == 3


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_files_beside_the_vocabulary_add_count(made, where):
    folders = [made("tokenizer.model", name) for name in "ab"]
    tokens = ["<|im_end|>", "<|im_start|>"]
    for folder, order in zip(folders, (tokens, tokens[::-1]), strict=True):
        ids = {token: 9 + at for at, token in enumerate(order)}
        if where == "added_tokens.json":
            (folder / where).write_text(json.dumps(ids))
        else:
            decoder = {str(at): {"content": token, **kinds.ADDED} for token, at in ids.items()}
            kinds.configure(folder, added_tokens_decoder=decoder)
    assert vocabulary_difference(*folders) == [
        "token '<|im_end|>': base 9, expert 10",
        "token '<|im_start|>': base 10, expert 9",
    ]


def test_a_token_without_a_row_counts_as_absent(tiny_base, copy):
    kinds.add_entry(copy, "<|new|>", 512)
    found = ["token '<|new|>': base none, expert 512"]
    assert vocabulary_difference(tiny_base, copy) == found
    assert vocabulary_difference(tiny_base, copy, num_rows=513) == found
    assert vocabulary_difference(tiny_base, copy, num_rows=512) == []


def test_a_folder_without_tokenizer_agrees_with_any(tiny_base, tmp_path):
    assert vocabulary(tmp_path) is None
    assert vocabulary_difference(tiny_base, tmp_path) == []
    assert vocabulary_difference(tmp_path, tiny_base) == []


def test_added_tokens_without_a_vocabulary_must_be_the_bases(tiny_base, tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<|pad|>": 0, "<|im_end|>": 3}')
    found = vocabulary_difference(tiny_base, tmp_path)
    assert found == ["token '<|im_end|>': base 2, expert 3"]
    found = vocabulary_difference(tmp_path, tiny_base)
    assert found == ["token '<|im_end|>': base 3, expert 2"]


def test_layout_does_not_count(tiny_base, copy):
    kinds.change_tokenizer(copy, lambda document: document.update(truncation=None, padding=None))
    assert vocabulary_difference(tiny_base, copy) == []


def test_many_differences_are_counted(tiny_base, copy):
    def rotate(document):
        vocab = document["model"]["vocab"]
        for token, index in vocab.items():
            vocab[token] = index if index < 4 else 4 + (index - 3) % 508

    kinds.change_tokenizer(copy, rotate)
    found = vocabulary_difference(tiny_base, copy)
    assert len(found) == 3
    assert "(of 508 tokens)" in found[-1]


def test_a_changed_file_is_read_anew(copy):
    before = vocabulary(copy)
    kinds.add_entry(copy, "<|new|>", 512)
    assert vocabulary(copy) == {**before, "<|new|>": 512}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"vocab": 3}}'),
        ("tokenizer.model", "another sentencepiece vocabulary"),
    ],
)
def test_a_file_that_transformers_cannot_load_is_refused(tiny_base, copy, name, content):
    kinds.remove_tokenizer(copy)
    (copy / name).write_text(content)
    words = f"copy: must hold a tokenizer that transformers loads; got {name}: .*[.] Save"
    for pair in ((tiny_base, copy), (copy, tiny_base)):
        with pytest.raises(CheckpointError, match=words):
            vocabulary_difference(*pair)


def test_equal_files_that_cannot_be_loaded_differ_by_the_tokens_they_are_given(copy, tmp_path):
    kinds.remove_tokenizer(copy)
    (copy / "tokenizer.model").write_bytes(b"the same")
    other = shutil.copytree(copy, tmp_path / "other")
    assert vocabulary_difference(copy, other) == []
    (copy / "added_tokens.json").write_text('{"<|call|>": 510}')
    (other / "added_tokens.json").write_text('{"<|call|>": 511}')
    assert vocabulary_difference(copy, other) == ["token '<|call|>': base 510, expert 511"]
