import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError
from safemerge.merge import ResidentCheckpoints, write_merged
from safemerge.testing.pico import pico_adapter, pico_base
from safemerge.weights import open_checkpoint
from safemerge.weights.untied import UntiedView, untie

# What peft says of adapters that change one of two tied weights.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tied base, an adapter that parts its embeddings, and what peft makes of both."""
    place = tmp_path_factory.mktemp("untied")
    base = pico_base(place / "base")
    lora = pico_adapter(base, place / "lora", seed=1, modules_to_save=["embed_tokens"])
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
    merged.merge_and_unload().save_pretrained(place / "dense")
    return {"base": base, "lora": lora, "dense": place / "dense"}


def make_recipe(folders, *names, weight=1.0):
    refs = [{"name": name, "path": str(folders[name])} for name in ("base", *names)]
    method = {"name": "task_arithmetic", "weights": dict.fromkeys(names, weight)}
    return MergeRecipe.model_validate({"base": refs[0], "experts": refs[1:], "method": method})


@pytest.mark.parametrize("expert", ["lora", "dense"])
def test_an_untied_expert_of_a_tied_base_gives_an_untied_model(folders, tmp_path, expert):
    recipe = make_recipe(folders, expert)
    out = write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    wanted = AutoModelForCausalLM.from_pretrained(folders["dense"]).eval()
    assert model.config.tie_word_embeddings is False
    prompt = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(prompt).logits, wanted(prompt).logits, rtol=1e-5, atol=1e-5
        )


def test_the_view_gives_the_embedding_as_head(folders):
    base, dense = (open_checkpoint(folders[name]) for name in ("base", "dense"))
    shown = untie({"base": base, "dense": dense})
    assert isinstance(shown["base"], UntiedView)
    assert shown["dense"] is dense
    view = shown["base"]
    assert set(view.names) == {*base.names, HEAD}
    assert torch.equal(view.tensor(HEAD), base.tensor(EMBEDDING))
    assert view.shape(HEAD) == base.shape(EMBEDDING)
    assert not view.tied_embeddings
    assert HEAD in view.distinct_names
    assert untie({"base": base, "again": base})["base"] is base


def test_an_engine_refuses_a_head_of_its_own_and_its_advice_works(folders, tmp_path):
    with pytest.raises(CheckpointMismatchError, match="an engine's model ties its output head"):
        ResidentCheckpoints.open(make_recipe(folders, "lora"), for_engine=True)
    recipe = make_recipe(folders, "dense", weight=0.0)
    out = write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, tmp_path / "base")
    again = make_recipe({**folders, "base": out}, "dense")
    assert ResidentCheckpoints.open(again, for_engine=True).base.tied_embeddings is False
