"""``safemerge generate`` as a user runs it: real models, killed and resumed, then trained on."""

import json
import os
import signal

import pytest
import yaml

from safemerge.config.alignment import AlignSpec
from safemerge.engines.chat import ChatFormat
from safemerge.training.batch import load_mixture
from tests.integration.driving import wait_until
from tests.integration.judge_driving import says_always

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REFUSAL = "I won't do that."


@pytest.fixture(scope="module")
def generation(tiny_base, tmp_path_factory):
    """A generation over a random pico, and one that was taught to refuse."""
    folder = tmp_path_factory.mktemp("generation")
    aligned = says_always(folder / "aligned", REFUSAL)
    unsafe = {"kind": "generator", "name": "unsafe-questions", "split": "train", "count": 12}
    reviews = {"kind": "generator", "name": "reviews", "split": "train", "count": 6}
    document = {
        "kind": "generate",
        "name": "pico-data",
        "models": [
            {"name": "base", "path": str(tiny_base)},
            {"name": "aligned", "path": str(aligned)},
        ],
        "safety": {
            "size": 8,
            "questions": {"kind": "data", "source": unsafe, "topic": "category"},
            "max_tokens": 24,
        },
        "experts": {
            "size": 4,
            "max_tokens": 24,
            "sets": [{"model": "aligned", "questions": {"kind": "data", "source": reviews}}],
        },
        "evaluator": {
            "engine": "transformers", "cpus_per_replica": 0.5, "max_model_len": 256,
            "max_num_seqs": 4, "dtype": "float32",
        },
    }  # fmt: skip
    path = folder / "generate.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def data_of(folder):
    return {
        name: (folder / "results" / "pico-data" / name).read_bytes()
        for name in ("safety.jsonl", "experts.jsonl", "summary.json")
    }


def test_a_killed_generation_goes_on_to_the_data_of_one_that_was_not(
    generation, safemerge, start_safemerge, tmp_path
):
    driver = start_safemerge("generate", generation)
    stages = tmp_path / "results" / "pico-data" / "stages"
    wait_until(
        lambda: any(path.stat().st_size for path in stages.glob("*.jsonl")),
        within_s=240,
        driver=driver,
    )
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "results" / "pico-data" / "safety.jsonl").exists()

    resumed = safemerge("generate", generation, "--resume")

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert "data: results/pico-data/safety.jsonl" in resumed.stdout
    found = data_of(tmp_path)
    rows = [json.loads(line) for line in found["safety.jsonl"].splitlines()]
    assert {row["answered_by"] for row in rows} == {"aligned"}
    assert {row["response"] for row in rows} == {REFUSAL}
    assert len({row["model_digest"] for row in rows}) == 1
    summary = json.loads(found["summary.json"])
    assert summary["safety"]["answers"]["base"]["kept"] == 0
    # What the random model said is in no file.
    stage = b"".join(path.read_bytes() for path in stages.glob("*.jsonl"))
    texts = [
        one["text"]
        for line in stage.splitlines()
        for one in json.loads(line)["outcomes"]
        if one["text"] is not None
    ]
    assert set(texts) <= {REFUSAL, *(row["response"] for row in map(json.loads,
                          found["experts.jsonl"].splitlines()))}  # fmt: skip

    for path in stages.iterdir():
        path.unlink()
    whole = safemerge("generate", generation, "--resume")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert data_of(tmp_path) == found

    align = AlignSpec.model_validate(
        {
            "name": "hardened",
            "base": yaml.safe_load(generation.read_text())["models"][0],
            "data": [
                {"source": {"kind": "file", "path": str(tmp_path / "results/pico-data" / name)},
                 "response": "{response}"}
                for name in ("safety.jsonl", "experts.jsonl")
            ],
            "steps": 1,
        }
    )  # fmt: skip
    mixture = load_mixture(align, ChatFormat(str(align.base.path)))
    assert list(mixture.sizes) == [len(rows), 4]
