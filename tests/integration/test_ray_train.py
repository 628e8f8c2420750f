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
            "steps": 6,
            "batch_size": 4,
            "max_tokens": 128,
            "checkpoint_every": 2,
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


def test_a_stage_is_trained_once_and_then_found_in_the_cache(
    safemerge, write_stage, tmp_path, tiny_base
):
    stage = write_stage()
    first = safemerge("finetune", stage)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "step 6/6" in first.stdout
    trained = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    base = load_file(tiny_base / "model.safetensors")
    moved = [name for name in base if not trained[name].equal(base[name])]
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)

    again = safemerge("finetune", stage)
    assert again.returncode == 0
    assert "cached" in again.stdout

    other = safemerge("finetune", write_stage(seed=1))
    assert "cached" not in other.stdout


def test_a_killed_stage_resumes_to_the_same_weights_bit_for_bit(safemerge, write_stage, tmp_path):
    stage = write_stage(steps=40, checkpoint_every=4)
    straight = tmp_path / "straight"
    assert safemerge("finetune", stage, SAFEMERGE_CACHE=str(straight)).returncode == 0
    expected = load_file(checkpoint_of(tmp_path) / "model.safetensors")

    cache = tmp_path / "killed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "safemerge.cli", "finetune", str(stage)],
        cwd=tmp_path,
        env={**os.environ, "SAFEMERGE_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list(cache.rglob("checkpoint_*/state.pt")):
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert list(cache.rglob("state.pt"))
    done_before = len(next(cache.rglob("metrics.jsonl")).read_text().splitlines())
    assert done_before < 40, "the stage ended before it could be killed"
    time.sleep(5)  # Ray's processes of the killed driver end by themselves

    resumed = safemerge("finetune", stage, "--resume", SAFEMERGE_CACHE=str(cache))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    steps = [
        json.loads(line)["step"]
        for line in next(cache.rglob("metrics.jsonl")).read_text().splitlines()
    ]
    assert steps.count(1) == 1, "resuming must not begin at the first step"
    got = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    assert all(got[name].equal(expected[name]) for name in expected)


def test_two_workers_train_what_one_worker_trains(safemerge, write_stage, tmp_path):
    one = safemerge("finetune", write_stage(), SAFEMERGE_CACHE=str(tmp_path / "one"))
    assert one.returncode == 0, one.stdout + one.stderr
    expected = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    workers = {"num_workers": 2, "cpus_per_worker": 0.5}
    two = safemerge("finetune", write_stage(workers=workers), SAFEMERGE_CACHE=str(tmp_path / "two"))
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
