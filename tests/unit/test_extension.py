"""Packages of ``examples/``, installed as anybody's: found, validated, used, and exported."""

import json
import pickle
from pathlib import Path

import optuna
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from safemerge import plugins
from safemerge.cli import main
from safemerge.config.added import WithAdded
from safemerge.config.document import parse_document
from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.config.sampler import GIVEN
from safemerge.config.schema import json_schema
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError, MergeError
from safemerge.extension import merge_method
from safemerge.merge import ResidentCheckpoints, merge_tensor, write_merged
from safemerge.search import SearchStudy
from safemerge.search.storage import make_sampler
from safemerge.store import RunStore
from safemerge.testing.conformance import WeightedMethodCases, build_method, random_tensor
from safemerge.testing.landscapes import SMOOTH, landscape_study

ROOT = Path(__file__).resolve().parents[2]
NAME = "model.layers.0.mlp.up_proj.weight"
USE = {"use": "neighbour", "arguments": {"width": 0.05}, "startup": 3}


@pytest.fixture(scope="module")
def site(install_examples):
    """A folder that pip has installed the examples into."""
    return install_examples("merge_method", "sampler")


pytestmark = pytest.mark.usefixtures("examples")


class TestTopMean(WeightedMethodCases):
    @pytest.fixture
    def method_name(self):
        return "top_mean"


def recipe_of(*models, **method):
    names = ("base", *models)
    refs = [{"name": name, "path": f"/nowhere/{name}"} for name in names]
    given = {"name": "top_mean", "weights": dict.fromkeys(models, 1.0), **method}
    return {"base": refs[0], "experts": refs[1:], "method": given}


def problem(document):
    with pytest.raises(ConfigError) as error:
        parse_document(document, MergeRecipe, where="recipe")
    return str(error.value)


