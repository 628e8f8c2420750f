import json

import pytest
import yaml
from huggingface_hub import ModelCard

from safemerge.config.checkpoint import CheckpointRef
from safemerge.lineage import by_restriction, front_matter, licence_lines, parent_cards


@pytest.fixture
def model(tmp_path):
    """Make a folder of a model with a README; no README without front matter."""

    def make(name, files=(), **front):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if front:
            text = yaml.safe_dump(front)
            (folder / "README.md").write_text(f"---\n{text}---\n\n# {name}\n")
        for file, document in dict(files).items():
            (folder / file).write_text(json.dumps(document))
        return CheckpointRef(name=name.rpartition("/")[2], path=str(folder))

    return make


def card_of(refs, **more):
    return ModelCard(front_matter(parent_cards(refs), **more) + "\n\n# Merge\n").data


def test_the_most_restrictive_licence_of_the_parents_is_the_merges(model):
    data = card_of([model("a", license="mit"), model("b", license="cc-by-nc-4.0")])
    assert data.license == "cc-by-nc-4.0"
    assert card_of([model("c", license="apache-2.0"), model("d", license="gpl-3.0")]).license == (
        "gpl-3.0"
    )


def test_a_licence_of_its_own_keeps_its_name_and_link(model):
    link = "https://example.org/terms"
    own = model("own", license="other", license_name="acme", license_link=link)
    data = card_of([model("a", license="apache-2.0"), own])
    assert (data.license, data.license_name, data.license_link) == ("other", "acme", link)


def test_an_unknown_licence_is_told_and_comes_first(model):
    refs = [model("a", license="cc-by-nc-4.0"), model("b")]
    assert card_of(refs).license == "unknown"
    assert [parent.name for parent in by_restriction(parent_cards(refs))] == ["b", "a"]
    lines = licence_lines(parent_cards(refs))
    assert lines[2].startswith("| b | not recorded | unknown |")
    assert "find it out" in lines[-1]


@pytest.mark.parametrize("licence", ["unknown", ["mit", "unknown"]])
def test_a_licence_that_is_said_to_be_unknown_is(model, licence):
    found = parent_cards([model("a", license=licence), model("b", license="mit")])
    assert card_of([model("c", license=licence)]).license == "unknown"
    assert "find it out" in licence_lines(found)[-1]


def test_of_a_parents_several_licences_the_most_restrictive_counts(model):
    assert card_of([model("a", license=["apache-2.0", "cc-by-nc-4.0"])]).license == "cc-by-nc-4.0"


def test_an_adapters_relative_base_on_disk_is_no_repository(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model("models/base", license="gpl-3.0")
    adapter = model("lora", {"adapter_config.json": {"base_model_name_or_path": "models/base"}})
    (found,) = parent_cards([adapter])
    assert (found.hub, found.license) == ((), "gpl-3.0")


def test_repositories_languages_and_data_are_the_parents(model):
    base = CheckpointRef(name="base", hub="org/base")
    tuned = model("t", license="mit", language=["en", "de"], datasets=["org/rows", "squad"],
                  base_model="org/base")  # fmt: skip
    data = card_of([base, tuned])
    assert data.base_model == ["org/base"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.language == ["en", "de"]
    assert data.datasets == ["org/rows", "squad"]


def test_a_snapshot_in_the_cache_of_the_hub_is_its_repository(model):
    ref = model("models--org--tuned/snapshots/abc", license="mit")
    (found,) = parent_cards([ref])
    assert (found.hub, found.is_published) == (("org/tuned",), True)


def test_a_trained_model_has_its_bases_licence_and_its_stages_data(model):
    base = model("base", license="llama3.1", language="en")
    sources = [{"source": {"kind": "hub", "dataset": "org/rows", "split": "train"}}]
    spec = {"base": base.resolved(), "data": sources}
    trained = model("trained", {"safemerge_training.json": {"spec": spec}})
    (found,) = parent_cards([trained])
    assert (found.license, found.languages, found.datasets) == ("llama3.1", ("en",), ("org/rows",))
    assert not found.is_published


def test_a_merge_has_the_licence_of_what_it_was_merged_from(model):
    parts = [model("a", license="mit"), model("b", license="gpl-3.0")]
    recipe = {"base": parts[0].resolved(), "experts": [parts[1].resolved()]}
    (found,) = parent_cards([model("merged", {"safemerge_recipe.json": recipe})])
    assert found.license == "gpl-3.0"


def test_an_adapter_derives_from_the_model_that_its_config_names(model):
    config = {"base_model_name_or_path": "org/base"}
    (found,) = parent_cards([model("lora", {"adapter_config.json": config})])
    assert (found.hub, found.license) == (("org/base",), None)


def test_the_packaged_model_is_known():
    (found,) = parent_cards([CheckpointRef(name="base", package="smollm2-135m-instruct")])
    assert (found.hub, found.license) == (("HuggingFaceTB/SmolLM2-135M-Instruct",), "apache-2.0")


@pytest.mark.parametrize("text", ["---\n[1\n---\n", "---\n- a\n---\n", "no front matter", ""])
def test_a_card_that_says_nothing_is_unknown(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert parent_cards([CheckpointRef(name="a", path=str(tmp_path))])[0].license is None


def test_a_folder_in_a_circle_of_recipes_ends(model, tmp_path):
    ref = CheckpointRef(name="a", path=str(tmp_path / "loop"))
    recipe = {"base": ref.resolved(), "experts": [ref.resolved()]}
    (found,) = parent_cards([model("loop", {"safemerge_recipe.json": recipe})])
    assert found.license is None
