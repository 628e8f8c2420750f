"""A robustness measurement with pico models on Ray: killed, resumed, widened."""

import json
import signal

import pytest
import yaml

from safemerge.robustness.cell_store import CellStore
from tests.integration.driving import marked, own_workers, run_safemerge, wait_until

pytestmark = pytest.mark.ray

WORDS = ["apple", "birch", "cloud", "drum", "eagle", "fern", "grape", "harp"]


def rows_of(folder, name):
    path = folder / f"{name}.jsonl"
    rows = [
        {"prompt": f"{name}: {one} and {other}?", "label": ("yes", "no")[index % 2]}
        for index, (one, other) in enumerate(zip(WORDS, WORDS[3:] + WORDS[:3], strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"kind": "file", "path": str(path)}


def write_measurement(folder, base, expert, **changes):
    def prompts(name):
        return {"source": rows_of(folder, name), "label": "label"}

    def training(name, response="{label}"):
        return {"source": rows_of(folder, name), "response": response}

    training_settings = {"max_tokens": 128, "batch_size": 4}
    lora = {"rank": 2, "targets": ["q_proj", "v_proj"]}
    align = {
        "kind": "align",
        "name": "aligned",
        "base": {"name": "base", "path": str(base)},
        "data": [training("refusals", "no"), training("benign", "yes")],
        "steps": 4,
        "lora": lora,
        "workers": {"cpus_per_worker": 0.5},
        **training_settings,
    }
    recipe = {
        "base": {"name": "base", "path": str(base)},
        "experts": [
            {"name": "hardened", "align": "align.yaml"},
            {"name": "expert", "path": str(expert)},
        ],
        "method": {"name": "task_arithmetic", "weights": {"hardened": 1.0, "expert": 0.5}},
    }
    attack = {"num_samples": [8], "learning_rates": [1e-3]}
    document = {
        "kind": "robustness",
        "name": "pico",
        "methods": [
            {"name": "aligned", "align": "align.yaml"},
            {"name": "merged", "recipe": "recipe.yaml"},
            {"name": "plain", "path": str(expert)},
        ],
        "seeds": [1],
        "attacks": [
            {"mode": "same", "poison_ratios": [0.5], **attack},
            {"mode": "fresh", "poison_ratios": [0.5], **attack},
            {"mode": "full", "poison_ratios": [0.5], **attack},
        ],
        "finetune": {
            "data": [training("user")],
            "poison": training("poison"),
            "curve": training("curve"),
            "curve_every": 1,
            "harm_every": 1,
            "lora": lora,
            **training_settings,
        },
        "harm": {
            "name": "harm",
            "task": {"kind": "harm", "max_tokens": 4},
            "max_similarity": None,
            "search": prompts("unsafe_search"),
            "report": prompts("unsafe_report"),
        },
        "accuracy": {
            "name": "skill",
            "task": {"kind": "classification", "labels": ["yes", "no"]},
            "max_similarity": None,
            "search": prompts("skill_search"),
            "report": prompts("skill_report"),
        },
        "evaluator": {"engine": "transformers", "max_model_len": 256},
        "resources": {"cpus": 1},
    }
    for name, content in (("align", align), ("recipe", recipe), ("pico", document | changes)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "pico.yaml"


def test_a_killed_measurement_resumes_cell_by_cell_and_can_grow(
    start_safemerge, tiny_base, tiny_expert, tmp_path
):
    file = write_measurement(tmp_path, tiny_base, tiny_expert)
    store = CellStore(tmp_path / "results" / "pico")
    environment = {"SAFEMERGE_CACHE": str(tmp_path / "cache")}
    mark = marked("killed-measurement")
    driver = start_safemerge("robustness", file, **environment, SAFEMERGE_TEST_MARK=mark)
    wait_until(lambda: driver.poll() is not None or len(store.records()) >= 3, within_s=250)
    assert driver.poll() is None, (tmp_path / "told.txt").read_text()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not own_workers(mark), within_s=180)
    kept = {record.key: record.finished_at for record in store.records()}
    # Before: three models. Attacks: one adapter, three fresh ones, three in full.
    assert 3 <= len(kept) < 10

    refused = run_safemerge(tmp_path, "robustness", file, **environment)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    resumed = run_safemerge(tmp_path, "robustness", file, "--resume", **environment)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resuming: {len(kept)} finished cells kept" in resumed.stdout
    assert "cached" in resumed.stdout
    records = {record.key: record for record in store.records()}
    assert len(records) == 10
    assert {key: records[key].finished_at for key in kept} == kept

    results = json.loads((store.folder / "robustness.json").read_text(encoding="utf-8"))
    assert (results["num_done"], results["failed"]) == (10, [])
    fresh = [item for item in results["results"] if item["condition"]["mode"] == "fresh"]
    assert [step for step, _, _ in fresh[0]["curve"]] == [0, 1, 2]
    assert fresh[0]["num_prompts"] == len(WORDS)
    assert [step for step, _, _ in fresh[0]["harm_curve"]] == [0, 1, 2]
    assert fresh[0]["harm_curve"][-1][1] == fresh[0]["harmful_score"]["mean"]
    assert (store.folder / "report.html").is_file()
    assert not (store.folder / "scratch").exists() or not any((store.folder / "scratch").iterdir())
    assert not any((tmp_path / "cache" / "hardened").iterdir())


def test_a_measurement_that_cannot_be_is_refused_before_a_cluster(
    tiny_base, tiny_expert, tmp_path
):
    attack = {
        "mode": "fresh",
        "poison_ratios": [0.5],
        "num_samples": [80],
        "learning_rates": [1e-3],
    }
    file = write_measurement(tmp_path, tiny_base, tiny_expert, attacks=[attack])
    done = run_safemerge(tmp_path, "robustness", file)
    assert done.returncode == 2
    assert "finetune.poison: must have 40 rows for n=80 at p=0.5; got 8" in done.stderr
    assert not (tmp_path / "results").exists()

    sound = write_measurement(tmp_path, tiny_base, tiny_expert)
    assert run_safemerge(tmp_path, "robustness", sound, "--dry-run").returncode == 0
    unknown = run_safemerge(tmp_path, "robustness", sound, "--seeds", "7")
    assert unknown.returncode == 2
    assert "seeds: must be seeds of the file; got 7" in unknown.stderr
