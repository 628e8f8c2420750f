"""Properties of merging across vocabularies."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.config.recipe import MergeRecipe
from safemerge.merge import merged_tensors
from safemerge.testing import pico
from safemerge.weights import open_checkpoint

METHODS = ("task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "iso_c")


def merged(folders, method, how):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    method = {"name": method, "weights": dict.fromkeys(list(folders)[1:], 0.6)}
    recipe = MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, "vocabulary": how}
    )
    opened = {name: open_checkpoint(folder) for name, folder in folders.items()}
    return dict(merged_tensors(recipe, opened))


@pytest.fixture(scope="module")
def folders(tiny_base, tiny_experts, tmp_path_factory):
    place = tmp_path_factory.mktemp("tokens")
    return {
        "base": tiny_base,
        "math": pico.pico_with_tokens(
            tiny_experts["math"], place / "math", ["<|a|>", "<|b|>"], seed=1
        ),
        "safety": pico.pico_with_tokens(
            tiny_experts["safety"], place / "safety", ["<|b|>"], seed=2
        ),
    }


@given(st.integers(0, 2**31), st.sampled_from(METHODS), st.sampled_from(["base", "union"]))
@settings(max_examples=15)
def test_permuting_an_experts_vocabulary_changes_nothing(folders, seed, method, how):
    # NOTE: the last expert's, so that a union meets its tokens in the same order.
    expected = merged(folders, method, how)
    with tempfile.TemporaryDirectory() as place:
        permuted = pico.pico_permuted(folders["safety"], Path(place) / "safety", seed=seed)
        got = merged({**folders, "safety": permuted}, method, how)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
