"""A study that varies lambda of a hardened expert: trained once, then searched and reported."""

import json
import shutil

import pytest
import yaml

from safemerge.api.search import run_study
from safemerge.commands.console import Console
from safemerge.config.study import StudySpec
from safemerge.distributed.cluster import ray_cluster
from safemerge.store import RunStore

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    # Ray Train's own, where the search is driven from this process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

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


def lambda_study(study_document, stage, **changes):
    space = {
        "name": "ta",
        "method": {"name": "task_arithmetic", "weights": {"hardened": 0.5, "math": 0.5}},
        "vary": {LAMBDA: {"choices": [5, 50]}, "method.weights.hardened": {"low": 0.5, "high": 1}},
    }
    math = next(item for item in study_document["experts"] if item["name"] == "math")
    experts = [{"name": "hardened", "align": str(stage)}, math]
    own = {"name": "lambda", "experts": experts, "spaces": [space], "num_trials": 4}
    return {**study_document, **own, **changes}


def hardened_digests(records):
    """Fingerprints of the hardened expert by lambda, among sampled recipes."""
    digests = {}
    for record in records:
        if record.role == "sampled":
            (hardened,) = (e for e in record.recipe["experts"] if e["name"] == "hardened")
            digests.setdefault(record.params[LAMBDA], set()).add(hardened["digest"])
    return digests


def test_training_and_evaluation_take_turns_in_a_single_slot(
    study_document, stage, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SAFEMERGE_CACHE", str(tmp_path / "cache"))
    document = yaml.safe_load(stage.read_text(encoding="utf-8"))
    document["workers"] = {"cpus_per_worker": 1}
    stage.write_text(yaml.safe_dump(document), encoding="utf-8")
    evaluator = {**study_document["evaluator"], "cpus_per_replica": 1}
    spec = StudySpec.model_validate(lambda_study(study_document, stage, evaluator=evaluator))

    with ray_cluster(num_cpus=1):
        run_study(spec, tmp_path / "run", Console(), again="again")

    told = capsys.readouterr().out
    assert "(the evaluator pauses for it; at most 1 at once)" in told
    assert told.count("evaluator paused: training") == 1
    assert told.count("evaluator is up") == 2
    records = RunStore.open(tmp_path / "run").trials()
    assert {record.state for record in records} == {"COMPLETE"}
    assert sum(record.role == "sampled" for record in records) == 4
    assert set(hardened_digests(records)) == {5, 50}


def test_values_are_trained_once_beside_the_search_and_what_reaches_the_front_in_between_too(
    safemerge, write_study, study_document, stage, tmp_path
):
    line = {"low": 5, "high": 50, "log": True, "knots": [5, 50], "between": "interpolate"}
    study = lambda_study(study_document, stage, num_trials=2)
    study["spaces"][0]["vary"][LAMBDA] = line
    path = write_study(**study)
    cache = {"SAFEMERGE_CACHE": str(tmp_path / "cache")}

    done = safemerge("search", path, **cache)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "still to be trained: 1 of 2 variants" in done.stdout
    assert "(beside the evaluator; at most" in done.stdout
    assert done.stdout.index("searching") < done.stdout.index("hardened[booster.lambda=50]: tr")
    folder = tmp_path / "results" / "lambda"
    records = sorted(RunStore.open(folder).trials(), key=lambda record: record.number)
    assert {record.state for record in records} == {"COMPLETE"}
    references = [record.label for record in records if record.role == "reference"]
    assert references == ["base", "hardened", "math", "mean", "hardened[booster.lambda=50]"]
    estimates = {record.number: record for record in records if record.interpolated}
    assert len(estimates) == 2
    exact = [record for record in records if record.exact_of is not None]
    for record in exact:
        (hardened,) = (e for e in record.recipe["experts"] if e["name"] == "hardened")
        assert hardened["digest"] is not None
        assert record.params == estimates[record.exact_of].params
    # The ends, and one training for each value that came near the front.
    values = {record.params[LAMBDA] for record in exact}
    assert done.stdout.count("training 2 steps") == 2 + len(values)
    front = RunStore.open(folder).read_front()
    experts = [expert for point in front.points for expert in point.recipe["experts"]]
    assert all(expert.get("between") is None for expert in experts)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"own values and scored again: {len(exact)}." in page

    (end,) = (record for record in records if record.label == references[-1])
    shutil.rmtree(next(e["path"] for e in end.recipe["experts"] if e["name"] == "hardened"))
    again = safemerge("search", path, "--resume", **cache)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("training 2 steps") == 1, "of all models, what is gone is trained"
    assert "still to be trained" not in again.stdout
