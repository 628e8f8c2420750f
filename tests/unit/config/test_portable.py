from pathlib import Path

import pytest

from safemerge.config.portable import portable_path, portable_recipe
from safemerge.config.recipe import MergeRecipe

COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/srv/models/base", "../models/base"),
        ("/srv/out/base", "base"),
        ("/srv/out", "."),
        ("/data/models/base", "base"),
        ("org/base", "org/base"),
    ],
)
def test_a_path_names_nothing_above_the_common_folder(path, told):
    assert portable_path(path, Path("/srv/out")) == told


def test_homes_of_others_are_not_named():
    assert portable_path("/home/ann/models/base", Path("/home/bob/out")) == "base"
    assert portable_path("/home/bob/models/base", Path("/home/bob/out")) == "../models/base"


def recipe_of(base, *experts, **more):
    method = {"name": "task_arithmetic", "weights": {item["name"]: 1.0 for item in experts}}
    document = {"base": base, "experts": list(experts), "method": method, **more}
    return MergeRecipe.model_validate(document)


def test_a_recipe_read_from_its_folder_is_the_same():
    seen = {
        "name": "toy",
        "rows": "d",
        "data": {"source": {"kind": "file", "path": "/w/rows.csv"}},
    }
    recipe = recipe_of(
        {"name": "base", "path": "/w/base", "digest": "b" * 16},
        {"name": "one", "path": "/w/one", "on": {"name": "host", "path": "/w/host"}},
        {"name": "two", "align": "/w/stages/two.yaml"},
        seen=[seen],
    )
    found = portable_recipe(recipe, Path("/w/out"))
    assert "/w" not in found.model_dump_json()
    assert found.located(Path("/w/out")) == recipe


def test_a_model_of_the_hub_keeps_its_repository_and_commit():
    hub = {"name": "base", "hub": "org/base", "revision": COMMIT, "digest": "b" * 16}
    recipe = recipe_of(
        {**hub, "path": "/w/cache/base"}, {"name": "one", "path": "/w/one", "digest": "1"}
    )
    found = portable_recipe(recipe, Path("/w/out"))
    assert found.base.resolved().get("path") is None
    assert (found.base.hub, found.base.revision) == ("org/base", COMMIT)
    assert found.digest == recipe.digest
