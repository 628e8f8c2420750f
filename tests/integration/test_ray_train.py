"""Training stages on Ray Train with pico models: cached, killed, the same for two workers."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.integration.driving import marked, own_workers, run_safemerge, wait_until

pytestmark = pytest.mark.ray

STEPS = 30


def write_stage_to(folder, base, **changes):
    document = {
        "kind": "finetune",
        "name": "expert",
        "base": {"name": "base", "path": str(base)},
        "data": [
            {
                "source": {"kind": "generator", "name": "reviews", "split": "train", "count": 64},
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
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
    return path


@pytest.fixture
def write_stage(tiny_base, tmp_path):
    return lambda **changes: write_stage_to(tmp_path, tiny_base, **changes)


def checkpoint_of(folder) -> Path:
    told = json.loads((folder / "results" / "expert" / "checkpoint.json").read_text())
    return Path(told["path"])


@pytest.fixture(scope="module")
def straight(tiny_base, tmp_path_factory):
    """Folder of the stage trained in one go, what the command printed, the weights."""
    folder = tmp_path_factory.mktemp("straight")
    stage = write_stage_to(folder, tiny_base)
    done = run_safemerge(folder, "finetune", stage, SAFEMERGE_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, load_file(checkpoint_of(folder) / "model.safetensors")


def test_a_stage_is_trained_once_and_then_found_in_the_cache(straight, tiny_base):
    folder, told, trained = straight
    assert f"step {STEPS}/{STEPS}" in told
    base = load_file(tiny_base / "model.safetensors")
    moved = [name for name in base if not trained[name].equal(base[name])]
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)

    cache = str(folder / "cache")
    again = run_safemerge(folder, "finetune", folder / "stage.yaml", SAFEMERGE_CACHE=cache)
    assert again.returncode == 0
    assert "cached" in again.stdout


def test_two_workers_killed_and_resumed_train_what_one_worker_trains(
    safemerge, start_safemerge, straight, write_stage, tmp_path
):
    expected = straight[2]
    stage = write_stage(workers={"num_workers": 2, "cpus_per_worker": 0.5})
    cache = tmp_path / "killed"
    driver = start_safemerge(
        "finetune", stage, SAFEMERGE_CACHE=str(cache), SAFEMERGE_TEST_MARK=marked("killed-stage")
    )
    wait_until(lambda: steps_of(cache) >= 7, within_s=200, every_s=0.02, driver=driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 7 <= steps_of(cache) < STEPS, "the stage must be killed on its way"
    wait_until(lambda: not own_workers(marked("killed-stage")), within_s=180)

    resumed = safemerge("finetune", stage, "--resume", SAFEMERGE_CACHE=str(cache))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    lines = next(cache.rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, STEPS + 1)), "each step is logged once"
    got = load_file(checkpoint_of(tmp_path) / "model.safetensors")
    for name, tensor in expected.items():
        assert (got[name] - tensor).abs().max() < 2e-4, name


def steps_of(cache) -> int:
    found = list(cache.rglob("metrics.jsonl"))
    return len(found[0].read_text(encoding="utf-8").splitlines()) if found else 0


def test_a_target_that_matches_no_module_is_the_users_error(safemerge, write_stage):
    done = safemerge("finetune", write_stage(lora={"targets": ["qq_proj"]}))
    assert done.returncode == 2
    assert "lora.targets must name modules of the model; got 'qq_proj'" in done.stderr
    assert "q_proj, up_proj, v_proj" in done.stderr
    assert "training" not in done.stdout
    assert "Traceback" not in done.stderr
