"""Tasks of lm-evaluation-harness and choices through the command line and a Serve replica."""

import json

import pytest

from safemerge.testing.lm_eval_tasks import PICK, SAY, write_tasks

pytestmark = pytest.mark.ray


@pytest.fixture
def suites(tmp_path):
    tasks = write_tasks(tmp_path / "tasks", count=12)
    files = {"data_files": {"train": "/no/such.jsonl", "test": "/no/such.jsonl"}}
    (tasks / "gone.yaml").write_text(
        json.dumps({"task": "gone", "include": f"{PICK}.yaml", "dataset_kwargs": files}),
        encoding="utf-8",
    )
    ranges = {
        split: {"source": {"kind": "lm_eval", **range_}}
        for split, range_ in (("search", {"stop": 5}), ("report", {"start": 5}))
    }

    def harness(name, task, metric, **settings):
        told = {"task": task, "metrics": {metric: "maximize"}, "include_path": "tasks", **settings}
        return {"name": name, "lm_eval": told, "max_similarity": None, **ranges}

    words = [f"{i} apples" for i in range(10)]
    rows = [
        {"question": f"How many: {word}?", "options": [word, "two", "three"], "no": i % 3}
        for i, word in enumerate(words)
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "file", "path": "choices.jsonl"}
    data = {"prompt": "{question}", "label": "no"}
    choice = {
        "name": "word",
        "task": {"kind": "choice", "endings": "{options}", "normalize": "characters"},
        "max_similarity": None,
        "search": {**data, "source": {**source, "stop": 4}},
        "report": {**data, "source": {**source, "start": 4}},
    }
    return {
        "mood": harness("mood", PICK, "acc"),
        "said": harness("said", SAY, "exact_match", filter="first"),
        "gone": harness("gone", "gone", "acc"),
        "word": choice,
    }


def objective(metric):
    return {"metric": metric, "direction": "maximize", "reference": 0.0}


def test_a_replica_scores_choices_and_tasks_of_the_harness(
    suites, study_document, write_study, safemerge, tmp_path
):
    asked = [suites[name] for name in ("mood", "said", "word")]
    metrics = ("mood.acc", "said.exact_match", "word.accuracy")
    study = write_study(suites=asked, objectives=[objective(metric) for metric in metrics])
    base = study_document["base"]["path"]
    done = safemerge("evaluate", study, "--model", base, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found = {name: result["metrics"][name] for name in metrics}
    assert [found[name]["n"] for name in metrics] == [7, 7, 6]
    assert all(item["low"] <= item["value"] <= item["high"] for item in found.values())
    assert [len(result["scores"][name]) for name in ("mood", "said", "word")] == [7, 7, 6]
    assert result["broken"] is None


def test_a_task_without_its_data_is_one_error_before_the_search(suites, write_study, safemerge):
    study = write_study(suites=[suites["gone"]], objectives=[objective("gone.acc")])
    done = safemerge("search", study)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "suite 'gone': the data of lm_eval task 'gone' cannot be loaded; got: " in line
    assert "/no/such.jsonl" in line
