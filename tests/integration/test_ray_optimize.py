"""`safemerge optimize` on Ray Train with pico models: the same for two workers, resumable."""

import json
import signal

import pytest
import yaml
from safetensors.torch import load_file

from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe
from tests.integration.driving import marked, own_workers, run_safemerge, wait_until

pytestmark = pytest.mark.ray

STEPS = 24
GRADIENT = {"name": "gradient", "steps": STEPS, "batch_size": 6, "learning_rate": 0.05}
CMA = {"name": "cma_es", "evaluations": 12}


def write_to(folder, base, experts, **changes):
    for name, answer in {"safety": "no", "expert": "yes"}.items():
        rows = [{"q": f"{name} question {i}", "a": answer} for i in range(8)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def pairs(name):
        source = {"kind": "file", "path": f"{name}.jsonl"}
        return [{"source": source, "prompt": "{q}", "response": "{a}"}]

    document = {
        "kind": "optimize",
        "name": "toy",
        "base": {"name": "base", "path": str(base)},
        "experts": [{"name": name, "path": str(path)} for name, path in experts.items()],
        "safety": pairs("safety"),
        "expert": pairs("expert"),
        "optimizer": GRADIENT,
        # In bfloat16, which some processors have, two workers and one round apart.
        "compute": "float32",
        "max_tokens": 64,
        "checkpoint_every": 4,
        "workers": {"cpus_per_worker": 0.5},
    }
    path = folder / "optimize.yaml"
    path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
    return path


@pytest.fixture
def write(tiny_base, tiny_experts, tmp_path):
    return lambda **changes: write_to(tmp_path, tiny_base, tiny_experts, **changes)


def recipe_of(folder) -> MergeRecipe:
    return load_document(folder / "results" / "toy" / "recipe.yaml", MergeRecipe)


def numbers_of(recipe) -> list[float]:
    weights = recipe.method.weights.values()
    return [n for item in weights for n in (item.values() if isinstance(item, dict) else [item])]


def metrics_of(folder) -> list[dict]:
    path = folder / "results" / "toy" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def straight(tiny_base, tiny_experts, tmp_path_factory):
    """Folder of a gradient run in one go, and what the command printed."""
    folder = tmp_path_factory.mktemp("straight")
    done = run_safemerge(folder, "optimize", write_to(folder, tiny_base, tiny_experts))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_run_leaves_a_recipe_that_merges_a_log_and_a_table(straight, tmp_path):
    folder, told = straight
    assert f"toy: step {STEPS}/{STEPS}, loss " in told
    assert "checking 3 checkpoints and the data" in told
    run = folder / "results" / "toy"
    assert (run / "table.md").read_text(encoding="utf-8") in told
    assert list((run / "tensorboard").iterdir())
    log = metrics_of(folder)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert {"loss", "safety_loss", "expert_loss", "coefficient/math"} <= set(log[0])
    found = numbers_of(recipe_of(folder))
    assert len(found) == 8
    assert len(set(found)) > 2
    losses = json.loads((run / "result.json").read_text(encoding="utf-8"))["losses"]
    total = {name: found["safety"] + 0.3 * found["expert"] for name, found in losses.items()}
    assert list(total) == ["base", "math", "safety", "(mean)", "(optimised)"]
    assert total["(optimised)"] < total["(mean)"]

    merged = run_safemerge(folder, "merge", run / "recipe.yaml", tmp_path / "out")
    assert merged.returncode == 0, merged.stderr
    assert load_file(tmp_path / "out" / "model.safetensors")


def test_replicas_of_the_evaluator_find_what_a_worker_finds(safemerge, write, tmp_path):
    evaluator = {
        "engine": "transformers",
        "dtype": "float32",
        "cpus_per_replica": 0.5,
        "min_replicas": 2,
        "max_replicas": 2,
        "max_model_len": 256,
    }
    found = []
    for name, changes in (
        ("worker", {"workers": {"cpus_per_worker": 0.5}}),
        ("served", {"workers": {}, "evaluator": evaluator}),
    ):
        document = write(optimizer=CMA, **changes)
        done = safemerge("optimize", document, "--results", name)
        assert done.returncode == 0, done.stdout + done.stderr
        recipe = load_document(tmp_path / name / "toy" / "recipe.yaml", MergeRecipe)
        found.append(numbers_of(recipe))
    # Losses differ in rounding alone, so candidates are ranked alike.
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_two_workers_killed_and_resumed_find_the_coefficients_of_one(
    safemerge, start_safemerge, straight, write, tmp_path
):
    path = write(workers={"num_workers": 2, "cpus_per_worker": 0.5})
    mark = marked("killed-optimize")
    driver = start_safemerge("optimize", path, SAFEMERGE_TEST_MARK=mark)
    wait_until(lambda: len(metrics_of(tmp_path)) >= 7, within_s=200, every_s=0.02, driver=driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(metrics_of(tmp_path)) < STEPS, "the run must be killed on its way"
    wait_until(lambda: not own_workers(mark), within_s=180)

    refused = safemerge("optimize", path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    resumed = safemerge("optimize", path, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    steps = [line["step"] for line in metrics_of(tmp_path)]
    assert steps.count(1) == 1, "resuming must not begin at the first step"
    expected = numbers_of(recipe_of(straight[0]))
    assert numbers_of(recipe_of(tmp_path)) == pytest.approx(expected, abs=1e-4)

    again = safemerge("optimize", path, "--resume")
    assert again.returncode == 0
    assert "finished already" in again.stdout
