"""Training of every weight on Ray Train: one worker, two with shards, killed and resumed."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.integration.driving import marked, own_workers, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

STEPS = 12


@pytest.fixture
def write_stage(tiny_base, tmp_path):
    def write(**changes):
        rows = {"kind": "generator", "name": "reviews", "split": "train", "count": 64}
        document = {
            "kind": "finetune",
            "name": "whole",
            "base": {"name": "base", "path": str(tiny_base)},
            "data": [{"source": rows, "response": "{label}"}],
            "parameters": "full",
            "steps": STEPS,
            "batch_size": 4,
            "learning_rate": 1e-3,
            # In bfloat16, which some processors have, shards and one worker round apart.
            "dtype": "float32",
            "max_tokens": 128,
            "checkpoint_every": 3,
            "workers": {"cpus_per_worker": 0.5},
        }
        path = tmp_path / "stage.yaml"
        path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
        return path

    return write


def weights_of(folder):
    told = json.loads((folder / "results" / "whole" / "checkpoint.json").read_text())
    return load_file(Path(told["path"]) / "model.safetensors")


def steps_of(cache):
    found = list(cache.rglob("metrics.jsonl"))
    return found[0].read_text(encoding="utf-8").splitlines() if found else []


def test_shards_killed_and_resumed_train_what_one_worker_trains(
    safemerge, start_safemerge, write_stage, tiny_base, tmp_path
):
    one = safemerge("finetune", write_stage(), SAFEMERGE_CACHE=str(tmp_path / "one"))
    assert one.returncode == 0, one.stdout + one.stderr
    alone, base = weights_of(tmp_path), load_file(tiny_base / "model.safetensors")
    assert set(alone) == set(base)
    assert all(not alone[name].equal(base[name]) for name in base), "every weight must train"

    two = write_stage(workers={"num_workers": 2, "cpus_per_worker": 0.5})
    cache = tmp_path / "killed"
    mark = marked("killed-shards")
    driver = start_safemerge("finetune", two, SAFEMERGE_CACHE=str(cache), SAFEMERGE_TEST_MARK=mark)
    wait_until(lambda: len(steps_of(cache)) >= 5, within_s=600, every_s=0.02, driver=driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(steps_of(cache)) < STEPS, "the stage must be killed on its way"
    wait_until(lambda: not own_workers(mark), within_s=180)
    resumed = safemerge("finetune", two, "--resume", SAFEMERGE_CACHE=str(cache))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    steps = [json.loads(line)["step"] for line in steps_of(cache)]
    assert steps.count(1) == 1, "resuming must not begin at the first step"
    got = weights_of(tmp_path)
    for name, tensor in alone.items():
        assert (got[name] - tensor).abs().max() < 2e-4, name
