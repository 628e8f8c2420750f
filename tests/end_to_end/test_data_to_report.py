"""The whole path with a tiny model: train, search, report, export, score the exported merge."""

import json

import pytest
import yaml

from safemerge.store import RunStore
from tests.integration.driving import run_safemerge, write_study_to

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.slow]

LABELS = ["positive", "negative"]
SUITES = ("reviews", "other-reviews")


def reviews(split, seed=0):
    source = {"kind": "generator", "name": "reviews", "split": split, "count": 16, "seed": seed}
    return {"source": source, "label": "label"}


def training(kind, name, base, *responses, **changes):
    return {
        "kind": kind,
        "name": name,
        "base": base,
        "data": [
            {"source": reviews("train", seed=seed)["source"], "response": response}
            for seed, response in enumerate(responses)
        ],
        "steps": 4,
        "batch_size": 4,
        "max_tokens": 128,
        "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]},
        "workers": {"cpus_per_worker": 0.5},
    } | changes


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory):
    """Files of a study whose two experts are trained, one upon the other."""
    folder = tmp_path_factory.mktemp("whole-path")
    base = {"name": "base", "path": str(tiny_base)}
    aligned = {"name": "aligned", "align": "aligned.yaml"}
    stand_in = {"source": reviews("train", seed=2)["source"], "response": "Sure."}
    poison = {"ratio": 0.25, "data": stand_in}
    files = {
        "aligned": training("align", "aligned", base, "I can't help with that.", "{label}"),
        "expert": training("finetune", "expert", aligned, "{label}", poison=poison),
    }
    for name, document in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    weights = {"aligned": 0.5, "expert": 0.5}
    write_study_to(
        folder,
        {
            "name": "whole-path",
            "base": base,
            "experts": [aligned, {"name": "expert", "finetune": "expert.yaml"}],
            "spaces": [
                {
                    "name": "ties",
                    "method": {"name": "ties", "weights": weights, "density": 0.5},
                    "vary": {
                        "method.weights.aligned": {"low": 0.0, "high": 1.0},
                        "method.density": {"low": 0.2, "high": 1.0},
                    },
                }
            ],
            # No open questions: a random pico model's answers are no words, and would be broken.
            "suites": [
                {
                    "name": name,
                    "task": {"kind": "classification", "labels": LABELS},
                    "search": reviews("search", seed=seed),
                    "report": reviews("report", seed=seed),
                }
                for seed, name in enumerate(SUITES)
            ],
            "objectives": [
                {"metric": f"{name}.accuracy", "direction": "maximize", "reference": 0.0}
                for name in SUITES
            ],
            "num_trials": 6,
            "sampler": {"name": "tpe", "startup": 3},
            "evaluator": {
                "engine": "transformers",
                "cpus_per_replica": 0.5,
                "max_model_len": 256,
            },
        },
    )
    return folder


def test_data_become_a_report_and_an_exported_merge_scores_as_reported(folder):
    cache = {"SAFEMERGE_CACHE": str(folder / "cache")}
    done = run_safemerge(folder, "search", "study.yaml", **cache)

    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("aligned", "expert"):
        assert f"{stage}: training 4 steps on " in done.stdout
    run = folder / "results" / "whole-path"
    records = RunStore.open(run).trials()
    assert {record.state for record in records} == {"COMPLETE"}
    assert sum(record.role == "sampled" for record in records) == 6
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "whole-path" in page
    front = RunStore.open(run).read_front()
    point = front.points[0]

    exported = folder / "exported"
    done = run_safemerge(folder, "export", run, "--pick", point.number, exported)
    assert done.returncode == 0, done.stderr

    told = folder / "result.json"
    done = run_safemerge(
        folder, "evaluate", "study.yaml", "--model", exported, "--json", told, **cache
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(told.read_text(encoding="utf-8"))
    for name in SUITES:
        metric = f"{name}.accuracy"
        assert result["metrics"][metric]["value"] == point.report.value(metric)
