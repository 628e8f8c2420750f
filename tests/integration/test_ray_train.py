"""Training stages on Ray Train with pico models: cached, resumable, the same for two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


STEPS = 30


@pytest.fixture
def write_stage(tiny_base, tmp_path):
    def write(**changes):
        document = {
            "kind": "finetune",
            "name": "expert",
            "base": {"name": "base", "path": str(tiny_base)},
            "data": [
                {
                    "source": {
                        "kind": "generator",
                        "name": "reviews",
                        "split": "train",
                        "count": 64,
                    },
                    "response": "{label}",
                }
            ],
            "steps": STEPS,
            "batch_size": 4,
            "max_tokens": 128,
            "checkpoint_every": 4,
            "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]},
            "workers": {"cpus_per_worker": 0.5},
        }
        path = tmp_path / "stage.yaml"
        path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
        return path

    return write


def checkpoint_of(tmp_path) -> Path:
    told = json.loads((tmp_path / "results" / "expert" / "checkpoint.json").read_text())
    return Path(told["path"])


@pytest.fixture(scope="module")
def straight_cache(tmp_path_factory):
    """Cache of the stage trained in one go; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("straight")


@pytest.fixture
def straight(safemerge, write_stage, tmp_path, straight_cache):
    """Weights of the stage trained in one go, and what the command printed."""
    done = safemerge("finetune", write_stage(), SAFEMERGE_CACHE=str(straight_cache))
    assert done.returncode == 0, done.stdout + done.stderr
    return load_file(checkpoint_of(tmp_path) / "model.safetensors"), done.stdout


def test_a_stage_is_trained_once_and_then_found_in_the_cache(
    safemerge, straight, write_stage, straight_cache, tiny_base
):
    trained, told = straight
    assert f"step {STEPS}/{STEPS}" in told
    base = load_file(tiny_base / "model.safetensors")
    moved = [name for name in base if not trained[name].equal(base[name])]
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)

    again = safemerge("finetune", write_stage(), SAFEMERGE_CACHE=str(straight_cache))
    assert again.returncode == 0
    assert "cached" in again.stdout


def test_a_killed_stage_resumes_to_the_same_weights_bit_for_bit(
    safemerge, straight, write_stage, tmp_path
):
    expected, _ = straight
    stage = write_stage()
    cache = tmp_path / "killed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "safemerge.cli", "finetune", str(stage)],
        cwd=tmp_path,
        env={**os.environ, "SAFEMERGE_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and steps_of(cache) < 7:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 7 <= steps_of(cache) < STEPS, "the stage must be killed on its way"
    time.sleep(8)  # Ray's processes of the killed driver end by themselves

    resumed = safemerge("finetune", stage, "--resume", SAFEMERGE_CACHE=str(cache))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    lines = next(cache.rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps.count(1) == 1, "resuming must not begin at the first step"
    got = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    assert all(got[name].equal(expected[name]) for name in expected)


def steps_of(cache) -> int:
    found = list(cache.rglob("metrics.jsonl"))
    return len(found[0].read_text(encoding="utf-8").splitlines()) if found else 0


def test_two_workers_train_what_one_worker_trains(safemerge, straight, write_stage, tmp_path):
    expected, _ = straight
    workers = {"num_workers": 2, "cpus_per_worker": 0.5}
    two = safemerge(
        "finetune", write_stage(workers=workers), SAFEMERGE_CACHE=str(tmp_path / "two")
    )
    assert two.returncode == 0, two.stdout + two.stderr
    got = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    for name, tensor in expected.items():
        assert (got[name] - tensor).abs().max() < 2e-4, name


def test_a_target_that_matches_no_module_is_the_users_error(safemerge, write_stage):
    done = safemerge("finetune", write_stage(lora={"targets": ["qq_proj"]}))
    assert done.returncode in (1, 2)
    assert "qq_proj" in done.stderr
    assert "q_proj" in done.stderr
    assert "Traceback" not in done.stderr
