"""A hardened alignment stage on Ray Train: metrics and resume."""

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
    def rows(name, answer):
        path = tmp_path / f"{name}.jsonl"
        told = [{"prompt": f"{name} request {number}"} for number in range(24)]
        path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
        return {"source": {"kind": "file", "path": str(path)}, "response": answer}

    def write(**changes):
        document = {
            "kind": "align",
            "name": "hardened",
            "base": {"name": "base", "path": str(tiny_base)},
            "method": "booster",
            "data": [rows("unsafe", "I cannot help with that."), rows("benign", "Here you are.")],
            "harmful": {
                "data": [rows("other", "Sure: [stand-in]")],
                "test": [rows("kept", "Sure: [stand-in]")],
                "batch_size": 4,
                "test_every": 5,
            },
            "booster": {"adaptive": {"decay": 0.5}},
            "steps": STEPS,
            "batch_size": 4,
            "max_tokens": 128,
            "checkpoint_every": 3,
            "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]},
            "workers": {"cpus_per_worker": 0.5},
        }
        path = tmp_path / "stage.yaml"
        path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
        return path

    return write


def result_of(tmp_path):
    folder = tmp_path / "results" / "hardened"
    told = json.loads((folder / "checkpoint.json").read_text())
    return load_file(Path(told["path"]) / "model.safetensors"), folder


def steps_of(cache):
    found = list(cache.rglob("metrics.jsonl"))
    lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
    return [json.loads(line) for line in lines]


def test_a_killed_hardening_resumes_bit_for_bit(safemerge, start_safemerge, write_stage, tmp_path):
    straight = safemerge("align", write_stage(), SAFEMERGE_CACHE=str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stdout + straight.stderr
    expected, folder = result_of(tmp_path)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert all(step["perturbed_loss"] < step["harmful_loss"] for step in steps[1:])
    assert [s["step"] for s in steps if "harmful_test_loss" in s] == [1, 6, 11]
    assert len({step["regularizer_strength"] for step in steps}) > 2, "lambda must adapt"
    assert any((folder / "tensorboard").iterdir())

    cache = tmp_path / "killed"
    mark = marked("killed-hardening")
    driver = start_safemerge(
        "align", write_stage(), SAFEMERGE_CACHE=str(cache), SAFEMERGE_TEST_MARK=mark
    )
    wait_until(lambda: len(steps_of(cache)) >= 5, within_s=200, every_s=0.02, driver=driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(steps_of(cache)) < STEPS, "the stage must be killed on its way"
    wait_until(lambda: not own_workers(mark), within_s=180)
    resumed = safemerge("align", write_stage(), "--resume", SAFEMERGE_CACHE=str(cache))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [s["step"] for s in steps_of(cache)].count(1) == 1, "it must go on, not begin anew"
    first = f": step 1/{STEPS}, "
    assert first in straight.stdout
    assert first not in resumed.stdout
    got, _ = result_of(tmp_path)
    assert all(got[name].equal(expected[name]) for name in expected)


def test_a_stage_measures_lambda_and_tells_how_it_ended(safemerge, write_stage, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "asked request"}\n', encoding="utf-8")
    until = {"refusal": 1.0, "prompts": [{"source": {"kind": "file", "path": str(asked)}}]}
    stage = write_stage(
        booster={"alpha": 0.05, "calibrate": {"penalty_nats": 0.3, "plain_steps": 4}},
        until={**until, "every": 5},
        steps=8,
    )
    done = safemerge("align", stage, SAFEMERGE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    weights, folder = result_of(tmp_path)
    assert weights
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    falls = [step["harmful_loss"] - step["perturbed_loss"] for step in steps[:4]]
    strengths = [step["regularizer_strength"] for step in steps]
    assert strengths == pytest.approx([0.0] * 4 + [0.3 / (sum(falls) / 4)] * 4)
    assert [step["step"] for step in steps if "refusal" in step] == [6]
    checkpoint = Path(json.loads((folder / "checkpoint.json").read_text())["path"])
    kept = json.loads((checkpoint / "safemerge_training.json").read_text())["measured"]
    assert (kept["lambda"], kept["steps"]) == (pytest.approx(strengths[-1]), 8)
    assert f"hardened: booster.lambda set to {strengths[-1]:.4g}: " in done.stdout
    assert (
        f"hardened: warning: {kept['refusal']:.1%} of 1 held-out requests refused" in done.stdout
    )
