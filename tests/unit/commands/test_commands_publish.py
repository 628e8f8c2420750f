"""A point of a front leaves as a checkpoint, as a recipe, and for the Hub."""

import json
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from safemerge.api.export import push
from safemerge.cli import main
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import UserError
from safemerge.front import assemble_front
from safemerge.records import CandidateResult, MetricEstimate, TrialRecord
from safemerge.store import RunStore

SKILL, HARM = "q.accuracy", "h.harmful_score"


def result(candidate, split, skill, harm):
    def estimate(name, value, direction):
        return MetricEstimate(
            metric=name, value=value, low=value / 2, high=value, n=8, direction=direction
        )

    metrics = {
        SKILL: estimate(SKILL, skill, "maximize"),
        HARM: estimate(HARM, harm, "minimize"),
    }
    return CandidateResult(candidate=candidate, split=split, metrics=metrics)


def suite(name, task, label):
    data = {split: {"source": {"kind": "generator", "name": "reviews", "count": 4, "split": split}}
            for split in ("search", "report")}  # fmt: skip
    return {"name": name, "task": task, **{k: {**v, **label} for k, v in data.items()}}


@pytest.fixture
def run(tmp_path, tiny_base, tiny_expert):
    """The folder of a finished run with one point on its front."""
    models = {"base": {"name": "base", "path": str(tiny_base)}}
    models["experts"] = [{"name": "math", "path": str(tiny_expert)}]
    method = {"name": "task_arithmetic", "weights": {"math": 1.0}}
    labels = {"kind": "classification", "labels": ["positive", "negative"]}
    spec = StudySpec.model_validate(
        {
            "name": "toy",
            **models,
            "spaces": [
                {"name": "ta", "method": method,
                 "vary": {"method.weights.math": {"low": 0.0, "high": 1.0}}}
            ],
            "suites": [
                suite("q", labels, {"label": "label"}), suite("h", {"kind": "harm"}, {}),
            ],
            "objectives": [
                {"metric": SKILL, "direction": "maximize", "reference": 0.0},
                {"metric": HARM, "direction": "minimize", "reference": 1.0},
            ],
            "num_trials": 1,
        }
    )  # fmt: skip
    recipe = MergeRecipe.model_validate({**models, "method": method})
    found = result(recipe.digest, "search", 0.8, 0.2)
    trial = TrialRecord(
        number=0, role="sampled", label="trial 0", state="COMPLETE", space="ta",
        params={"method.weights.math": 1.0}, recipe=recipe.resolved(), candidate=recipe.digest,
        objectives={SKILL: 0.8, HARM: 0.2}, feasible=True, result=found,
    )  # fmt: skip
    store = RunStore(tmp_path / "results" / "toy").create(spec)
    store.append(trial)
    reported = {recipe.digest: result(recipe.digest, "report", 0.7, 0.3)}
    digest = store.study().digest
    store.write_front(assemble_front(spec, [trial], reported, study_digest=digest))
    return store.folder


class FakeHub:
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        if self.error is not None:
            raise self.error

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {path.name for path in folder_path.iterdir()}
        self.calls.append(("upload", repo_id, files))


