"""Recipe files as warm starts: their models must be the study's, told before anything starts."""

import json
import shutil

import pytest
import yaml

from safemerge.config.warm_start import warm_start_names
from safemerge.data.seen import recorded
from safemerge.data.suite import load_suites
from safemerge.distributed.ingredient import Ingredients, finished_folder, stage_file
from safemerge.distributed.search import check_suites
from safemerge.distributed.warm_start import read_starts, seen_by, with_starts
from safemerge.engines.chat import ChatFormat
from safemerge.errors import ConfigError, DataError
from safemerge.search import start_plans
from safemerge.testing import pico
from safemerge.testing.landscapes import landscape_study
from safemerge.training.batch import load_mixture
from safemerge.training.ingredient import MARKER, ingredient_digest, ingredient_folder
from safemerge.weights.fingerprint import fingerprint


@pytest.fixture
def models(tiny_base, tiny_experts):
    return {"base": tiny_base, "skill": tiny_experts["math"], "safety": tiny_experts["safety"]}


@pytest.fixture
def study(models):
    """A study over pico models that starts from some files."""

    def start(*files, **refs):
        base, *experts = [
            {"name": name, **refs.get(name, {"path": str(path)})} for name, path in models.items()
        ]
        return landscape_study(base=base, experts=experts, start=[str(file) for file in files])

    return start


@pytest.fixture
def write(models, tmp_path):
    """Write a recipe as `safemerge optimize` does, with changes."""

    def write(file="found/recipe.yaml", refs=None, weights=None, **changes):
        base, *experts = [
            {
                "name": name,
                "path": str(path),
                "digest": fingerprint(path),
                **(refs or {}).get(name, {}),
            }
            for name, path in models.items()
        ]
        method = {"name": "task_arithmetic", "weights": weights or {"skill": 0.25, "safety": 0.5}}
        document = {"base": base, "experts": experts, "method": method, **changes}
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    return write


def resolve(spec):
    starts = read_starts(spec)
    ingredients = Ingredients(say=lambda line: None, on_step=lambda *_: None)
    return with_starts(spec.with_checkpoints(ingredients.resolve(spec.all_checkpoints)), starts)


def test_a_study_without_starts_stays_as_it_is(study):
    spec = study()
    assert read_starts(spec) == []
    assert with_starts(spec, []) is spec


def test_a_recipe_is_set_over_the_studys_models_under_a_name(study, write):
    spec = resolve(study(write()))
    (start,) = spec.started
    assert start.name == "found"
    assert start.num_layers == pico.NUM_LAYERS
    assert start.recipe.seed == spec.seed
    assert start.recipe.experts == spec.experts
    (plan,) = start_plans(spec)
    assert plan.point.exact
    again = type(spec).model_validate_json(json.dumps(spec.resolved()))
    assert again == spec


def test_a_moved_model_with_the_same_weights_is_the_studys(study, write, models, tmp_path):
    moved = shutil.copytree(models["skill"], tmp_path / "moved")
    digest = {"digest": fingerprint(moved)}
    for refs in (
        {"skill": {"path": str(moved), **digest}},
        {"skill": {"path": "/gone", **digest}},
    ):
        (start,) = resolve(study(write(refs=refs))).started
        assert start.recipe.experts[0].path == str(models["skill"])


def test_a_recipe_without_fingerprints_is_compared_by_weights(study, write, models, tmp_path):
    moved = shutil.copytree(models["skill"], tmp_path / "moved")
    refs = {"skill": {"path": "../moved", "digest": None}}
    assert resolve(study(write(refs=refs))).started[0].recipe.experts[0].path == str(
        models["skill"]
    )
    shutil.rmtree(moved)
    shutil.copytree(models["safety"], moved)
    with pytest.raises(ConfigError, match="model 'skill': must be the study's; got fingerprint"):
        read_starts(study(write(refs=refs)))