def test_a_recipe_of_an_added_method_is_validated_like_any():
    recipe = parse_document(recipe_of("a", density=[0.5, 1.0]), MergeRecipe, where="recipe")
    assert recipe.method.plugin == "safemerge-top-mean 1.0"
    assert MergeRecipe.model_validate_json(recipe.model_dump_json(by_alias=True)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert dict(recipe.method.coefficients())["density"] == [0.5, 1.0]
    assert "method.density: must be at most 1; got 2.0." in problem(recipe_of("a", density=2.0))
    assert "method.densty: unknown key; got 1.0. Did you mean 'density'?" in problem(
        recipe_of("a", densty=1.0)
    )
    assert "method: names an unknown model; got 'b'" in problem(
        recipe_of("a", weights={"a": 1.0, "b": 1.0})
    )
    assert "method.name: unknown choice; got \"top_men\". Did you mean 'top_mean'?" in problem(
        recipe_of("a", name="top_men")
    )


def test_a_node_that_lacks_the_package_of_a_resolved_recipe_names_it():
    document = recipe_of("a", name="gone", plugin="some-package 2.0")
    told = problem(document)
    assert 'method.name: must be of a package that is installed here; got "gone"' in told
    assert "of some-package 2.0. Install it, on every node." in told


def test_the_version_of_a_method_is_part_of_its_digest_and_held_to():
    document = recipe_of("a")
    recipe = MergeRecipe.model_validate(document)
    other = recipe.method.model_copy(update={"plugin": "safemerge-top-mean 2.0"})
    assert recipe.model_copy(update={"method": other}).digest != recipe.digest
    document["method"]["plugin"] = "safemerge-top-mean 0.9"
    assert "safemerge-top-mean 0.9; got safemerge-top-mean 1.0" in problem(document)


def test_an_added_method_merges_as_its_function_does_and_leaves_the_inputs():
    base, first, second = (random_tensor((8, 8), seed=seed) for seed in range(3))
    method = build_method("top_mean", {"a": 0.5, "b": 0.25}, density=0.25)
    call = {"tensor": NAME, "base": base, "experts": {"a": first, "b": second}}
    change = merge_tensor(method, **call) - base
    expected = 0.5 * (first - base) + 0.25 * (second - base)
    assert int((change != 0).sum()) == 16
    kept = expected.abs() >= expected.abs().flatten().topk(16).values[-1]
    torch.testing.assert_close(change, expected * kept, rtol=1e-4, atol=1e-5)


def test_an_added_method_is_in_the_table_and_in_schemas(capsys):
    assert main(["methods", "top_mean"]) == 0
    text = capsys.readouterr().out
    assert "top_mean: Top mean, merge method" in text
    assert "density: number in (0, 1], layer-wise (default 1.0; usually (0, 1])" in text
    assert "Fraction of the sum's entries that is kept, in (0, 1]." in text
    assert main(["methods"]) == 0
    assert "\n  top_mean " in capsys.readouterr().out
    assert "top_mean" in json.dumps(json_schema("recipe"))
    assert "top_mean" in json.dumps(json_schema("study"))


def test_an_added_method_is_searched_written_and_carded(tiny_base, tiny_experts, tmp_path, capsys):
    document = recipe_of(*tiny_experts)
    for ref, path in zip(
        [document["base"], *document["experts"]], [tiny_base, *tiny_experts.values()], strict=True
    ):
        ref["path"] = str(path)
    recipe = MergeRecipe.model_validate(document)
    write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Top mean: safemerge, examples/merge_method." in card
    assert '"plugin": "safemerge-top-mean 1.0"' in card
    space = landscape_study().resolved()["spaces"][0]
    space["method"]["name"] = "top_mean"
    space["vary"]["method.density"] = {"low": 0.1, "high": 1.0}
    spec = landscape_study(spaces=[space])
    assert spec.spaces[0].method.plugin == "safemerge-top-mean 1.0"
    space["vary"]["method.density"] = {"low": 0.1, "high": 2.0}
    with pytest.raises(ConfigError, match=r"illegal at 2\.0: method\.density: must be at most 1"):
        landscape_study(spaces=[space])


def test_mergekit_is_said_not_to_have_an_added_method():
    recipe = MergeRecipe.model_validate(recipe_of("a"))
    with pytest.raises(ConfigError, match="cannot express it; got method 'top_mean'"):
        mergekit_of_recipe(recipe)


def test_an_added_sampler_searches_and_is_part_of_the_run(tmp_path):
    spec = landscape_study(sampler=USE, num_trials=12, storage="journal", references=False)
    assert spec.sampler.plugin == "safemerge-neighbour 1.0"
    store = RunStore(tmp_path / "run").create(spec)
    with SearchStudy(spec, store) as study:
        while (proposal := study.ask()) is not None:
            study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))
        assert len(study.records) == 12
        assert type(study._study.sampler).__name__ == "NeighbourSampler"
    kept = json.loads((tmp_path / "run" / "study.json").read_text(encoding="utf-8"))
    assert "safemerge-neighbour 1.0" in json.dumps(kept)


def test_any_sampler_of_optunas_form_is_used_by_its_import_path():
    use = {"use": "optuna.samplers:NSGAIISampler", "arguments": {"population_size": 6}}
    spec = landscape_study(sampler=use)
    assert spec.sampler.plugin == f"optuna {optuna.__version__}"
    assert isinstance(make_sampler(spec, num_existing=0), optuna.samplers.NSGAIISampler)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ({"use": "nowhere"}, "sampler 'nowhere': must be safemerge's own or of an installed"),
        ({"use": "optuna.samplers:Nothing"}, "must be importable"),
        ({"use": "neighbour", "arguments": {"wide": 1}}, "unexpected keyword argument 'wide'"),
        ({"use": "neighbour", "name": "nsga2"}, "name and use exclude each other"),
        ({"arguments": {"width": 1}}, "Add use, or drop them"),
        ({"use": "neighbour", "plugin": "safemerge-neighbour 9"}, "got safemerge-neighbour 1.0"),
    ],
)
def test_a_sampler_that_cannot_be_used_is_refused_at_load(sampler, words):
    with pytest.raises(ConfigError, match="sampler") as error:
        landscape_study(sampler=sampler)
    assert words in str(error.value)


def test_what_is_no_sampler_is_refused_before_the_search():
    spec = landscape_study(sampler={"use": "collections:Counter"})
    with pytest.raises(
        ConfigError, match=r"sampler\.use 'collections:Counter': must be an optuna"
    ):
        make_sampler(spec, num_existing=0)


def test_studies_without_an_added_sampler_are_written_as_before():
    assert set(landscape_study().resolved()["sampler"]) == {"name", "startup"}
    assert StudySpec.model_validate(landscape_study().resolved()) == landscape_study()


