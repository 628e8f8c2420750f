"""A study that varies lambda of a hardened expert: trained once, then searched and reported."""

import json

import pytest
import yaml

from safemerge.store import RunStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

LAMBDA = "experts.hardened.booster.lambda"


@pytest.fixture
def stage(tiny_base, tmp_path):
    """The file of a hardening stage of two steps."""

    def rows(name, answer):
        path = tmp_path / f"{name}.jsonl"
        told = [{"prompt": f"{name} request {number}"} for number in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
        return {"source": {"kind": "file", "path": str(path)}, "response": answer}

    document = {
        "kind": "align",
        "name": "hardened",
        "base": {"name": "base", "path": str(tiny_base)},
        "method": "booster",
        "data": [rows("unsafe", "I cannot help with that."), rows("benign", "Here you are.")],
        "harmful": {"data": [rows("other", "Sure: [stand-in]")], "batch_size": 4},
        "steps": 2,
        "batch_size": 4,
        "max_tokens": 128,
        "packing": True,
        "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]},
        "workers": {"cpus_per_worker": 0.5},
    }
    path = tmp_path / "hardened.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_lambda_is_trained_once_a_value_and_searched_beside_the_merge(
    safemerge, write_study, study_document, stage, tmp_path
):
    space = {
        "name": "ta",
        "method": {"name": "task_arithmetic", "weights": {"hardened": 0.5, "math": 0.5}},
        "vary": {LAMBDA: {"choices": [5, 50]}, "method.weights.hardened": {"low": 0.5, "high": 1}},
    }
    math = next(item for item in study_document["experts"] if item["name"] == "math")
    experts = [{"name": "hardened", "align": str(stage)}, math]
    path = write_study(name="lambda", experts=experts, spaces=[space], num_trials=4)
    cache = {"SAFEMERGE_CACHE": str(tmp_path / "cache")}

    done = safemerge("search", path, **cache)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("training 2 steps") == 2
    assert "hardened[booster.lambda=5]: the same as hardened" in done.stdout
    assert "hardened[booster.lambda=50]: training" in done.stdout
    store = RunStore.open(tmp_path / "results" / "lambda")
    records = sorted(store.trials(), key=lambda record: record.number)
    assert {record.state for record in records} == {"COMPLETE"}
    references = [record.label for record in records if record.role == "reference"]
    assert references == ["base", "hardened", "math", "mean", "hardened[booster.lambda=50]"]
    digests = {}
    for record in records:
        if record.role == "sampled":
            (hardened,) = (e for e in record.recipe["experts"] if e["name"] == "hardened")
            digests.setdefault(record.params[LAMBDA], set()).add(hardened["digest"])
    assert all(len(found) == 1 for found in digests.values())

    again = safemerge("search", path, "--resume", **cache)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "training 2 steps" not in again.stdout
    assert again.stdout.count("cached") == 3