def test_other_weights_under_the_same_names_are_refused_with_every_problem(study, write, models):
    swapped = {
        name: {"path": str(models[other]), "digest": fingerprint(models[other])}
        for name, other in (("skill", "safety"), ("safety", "skill"))
    }
    with pytest.raises(ConfigError) as caught:
        read_starts(study(write(refs=swapped), write("b/recipe.yaml", sede=1)))
    first, second, third = str(caught.value).splitlines()
    digest = fingerprint(models["safety"])
    assert first.endswith(
        f"found/recipe.yaml: model 'skill': must be the study's; got fingerprint {digest}. "
        "Take a recipe over the study's models."
    )
    assert "model 'safety'" in second
    assert "b/recipe.yaml: sede: unknown key" in third


def test_weights_that_changed_since_the_recipe_was_written_are_refused(study, write):
    stale = {"safety": {"digest": "0" * 16}}
    with pytest.raises(
        ConfigError,
        match=r"recipe\.yaml: model 'safety': weights must have fingerprint 0000000000000000; got",
    ):
        resolve(study(write(refs=stale)))


def test_layer_groups_must_fit_the_base(study, write):
    groups = [{"name": "late", "layers": "90-99"}]
    weights = {"skill": {"late": 1.0, "default": 0.0}, "safety": 1.0}
    with pytest.raises(ConfigError, match=r"layer_groups\.late: must match a tensor"):
        read_starts(study(write(weights=weights, layer_groups=groups)))


def test_a_missing_file_is_told(study, tmp_path):
    with pytest.raises(ConfigError, match=r"no/recipe\.yaml: no such file"):
        read_starts(study(tmp_path / "no" / "recipe.yaml"))


@pytest.fixture
def align_file(models, tmp_path):
    """A file that trains the study's expert *safety*."""
    data = {"source": {"kind": "generator", "name": "reviews", "split": "train", "count": 4}}
    document = {
        "kind": "align",
        "name": "safety",
        "base": {"name": "base", "path": str(models["base"])},
        "data": [{**data, "response": "{label}"}] * 2,
        "steps": 1,
    }
    path = tmp_path / "align.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def test_an_expert_that_is_not_trained_yet_cannot_be_that_of_a_recipe(study, write, align_file):
    with pytest.raises(ConfigError, match=r"'safety': .* still to be trained, from .*align\.yaml"):
        read_starts(study(write(), safety={"align": align_file}))


def test_a_trained_expert_is_that_of_a_recipe_by_its_weights(study, write, align_file, models):
    spec = study(write(), safety={"align": align_file})
    ref = spec.experts[1]
    assert finished_folder(ref) is None
    stage = stage_file(ref).load()
    mixture = load_mixture(stage, ChatFormat(models["base"]))
    key = ingredient_digest(stage, base_fingerprint=fingerprint(models["base"]), mixture=mixture)
    shutil.copytree(models["safety"], ingredient_folder(stage.name, key))
    (ingredient_folder(stage.name, key) / MARKER).write_text("{}")
    (start,) = resolve(spec).started
    assert start.recipe.experts[1].path == str(finished_folder(ref))


def test_the_same_file_of_training_is_the_same_model_though_neither_is_trained(
    study, write, align_file
):
    refs = {"safety": {"path": None, "digest": None, "align": align_file}}
    (start,) = read_starts(study(write(refs=refs), safety={"align": align_file}))
    assert start.models["safety"] == "safety"


def test_names_tell_files_apart():
    files = ["/r/optimize/recipe.yaml", "/a/7.yaml", "/b/optimize/recipe.yaml", "/b/7.yaml"]
    assert warm_start_names(files) == ["optimize", "7", "optimize (2)", "7 (2)"]


def test_a_search_refuses_report_prompts_that_a_recipe_it_starts_from_was_found_with(study, write):
    assert seen_by(read_starts(study(write()))) == []
    (suite, *_) = study().suites
    splits = {
        split: getattr(suite, split).model_copy(update={"prompt": "{prompt}"})
        for split in ("search", "report")
    }
    seen = recorded({"found.safety.0": splits["report"]})
    spec = study(write(seen=[item.model_dump(mode="json") for item in seen]))
    task = suite.task.model_copy(update={"labels": ["positive", "negative"]})
    spec = spec.model_copy(update={"suites": [suite.model_copy(update={**splits, "task": task})]})
    with pytest.raises(DataError, match=r"a recipe was optimised on; got 100 shared"):
        check_suites(spec, load_suites(spec), seen=seen_by(read_starts(spec)))
    assert check_suites(spec, load_suites(spec)) == 100
