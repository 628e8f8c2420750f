"""Studies and recipes that are built in code are checked as files are, with the same words."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import safemerge
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study


@pytest.fixture
def keys():
    document = landscape_study("toy").resolved()
    # As people write it: what is left at its default is left out.
    return {key: document[key] for key in (
        "name", "base", "experts", "spaces", "suites", "objectives", "num_trials", "aggregates",
    )}  # fmt: skip


@pytest.fixture
def file(keys, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


RECIPE = {
    "base": {"name": "base", "path": "base"},
    "experts": [{"name": "math", "path": "math"}],
    "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
}


def test_a_study_in_code_is_the_one_of_the_file(keys, file):
    study = safemerge.Study(**keys)
    assert study == safemerge.load_study(file) == safemerge.load_study(str(file))
    assert hash(study) == hash(safemerge.load_study(file))
    assert study.name == "toy"
    assert study.spec.num_trials == keys["num_trials"]
    assert repr(study) == f"Study('toy', num_trials={keys['num_trials']})"
    assert study != safemerge.Study(**keys, seed=1)


def changes(keys):
    spaces = [{**keys["spaces"][0], "vary": {"method.weight.skill": {"low": 0.0, "high": 1.0}}}]
    return {
        "an unknown key": {**keys, "num_trails": 3},
        "a wrong type": {**keys, "num_trials": "3"},
        "out of range": {**keys, "num_trials": 0},
        "a path of a space": {**keys, "spaces": spaces},
        "an unknown metric": {
            **keys,
            "objectives": [{**keys["objectives"][0], "metric": "task.acuracy"}],
        },
        "several": {**keys, "num_trials": -1, "sampler": {"nme": "tpe"}},
        "a missing key": {key: value for key, value in keys.items() if key != "experts"},
        "no number": {**keys, "num_trials": float("nan")},
    }


@pytest.mark.parametrize("kind", changes({"spaces": [{}], "objectives": [{}], "experts": []}))
def test_errors_read_as_those_of_a_file(kind, keys, tmp_path):
    document = changes(keys)[kind]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ConfigError) as of_file:
        safemerge.load_study(path)
    with pytest.raises(ConfigError) as of_code:
        safemerge.Study(**document)
    assert str(of_code.value) == str(of_file.value).replace(str(path), "study 'toy'")


def test_an_error_names_path_value_and_nearest_key(keys):
    space = {**keys["spaces"][0]}
    space["vary"] = {"method.weights.skil": {"low": 0.0, "high": 1.0}}
    with pytest.raises(ConfigError) as caught:
        safemerge.Study(**{**keys, "spaces": [space], "num_trials": 0})
    assert "study 'toy': num_trials: must be at least 1; got 0." in str(caught.value)
    with pytest.raises(ConfigError, match=r"toy': num_trails: unknown key; got 3\. Did you"):
        safemerge.Study(**keys, num_trails=3)
    with pytest.raises(ConfigError, match=r"^study: name: "):
        safemerge.Study(**{**keys, "name": 3})


def test_paths_tuples_and_numpy_numbers_are_taken(keys, tmp_path):
    base = {**keys["base"], "path": tmp_path / "base"}
    spaces = [{**keys["spaces"][0]}]
    path = next(iter(spaces[0]["vary"]))
    spaces[0]["vary"] = {path: {"low": np.float64(0.0), "high": np.float32(0.5)}}
    study = safemerge.Study(
        **{**keys, "base": base, "num_trials": np.int64(7), "spaces": tuple(spaces)}
    )
    assert study.spec.base.path == str(tmp_path / "base")
    assert study.spec.num_trials == 7
    assert study.spec.spaces[0].vary[path].high == 0.5


def test_a_value_that_yaml_has_no_form_for_is_named(keys):
    with pytest.raises(ConfigError, match=r"study 'toy': seed: must be text, a number.*got set"):
        safemerge.Study(**keys, seed={1})


def test_relative_paths_are_taken_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert safemerge.Recipe(**RECIPE).spec.base.path == str(tmp_path / "base")
    other = safemerge.Recipe(folder=tmp_path / "models", **RECIPE)
    assert other.spec.experts[0].path == str(tmp_path / "models" / "math")


def test_a_changed_copy_is_checked_and_leaves_the_first(keys):
    study = safemerge.Study(**keys)
    assert study.replace(num_trials=99).spec.num_trials == 99
    assert study.spec.num_trials == keys["num_trials"]
    with pytest.raises(ConfigError, match="num_trials: must be at least 1"):
        study.replace(num_trials=0)


def test_what_is_saved_is_read_again(keys, tmp_path):
    study = safemerge.Study(**keys)
    assert safemerge.load_study(study.save(tmp_path / "copy.yaml")) == study
    recipe = safemerge.Recipe(folder=tmp_path, **RECIPE)
    read = safemerge.Recipe.load(recipe.save(tmp_path / "recipe.yaml"))
    assert read == recipe
    assert read.digest == recipe.digest
    assert read.source == tmp_path / "recipe.yaml"
    assert repr(read) == f"Recipe('task_arithmetic', digest='{recipe.digest}')"


def test_models_of_a_study_can_be_named_in_a_recipe(keys):
    study = safemerge.Study(**keys)
    recipe = safemerge.Recipe(
        base=study.spec.base,
        experts=study.spec.experts,
        method={"name": "linear", "weights": {"skill": 1.0}},
    )
    assert recipe.spec.experts == study.spec.experts


def test_a_mergekit_file_is_a_recipe_with_notes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    document = {
        "models": [{"model": "b", "parameters": {"weight": 0.5}}],
        "merge_method": "task_arithmetic",
        "base_model": "a",
    }
    path = tmp_path / "mergekit.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    recipe = safemerge.Recipe.load(path)
    assert recipe.spec.method.name == "task_arithmetic"
    assert recipe.mergekit is not None
    assert safemerge.Recipe(**RECIPE).mergekit is None


@pytest.mark.parametrize("name", ["missing.yaml", "a\0b.yaml", "x" * 300])
def test_a_file_that_is_not_there_is_an_error_of_the_family(name, tmp_path):
    with pytest.raises(ConfigError):
        safemerge.load_study(Path(tmp_path) / name)
