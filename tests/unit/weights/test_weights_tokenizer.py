import json
import shutil

import pytest
from transformers import AutoTokenizer

from safemerge.errors import CheckpointError
from safemerge.weights.tokenizer import add_tokens

ENTRY = {
    "id": 512, "content": "<|call|>", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": True,
}  # fmt: skip


@pytest.fixture
def folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


def test_an_added_token_is_one_token_and_the_rest_stays(folder, tiny_base):
    before = AutoTokenizer.from_pretrained(tiny_base)
    add_tokens(folder, [ENTRY, {**ENTRY, "id": 513, "content": "<|end|>"}])
    after = AutoTokenizer.from_pretrained(folder)
    assert len(after) == 514
    assert after.encode("<|call|>the<|end|>") == [512, *before.encode("the"), 513]
    assert after.decode([512], skip_special_tokens=True) == ""
    for role in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(after, role) == getattr(before, role)


def test_files_of_slow_tokenizers_get_the_token_too(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"0": {"content": "<|pad|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text('{"<|pad|>": 0}')
    add_tokens(folder, [ENTRY])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["512"]["content"] == "<|call|>"
    assert "id" not in config["added_tokens_decoder"]["512"]
    assert json.loads((folder / "added_tokens.json").read_text()) == {
        "<|pad|>": 0,
        "<|call|>": 512,
    }


def test_without_tokens_nothing_is_written(folder):
    (folder / "tokenizer.json").unlink()
    add_tokens(folder, [])
    assert not (folder / "tokenizer.json").exists()


def test_an_id_that_the_tokenizer_would_not_give_is_refused(folder):
    words = r"tokenizer\.json, token '<\|call\|>': must get the id of its row, 520; got 512"
    with pytest.raises(CheckpointError, match=words):
        add_tokens(folder, [{**ENTRY, "id": 520}])
