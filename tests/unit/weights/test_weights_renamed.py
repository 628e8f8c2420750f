import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.weights import check_agreement, open_checkpoint
from safemerge.weights.adapter import RenamedCheckpoint, under_names_of

UP_PROJ = "layers.1.mlp.up_proj.weight"


def renamed(folder, out, rename):
    copied = shutil.copytree(folder, out)
    tensors = load_file(copied / "model.safetensors")
    tensors = {rename(name): tensor for name, tensor in tensors.items()}
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


@pytest.fixture
def bare(tiny_expert, tmp_path):
    """The expert as a model without its head is published: names without ``model.``."""
    return renamed(tiny_expert, tmp_path / "bare", lambda name: name.removeprefix("model."))


def test_an_expert_without_the_prefix_is_given_under_the_bases_names(bare, tiny_base, tiny_expert):
    base, whole = open_checkpoint(tiny_base), open_checkpoint(tiny_expert)
    opened = open_checkpoint(bare, base)
    assert isinstance(opened, RenamedCheckpoint)
    assert opened.names == base.names
    for name in base.names:
        assert torch.equal(opened.tensor(name), whole.tensor(name))
        assert opened.shape(name) == whole.shape(name)
        assert opened.dtype(name) == whole.dtype(name)
    opened.fetch(base.names[0])
    opened.release(base.names[0])
    check_agreement(base, {"e": opened})


def test_an_expert_with_a_prefix_that_the_base_lacks_is_too(bare, tiny_base):
    base = open_checkpoint(bare)
    opened = open_checkpoint(tiny_base, base)
    assert UP_PROJ in opened
    assert opened.names == base.names
    check_agreement(base, {"e": opened})


def test_equal_names_and_names_that_no_prefix_explains_stay(tiny_base, tiny_expert, tmp_path):
    base, expert = open_checkpoint(tiny_base), open_checkpoint(tiny_expert)
    assert under_names_of(base, expert) is expert
    other = renamed(
        tiny_expert, tmp_path / "other", lambda name: name.replace("embed_tokens", "wte")
    )
    opened = open_checkpoint(other)
    assert under_names_of(base, opened) is opened


def test_tensors_that_only_the_other_has_keep_their_names(bare, tiny_base, tmp_path):
    def add(name):
        return "extra.weight" if name == UP_PROJ else name

    opened = open_checkpoint(renamed(bare, tmp_path / "more", add), open_checkpoint(tiny_base))
    assert "extra.weight" in opened
    assert f"model.{UP_PROJ}" not in opened