def registered(function, name="mine"):
    return plugins.register(plugins.MERGE_METHODS, name, merge_method(name)(function))


def test_a_method_of_whole_weights_may_name_the_base_and_has_no_lambda():
    def mine(models: torch.Tensor, weights: torch.Tensor, *, root: bool = False) -> torch.Tensor:
        """Weighted mean."""
        return torch.tensordot(weights / weights.sum(), models, dims=1)

    assert not registered(mine).uses_base
    base, first = (random_tensor((3, 4), seed=seed) for seed in range(2))
    method = MergeRecipe.model_validate(
        recipe_of("a", name="mine", weights={"base": 1.0, "a": 3.0}, root=True)
    ).method
    found = merge_tensor(method, tensor=NAME, base=base, experts={"a": first})
    torch.testing.assert_close(found, 0.25 * base + 0.75 * first)
    with pytest.raises(ValidationError, match="lambda: unknown key"):
        MergeRecipe.model_validate(recipe_of("a", name="mine", **{"lambda": 0.5}))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda task_vectors: task_vectors, r"must return a float tensor .* \(3, 4\); got shape"),
        (lambda task_vectors: 3, "must return a float tensor of the base's shape .* got int"),
        (lambda task_vectors: task_vectors[7], "its function must not fail; got IndexError"),
    ],
)
def test_a_function_that_fails_or_returns_something_else_is_named(broken, words):
    registered(broken)
    method = MergeRecipe.model_validate(recipe_of("a", name="mine")).method
    base, first = (random_tensor((3, 4), seed=seed) for seed in range(2))
    with pytest.raises(MergeError, match=f"tensor '{NAME}', merge method 'mine': {words}"):
        merge_tensor(method, tensor=NAME, base=base, experts={"a": first})


def test_a_function_that_writes_to_its_tensors_changes_no_model():
    def mine(base: torch.Tensor, task_vectors: torch.Tensor) -> torch.Tensor:
        base.zero_()
        return task_vectors.zero_()[0]

    registered(mine)
    method = MergeRecipe.model_validate(recipe_of("a", name="mine")).method
    base, first = (random_tensor((3, 4), seed=seed) for seed in range(2))
    copies = base.clone(), first.clone()
    assert torch.equal(merge_tensor(method, tensor=NAME, base=base, experts={"a": first}), base)
    assert torch.equal(base, copies[0])
    assert torch.equal(first, copies[1])


def two_kinds(task_vectors, models):
    """Take both."""


def odd_type(task_vectors, *, way: str = "x"):
    """Take text."""


def reserved(task_vectors, *, weights: float = 1.0):
    """Take what every method has."""


def stranger(task_vectors, density):
    """Take a number by place."""


@pytest.mark.parametrize(
    ("function", "name", "words"),
    [
        (two_kinds, "mine", "must be task_vectors or models"),
        (odd_type, "mine", "parameter 'way': must be float, int, bool or Literal"),
        (reserved, "mine", "must not be named weights"),
        (stranger, "mine", "got task_vectors, density. Make others keyword-only"),
        (two_kinds, "My Mean", "must be lower-case letters"),
    ],
)
def test_a_signature_of_another_form_is_refused(function, name, words):
    with pytest.raises(ConfigError, match=f"merge method '{name}'.*{words}"):
        merge_method(name)(function)


def test_a_name_of_safemerges_own_may_not_be_taken():
    registered(summed, "ties")
    assert "merge method 'ties': names must be unique; got it from safemerge" in problem(
        recipe_of("a")
    )


def summed(task_vectors: torch.Tensor, *, steps: int = 1) -> torch.Tensor:
    """Sum."""
    return task_vectors.sum(dim=0)


def test_a_mark_on_a_union_is_short_in_messages():
    mark = WithAdded(plugins.MERGE_METHODS, ("ties",), lambda name: MergeRecipe)
    assert repr(mark) == "WithAdded('safemerge.merge_methods')"


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_sampler_is_given_is_not_an_argument(name):
    with pytest.raises(ConfigError, match=f"arguments.{name}: is given by safemerge"):
        landscape_study(sampler={"use": "neighbour", "arguments": {name: 1}})
