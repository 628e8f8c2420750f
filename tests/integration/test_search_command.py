"""The main job on pico models: real Ray Tune, Serve and Optuna, the reference engine."""

import json
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from safemerge.config.recipe import MergeRecipe
from safemerge.store import RunStore
from safemerge.testing import pico
from tests.integration.driving import (
    marked,
    own_processes,
    own_workers,
    run_safemerge,
    wait_until,
    write_study_to,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def searched(study_document, tmp_path_factory):
    """A folder with a study and its finished run, and what the search printed.

    It starts from a recipe by layers, of which its space by model knows the mean alone.
    """
    folder = tmp_path_factory.mktemp("searched")
    study = write_study_to(folder, study_document)
    recipe = {key: study_document[key] for key in ("base", "experts")} | {
        "method": {
            "name": "task_arithmetic",
            "weights": {"math": {"first": 0.2, "default": 0.8}, "safety": 0.25},
        },
        "layer_groups": [{"name": "first", "layers": "0"}],
    }
    (folder / "found.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with counted_clients(marked("whole-run")) as clients:
        done = run_safemerge(
            *(folder, "search", study, "--start", "found.yaml"),
            SAFEMERGE_TEST_MARK=marked("whole-run"),
            SAFEMERGE_CACHE=str(folder / "cache"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, done.stderr, clients


@contextmanager
def counted_clients(mark):
    """Collect, in a block, the processes of Tune's trials and whether each has torch in memory."""
    clients, ended = {}, threading.Event()

    def look():
        while not ended.wait(0.3):
            for pid in own_processes(mark):
                with suppress(OSError):
                    if b"Trainable" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        clients[pid] = "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield clients
    finally:
        ended.set()
        looking.join()


def test_search_writes_a_whole_run_folder_and_leaves_no_process(searched):
    folder, told, complaints, clients = searched
    run = folder / "results" / "pico"
    for name in ("study.json", "trials.jsonl", "front.json", "report.html", "study.db"):
        assert (run / name).is_file(), name
    records = RunStore.open(run).trials()
    assert [record.state for record in records] == ["COMPLETE"] * len(records)
    labels = [record.label for record in records if record.role == "reference"]
    assert set(labels) == {"base", "math", "safety", "mean", "start found"}
    assert sum(record.role == "sampled" for record in records) == 4
    (nearest,) = [record for record in records if record.start == "found"]
    assert nearest.number == 5
    assert nearest.params == {
        "method.weights.math": pytest.approx(0.5),
        "method.weights.safety": 0.25,
    }
    assert "start 'found': no space expresses it, so it is a reference point as it is" in told
    front = RunStore.open(run).read_front()
    assert front is not None
    assert {point.report.split for point in front.points} == {"report"}
    for point in front.points:
        assert MergeRecipe.model_validate(point.recipe).digest == point.candidate
        assert point.report.candidate == point.search.candidate == point.candidate
        assert (run / "recipes" / f"{point.number}.yaml").is_file()
    assert "next: safemerge export" in told
    assert "(raylet)" not in told + complaints
    # One candidate at the replica, one that waits for it: the same two clients for all trials.
    assert 1 <= len(clients) <= 2
    assert not any(clients.values())
    wait_until(lambda: not own_processes(marked("whole-run")), within_s=60)


def test_a_point_of_the_front_is_exported(searched, safemerge, tmp_path):
    run = searched[0] / "results" / "pico"
    picked = RunStore.open(run).read_front().points[0]
    exported = tmp_path / "exported"

    done = safemerge("export", run, "--pick", picked.number, exported)

    assert done.returncode == 0, done.stderr
    assert (exported / "model.safetensors").is_file()
    assert picked.candidate in (exported / "README.md").read_text(encoding="utf-8")


def test_a_point_is_attributed_by_the_runs_own_evaluator(searched, safemerge):
    folder, *_ = searched
    run = folder / "results" / "pico"
    only = ("--only", "parents", "--only", "shapley")
    done = safemerge("attribute", run, *only)
    assert done.returncode == 0, done.stdout + done.stderr
    number = json.loads((run / "front.json").read_text())["knee"]
    found = json.loads((run / "attribution" / f"{number}.json").read_text())
    merges = (run / "attribution.jsonl").read_text().splitlines()
    assert {json.loads(line)["result"]["split"] for line in merges} <= {"search"}
    # The knee may be a parent: its sets of parents are then the base, which is a reference point.
    assert len(merges) <= 2 ** len(found["parents"]) - 1
    assert all(item["n"] == 8 for item in found["effects"])
    for metric in ("reviews.accuracy", "questions.accuracy"):
        values = [
            item["value"]
            for item in found["effects"]
            if (item["kind"], item["metric"]) == ("shapley", metric)
        ]
        assert len(values) == len(found["parents"])
    again = safemerge("attribute", run, *only, "--dry-run")
    assert "would evaluate 0 merges" in again.stdout
    assert 'id="why"' in (run / "report.html").read_text(encoding="utf-8")


def test_a_study_that_changed_is_not_resumed(searched, study_document):
    folder = searched[0]
    objectives = study_document["objectives"]
    changed = [objectives[0] | {"reference": 0.1}, *objectives[1:]]
    study = write_study_to(folder, study_document | {"objectives": changed})

    done = run_safemerge(folder, "search", study, "--resume")

    assert done.returncode == 2
    assert "digest of the stored config differs" in done.stderr
    assert "objectives" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_search_with_a_rung_resumes_without_losing_a_finished_trial(
    start_safemerge, safemerge, write_study, tmp_path
):
    rows = [{"question": f"pair number {i}", "answer": ("yes", "no")[i % 2]} for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    pairs = {
        "source": {"kind": "file", "path": "pairs.jsonl"},
        "prompt": "{question}",
        "response": "{answer}",
    }
    # Twice the same pairs: one order of all candidates. Their differences are small and random.
    rung = {"sets": {"one": [pairs], "other": [pairs]}, "level": 0.99, "audit": 0.0}
    sampler = {"name": "random", "startup": 1}
    study = write_study(num_trials=8, rung=rung, sampler=sampler)
    trials = tmp_path / "results" / "pico" / "trials.jsonl"
    driver = start_safemerge("search", study, SAFEMERGE_TEST_MARK=marked("killed-driver"))

    def on_its_way():
        assert driver.poll() is None, "the driver ended before it could be killed"
        return trials.exists() and len(trials.read_text().splitlines()) >= 6

    wait_until(on_its_way, within_s=240)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = [json.loads(line) for line in trials.read_text().splitlines() if line.endswith("}")]
    assert len(before) >= 6
    wait_until(lambda: not own_workers(marked("killed-driver")), within_s=180)

    done = safemerge("search", study, "--resume")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(before)} finished trials kept" in done.stdout
    after = [json.loads(line) for line in trials.read_text().splitlines()]
    assert after[: len(before)] == before
    sampled = [t for t in after if t["role"] == "sampled" and t["state"] != "FAIL"]
    assert len(sampled) == 8
    best = min(_loss(t) for t in after if t["state"] == "COMPLETE")
    pruned = [t for t in sampled if t["state"] == "PRUNED"]
    assert pruned
    assert all(_loss(t) > best and t["result"] is None for t in pruned)
    assert all("rung" in t for t in after if t["state"] == "COMPLETE")
    for point in RunStore.open(tmp_path / "results" / "pico").read_front().points:
        (seen, _) = MergeRecipe.model_validate(point.recipe).seen
        assert seen.data.source.path == str(tmp_path / "pairs.jsonl")
    assert "PRUNED: rung: " in done.stdout + (tmp_path / "told.txt").read_text()
    assert len({t["number"] for t in after}) == len(after)
    interrupted = [t for t in after if t["state"] == "FAIL"]
    assert all("interrupted" in t["reason"] for t in interrupted)


def _loss(trial):
    (rows,) = trial["rung"]["losses"]["one"]
    return sum(rows) / len(rows)


def test_an_expert_with_nan_weights_is_refused_before_anything_starts(
    safemerge, write_study, study_document, tmp_path, tiny_base
):
    broken = pico.pico_expert(tiny_base, tmp_path / "broken", seed=9)
    tensors = load_file(broken / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    experts = [{"name": "math", "path": str(broken)}, study_document["experts"][1]]

    done = safemerge("search", write_study(experts=experts))

    assert done.returncode == 2
    assert name in done.stderr
    assert "finite" in done.stderr
    assert "evaluator" not in done.stdout
    assert "Traceback" not in done.stderr
