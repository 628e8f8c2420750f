import shutil

import pytest

from safemerge.config.checkpoint import CheckpointRef, Neighbours, interpolated
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointChangedError
from safemerge.merge.digest import check_digests
from safemerge.testing.pico import change_config
from safemerge.weights import fingerprint


def recipe(base, *experts):
    return MergeRecipe(
        base=base,
        experts=list(experts),
        method={"name": "linear", "weights": {experts[0].name: 1.0}},
    )


@pytest.fixture
def refs(tiny_base, tiny_experts, tmp_path):
    """Base and experts, copied, with their digests."""
    folders = {"base": tiny_base, **tiny_experts}
    own = {name: shutil.copytree(path, tmp_path / name) for name, path in folders.items()}
    return [
        CheckpointRef(name=name, path=str(path), digest=fingerprint(path))
        for name, path in own.items()
    ]


def test_folders_that_hold_what_a_recipe_says_are_accepted(refs):
    check_digests(recipe(*refs))
    check_digests(recipe(*(ref.model_copy(update={"digest": None}) for ref in refs)))


def test_another_model_in_a_folder_is_refused_with_both_digests(refs):
    change_config(refs[1].path, rms_norm_eps=0.5)
    words = f"model 'math': .* {refs[1].digest}; got {fingerprint(refs[1].path)} in "
    with pytest.raises(CheckpointChangedError, match=words):
        check_digests(recipe(*refs))


def test_the_ends_of_a_line_are_looked_at_too(refs):
    base, math, safety = refs
    between = interpolated("between", Neighbours(low=math, high=safety, share=0.5))
    check_digests(recipe(base, between))
    change_config(safety.path, rms_norm_eps=0.5)
    with pytest.raises(CheckpointChangedError, match="model 'safety'"):
        check_digests(recipe(base, between))
