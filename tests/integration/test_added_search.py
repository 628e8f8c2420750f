"""A merge method and a sampler of installed packages in a whole search, and its export."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.driving import run_safemerge, write_study_to

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(install_examples):
    return install_examples("merge_method", "sampler")


def test_a_study_of_added_parts_is_searched_and_exported(study_document, site, tmp_path):
    space = study_document["spaces"][0]
    method = {**space["method"], "name": "top_mean", "density": 0.5}
    vary = {**space["vary"], "method.density": {"low": 0.2, "high": 1.0}}
    changes = {
        "spaces": [{**space, "method": method, "vary": vary}],
        "sampler": {"use": "neighbour", "arguments": {"width": 0.2}, "startup": 2},
        "references": False,
        "num_trials": 3,
    }
    study = write_study_to(tmp_path, study_document | changes)
    installed = {"PYTHONPATH": f"{site}:{ROOT}", "SAFEMERGE_CACHE": str(tmp_path / "cache")}
    done = run_safemerge(tmp_path, "search", study, **installed)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "results" / "pico"
    kept = json.loads((run / "study.json").read_text(encoding="utf-8"))
    assert "safemerge-neighbour 1.0" in json.dumps(kept)
    lines = (run / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert all('"top_mean"' in line and "safemerge-top-mean 1.0" in line for line in lines)
    assert all('"COMPLETE"' in line for line in lines)
    done = run_safemerge(tmp_path, "export", run, "--pick", "knee", "merged", **installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_file(tmp_path / "merged" / "model.safetensors")
    recipe = (tmp_path / "merged" / "safemerge_recipe.json").read_text(encoding="utf-8")
    assert "safemerge-top-mean 1.0" in recipe
    without = run_safemerge(tmp_path, "validate", study, PYTHONPATH=str(ROOT))
    assert without.returncode == 2
    assert 'method.name: unknown choice; got "top_mean"' in without.stderr
    assert "Traceback" not in without.stderr
