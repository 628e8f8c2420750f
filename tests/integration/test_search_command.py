"""The main job on pico models: real Ray Tune, Serve and Optuna, the reference engine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from safemerge.config.recipe import MergeRecipe
from safemerge.store import RunStore
from tests.integration.conftest import own_processes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_search_writes_a_whole_run_folder_and_leaves_no_process(safemerge, write_study, tmp_path):
    study = write_study()
    done = safemerge("search", study, SAFEMERGE_TEST_MARK="whole-run")

    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "results" / "pico"
    for name in ("study.json", "trials.jsonl", "front.json", "report.html", "study.db"):
        assert (run / name).is_file(), name
    records = RunStore.open(run).trials()
    assert [record.state for record in records] == ["COMPLETE"] * len(records)
    labels = [record.label for record in records if record.role == "reference"]
    assert set(labels) == {"base", "math", "safety", "mean"}
    assert sum(record.role == "sampled" for record in records) == 4
    front = RunStore.open(run).read_front()
    assert front is not None
    assert {point.report.split for point in front.points} == {"report"}
    for point in front.points:
        assert MergeRecipe.model_validate(point.recipe).digest == point.candidate
        assert point.report.candidate == point.search.candidate == point.candidate
        assert (run / "recipes" / f"{point.number}.yaml").is_file()
    assert "next: safemerge export" in done.stdout
    deadline = time.monotonic() + 30
    while (left := own_processes("SAFEMERGE_TEST_MARK=whole-run")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []

    exported = tmp_path / "exported"
    picked = front.points[0]
    done = safemerge("export", run, "--pick", picked.number, exported)
    assert done.returncode == 0, done.stderr
    assert (exported / "model.safetensors").is_file()
    assert picked.candidate in (exported / "README.md").read_text(encoding="utf-8")

    done = safemerge("search", study)
    assert done.returncode == 2
    assert "holds a run of this study already" in done.stderr
    assert "--resume" in done.stderr


def test_a_killed_driver_resumes_without_losing_a_finished_trial(safemerge, write_study, tmp_path):
    study = write_study(num_trials=10)
    run = tmp_path / "results" / "pico"
    driver = subprocess.Popen(
        [sys.executable, "-m", "safemerge.cli", "search", str(study)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SAFEMERGE_TEST_MARK": "killed-driver"},
    )
    trials = run / "trials.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (
        trials.exists() and len(trials.read_text().splitlines()) >= 6
    ):
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = [json.loads(line) for line in trials.read_text().splitlines() if line.endswith("}")]
    assert len(before) >= 6
    deadline = time.monotonic() + 60
    while own_processes("SAFEMERGE_TEST_MARK=killed-driver") and time.monotonic() < deadline:
        time.sleep(0.5)

    done = safemerge("search", study, "--resume")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(before)} finished trials kept" in done.stdout
    after = [json.loads(line) for line in trials.read_text().splitlines()]
    assert after[: len(before)] == before
    sampled = [t for t in after if t["role"] == "sampled" and t["state"] == "COMPLETE"]
    assert len(sampled) == 10
    assert len({t["number"] for t in after}) == len(after)
    interrupted = [t for t in after if t["state"] == "FAIL"]
    assert all("interrupted" in t["reason"] for t in interrupted)


def test_a_study_that_changed_is_not_resumed(safemerge, write_study, study_document):
    study = write_study(num_trials=1)
    assert safemerge("search", study).returncode == 0
    changed = [study_document["objectives"][0] | {"reference": -1.0}]
    write_study(num_trials=1, objectives=changed + study_document["objectives"][1:])

    done = safemerge("search", study, "--resume")

    assert done.returncode in (1, 2)
    assert "objectives" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_expert_with_nan_weights_is_refused_before_anything_starts(
    safemerge, write_study, study_document, tmp_path, tiny_base
):
    from safetensors.torch import load_file, save_file

    from safemerge.testing import pico

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