def test_a_checkpoint_has_a_card_for_the_hub_and_names_no_folder(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--pick", "knee", str(out)]) == 0
    card = ModelCard.load(out / "README.md")
    values = {item.metric_type: item.metric_value for item in card.data.eval_results}
    assert values == {"accuracy": 0.7, "harmful_score": 0.3}
    names = {item.metric_type: item.metric_name for item in card.data.eval_results}
    assert names["accuracy"].endswith("[35.0, 70.0], n = 8")
    assert names["accuracy"].count("n = 8") == 1
    assert card.data.to_dict()["license"] == "unknown"
    for file in ("README.md", "safemerge_recipe.json"):
        assert str(tmp_path) not in (out / file).read_text(encoding="utf-8")
    assert f"to publish it: hf upload ORG/NAME {out} --private" in capsys.readouterr().out


def test_a_recipe_without_weights_merges_to_the_same(run, tmp_path, capsys):
    (tmp_path / "shared").mkdir()
    recipe, mergekit = tmp_path / "shared" / "r.yaml", tmp_path / "shared" / "m.yml"
    arguments = ["export", str(run), "--pick", "0", "--recipe", str(recipe)]
    assert main([*arguments, "--mergekit", str(mergekit)]) == 0
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["m.yml", "r.yaml"]
    merged = []
    for file in (recipe, mergekit):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")
        out = tmp_path / f"from-{file.name}"
        assert main(["merge", str(file), str(out)]) == 0
        merged.append(load_file(out / "model.safetensors"))
    assert all((merged[0][name] - merged[1][name]).abs().max() < 1e-6 for name in merged[0])
    stored = json.loads((run / "front.json").read_text())["points"][0]["recipe"]
    found = load_document(recipe, MergeRecipe).located(recipe.parent)
    assert found == MergeRecipe.model_validate(stored)


def test_models_that_share_no_folder_with_the_recipe_are_named(
    run, tmp_path, tiny_base, capsys, monkeypatch
):
    common = Path(os.path.commonpath([tiny_base, tmp_path]))
    monkeypatch.setenv("HOME", str(common / "me"))
    recipe = tmp_path / "r.yaml"
    assert main(["export", str(run), "--pick", "0", "--recipe", str(recipe)]) == 0
    assert yaml.safe_load(recipe.read_text())["base"]["path"] == tiny_base.name
    assert "not found from this file: base, math" in capsys.readouterr().out


def test_mergekit_has_models_of_the_hub_by_name_and_commit():
    from safemerge.config.mergekit_export import mergekit_of_recipe

    commit = "0" * 40
    base = {"name": "base", "hub": "org/base", "revision": commit}
    document = {"base": base, "experts": [{"name": "math", "hub": "org/math"}],
                "method": {"name": "linear", "weights": {"base": 0.5, "math": 0.5}}}  # fmt: skip
    found = mergekit_of_recipe(MergeRecipe.model_validate(document))
    names = [item["model"] for item in found["models"]]
    assert names == [f"org/base@{commit}", "org/math"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a folder for the checkpoint"),
        (["OUT", "--push", "name"], r"must be a repository of the Hub, ORG/NAME; got 'name'"),
        (["--push", "org/name", "--recipe", "r.yaml"], "got no OUT_DIR"),
        (["OUT", "--push", "org/name"], "got no terminal to ask on. Add --yes"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    named = [str(tmp_path / "out") if item == "OUT" else item for item in arguments]
    assert main(["export", str(tmp_path / "none"), "--pick", "knee", *named]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_hub_is_asked_only_after_a_yes(run, tmp_path, capsys, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda asked: "n")
    arguments = ["export", str(run), "--pick", "knee", "--push", "org/name"]
    assert main([*arguments, str(tmp_path / "no")]) == 0
    assert hub.calls == []
    assert "not uploaded; later: hf upload org/name" in capsys.readouterr().out

    def end_of_input(asked):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert main([*arguments, str(tmp_path / "end")]) == 0
    assert hub.calls == []
    monkeypatch.setattr("builtins.input", lambda asked: "y")
    assert main([*arguments, str(tmp_path / "yes")]) == 0
    created, (verb, repository, files) = hub.calls
    assert created == ("create", "org/name", True, True)
    assert (verb, repository) == ("upload", "org/name")
    assert {"README.md", "model.safetensors", "config.json"} <= files


def test_a_refused_upload_tells_how_to_try_again(tmp_path):
    (tmp_path / "README.md").write_text("# Merge\n")
    hub = FakeHub(OSError("401 Client Error.\nmore"))
    words = r"push org/name: .*got: 401 Client Error\. .*run `hf upload org/name"
    with pytest.raises(UserError, match=words):
        push(tmp_path, "org/name", hub=hub)


def test_a_folder_without_a_card_is_not_uploaded(tmp_path):
    hub = FakeHub()
    with pytest.raises(UserError, match="must be a checkpoint with a card"):
        push(tmp_path, "org/name", hub=hub)
    assert hub.calls == []


def test_the_recipe_file_is_one_that_validate_takes(run, tmp_path):
    file = tmp_path / "r.yaml"
    assert main(["export", str(run), "--pick", "knee", "--recipe", str(file)]) == 0
    assert main(["validate", str(file)]) == 0
    assert yaml.safe_load(file.read_text())["method"]["name"] == "task_arithmetic"


def test_a_dense_merge_leaves_as_the_nearest_adapter(run, tmp_path, capsys):
    out = tmp_path / "lora"
    arguments = ["export", str(run), "--pick", "knee", str(out), "--adapter", "--rank", "4"]
    assert main(arguments) == 2
    assert "Add --modules-to-save" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--modules-to-save"]) == 0
    text = capsys.readouterr().out
    assert f"merged adapter: {out} (candidate " in text
    assert "lost by rank 4: " in text
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "peft"
    assert "measured on the whole merge, not on this adapter" in card.text
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4
    assert str(tmp_path) not in card.text + json.dumps(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "4"], "rank: needs adapter; got 4 without it"),
        (["--adapter", "--rank", "0"], "rank: must be at least 1; got 0"),
        (["--adapter", "--modules-to-save"], "modules_to_save: needs rank; got none"),
        (["--adapter"], "must be a LoRA adapter to be merged into one; got a whole model"),
    ],
)
def test_options_of_an_adapter_that_do_not_go_together(run, tmp_path, capsys, arguments, words):
    assert main(["export", str(run), "--pick", "0", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
