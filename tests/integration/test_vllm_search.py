"""The main job with vLLM behind Ray Serve: searched, killed, resumed."""

import json
import signal

import pytest

from safemerge.config.recipe import MergeRecipe
from safemerge.store import RunStore
from tests.integration.driving import VLLM_MARKS, marked, own_workers, wait_until

pytestmark = [pytest.mark.ray, *VLLM_MARKS]


def test_a_search_on_vllm_is_killed_and_resumed_without_losing_a_trial(
    start_safemerge, safemerge, write_study, tmp_path
):
    evaluator = {"engine": "vllm", "cpus_per_replica": 1, "max_model_len": 256, "max_num_seqs": 16}
    study = write_study(num_trials=6, evaluator=evaluator, sampler={"name": "random"})
    trials = tmp_path / "results" / "pico" / "trials.jsonl"
    driver = start_safemerge("search", study, SAFEMERGE_TEST_MARK=marked("killed-vllm"))
    wait_until(
        lambda: trials.exists() and len(trials.read_text().splitlines()) >= 6,
        within_s=300,
        driver=driver,
    )
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = [json.loads(line) for line in trials.read_text().splitlines() if line.endswith("}")]
    wait_until(lambda: not own_workers(marked("killed-vllm")), within_s=180)

    done = safemerge("search", study, "--resume")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(before)} finished trials kept" in done.stdout
    after = [json.loads(line) for line in trials.read_text().splitlines()]
    assert after[: len(before)] == before
    # What the killed driver had in flight is kept as interrupted, and costs no budget.
    lost = [trial for trial in after if trial["state"] != "COMPLETE"]
    assert all(trial["reason"].startswith("interrupted") for trial in lost)
    assert sum(trial["role"] == "sampled" for trial in after) - len(lost) == 6
    for point in RunStore.open(tmp_path / "results" / "pico").read_front().points:
        assert MergeRecipe.model_validate(point.recipe).digest == point.candidate
        assert point.report.candidate == point.search.candidate == point.candidate
