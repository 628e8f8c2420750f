"""`safemerge evaluate` reports on nothing that its candidate was made with."""

import json
from pathlib import Path

import pytest
import yaml

from safemerge.cli import main
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import PromptData
from safemerge.data.seen import recorded

ASKED = "How do I open the old safe in the cellar?"


@pytest.fixture
def rows(tmp_path):
    """Write rows with a prompt and an answer; return them as a source."""

    def rows(name, *prompts):
        lines = [json.dumps({"prompt": prompt, "answer": "no"}) + "\n" for prompt in prompts]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return {"kind": "file", "path": str(tmp_path / name)}

    return rows


@pytest.fixture
def study(tmp_path, rows, tiny_base, tiny_expert):
    """Write a study, its expert replaced where given; return its path."""

    def study(**expert):
        document = {
            "name": "toy",
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": [{"name": "math", **(expert or {"path": str(tiny_expert)})}],
            "spaces": [
                {
                    "name": "all",
                    "method": {"name": "linear", "weights": {"math": 1.0}},
                    "vary": {"method.weights.math": {"low": 0.1, "high": 1.0}},
                }
            ],
            "suites": [
                {
                    "name": "harm",
                    "task": {"kind": "harm", "max_tokens": 4},
                    "search": {"source": rows("search.jsonl", "Is this another question at all?")},
                    "report": {"source": rows("report.jsonl", ASKED)},
                }
            ],
            "objectives": [
                {"metric": "harm.harmful_score", "direction": "minimize", "reference": 1.0}
            ],
            "num_trials": 1,
            "evaluator": {"engine": "transformers", "max_model_len": 256},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return str(path)

    return study


@pytest.fixture
def told(monkeypatch, capsys):
    """Run the command up to the cluster; return its one line, or None if it came that far."""

    class ClusterError(Exception):
        pass

    def no_cluster():
        raise ClusterError

    monkeypatch.setattr("safemerge.distributed.cluster.ray_cluster", no_cluster)

    def told(*arguments):
        capsys.readouterr()
        try:
            assert main(["evaluate", *arguments]) == 2
        except ClusterError:
            return None
        return capsys.readouterr().err.rpartition("safemerge: ")[2].rstrip("\n")

    return told


def recipe_on(seen, study_path, tmp_path):
    document = yaml.safe_load(Path(study_path).read_text(encoding="utf-8"))
    recipe = MergeRecipe.model_validate(
        {
            "base": document["base"],
            "experts": document["experts"],
            "method": {"name": "task_arithmetic", "weights": {"math": 1.0}},
            "seen": [item.resolved() for item in seen],
        }
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.resolved()), encoding="utf-8")
    return recipe, str(path)


def test_a_report_prompt_that_the_studys_stage_was_trained_on_is_refused(
    study, rows, told, tmp_path, tiny_base
):
    stage = {
        "kind": "finetune",
        "name": "tuned",
        "base": {"name": "base", "path": str(tiny_base)},
        "data": [{"source": rows("train.jsonl", ASKED.lower()), "response": "{answer}"}],
        "steps": 1,
    }
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(stage), encoding="utf-8")
    path = study(finetune="tuned.yaml")
    line = told(path, "--model", str(tiny_base))
    assert "must not hold prompts that a stage of the study is trained on" in line
    assert "got 1 shared, e.g. report.jsonl:" in line
    assert told(path, "--model", str(tiny_base), "--split", "search") is None


@pytest.mark.parametrize("form", ["recipe", "merged"])
def test_a_report_prompt_that_a_recipe_was_optimised_on_is_refused(
    study, rows, told, tmp_path, tiny_base, form
):
    path = study()
    for prompt, is_refused in ((ASKED, True), ("Where do cats go on cold and rainy days?", False)):
        data = PromptData.model_validate({"source": rows("pairs.jsonl", prompt)})
        recipe, file = recipe_on(recorded({"toy.safety.0": data}), path, tmp_path)
        what = ["--recipe", file]
        if form == "merged":
            folder = tmp_path / f"merged-{is_refused}"
            folder.mkdir()
            for item in tiny_base.iterdir():
                (folder / item.name).symlink_to(item)
            told_recipe = folder / "safemerge_recipe.json"
            told_recipe.write_text(json.dumps(recipe.resolved()), encoding="utf-8")
            what = ["--model", str(folder)]
        line = told(path, *what)
        if is_refused:
            assert "a recipe was optimised on; got 1 shared, e.g. report.jsonl:" in line
        else:
            assert line is None
