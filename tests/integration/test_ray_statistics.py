"""Statistics on Ray Train with pico models: cached, the same for two workers, merged."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from safemerge.weights.statistics import STATISTICS_FILE
from tests.integration.driving import run_safemerge

pytestmark = pytest.mark.ray

STEMS = ("fisher", "gram", "importance", "base_importance")


def write_files(folder, base, experts, *, method, workers=1, steps=()):
    statistics = {
        "kind": "statistics",
        "name": "measured",
        "data": [
            {
                "source": {"kind": "generator", "name": "reviews", "split": "train", "count": 9},
                "response": "{label}",
            }
        ],
        "quantities": ["fisher", "gram", "importance"],
        "num_samples": 9,
        "max_tokens": 128,
        "workers": {"num_workers": workers, "cpus_per_worker": 0.5},
    }
    (folder / "measured.yaml").write_text(yaml.safe_dump(statistics), encoding="utf-8")
    recipe = {
        "base": {"name": "base", "path": str(base)},
        "experts": [
            {"name": name, "path": str(path), "statistics": {"gather": "measured.yaml"}}
            for name, path in experts.items()
        ],
        "method": method,
        "steps": list(steps),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


FISHER = {"name": "fisher", "weights": {"math": 1.0, "safety": 0.5}}


@pytest.fixture(scope="module")
def gathered(tiny_base, tiny_experts, tmp_path_factory):
    """Folder with a cache of statistics by one worker."""
    folder = tmp_path_factory.mktemp("gathered")
    recipe = write_files(folder, tiny_base, tiny_experts, method=FISHER)
    done = run_safemerge(folder, "statistics", recipe, SAFEMERGE_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "statistics of 'math': " in done.stdout
    return folder


def statistics_of(folder):
    found = sorted((folder / "cache" / "statistics").glob("measured-*"))
    assert not list((folder / "cache" / "statistics").glob("*.work"))
    return found


def test_two_workers_gather_what_one_worker_gathers(gathered, tiny_base, tiny_experts, tmp_path):
    one_expert = {"math": tiny_experts["math"]}
    method = FISHER | {"weights": {"math": 1.0}}
    recipe = write_files(tmp_path, tiny_base, one_expert, method=method, workers=2)
    done = run_safemerge(tmp_path, "statistics", recipe, SAFEMERGE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    (two,) = statistics_of(tmp_path)
    assert len(statistics_of(gathered)) == 2
    one = gathered / "cache" / "statistics" / two.name
    assert one.is_dir(), "workers are no part of the digest"
    told = [
        json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8")) for folder in (one, two)
    ]
    assert told[0]["num_rows"] == told[1]["num_rows"] == 9
    assert told[0]["gram"] == told[1]["gram"]
    for stem in STEMS:
        alone, shared = (load_file(folder / f"{stem}.safetensors") for folder in (one, two))
        assert alone.keys() == shared.keys()
        for name, tensor in alone.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(
                shared[name], tensor, rtol=1e-4, atol=1e-6 * scale, msg=f"{stem} {name}"
            )


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (FISHER, []),
        ({"name": "regmean", "weights": {"math": 1.0, "safety": 1.0}}, []),
        ({"name": "task_arithmetic", "weights": {"math": 1.0, "safety": 1.0}}, [{"name": "led"}]),
    ],
    ids=["fisher", "regmean", "led"],
)
def test_gathered_statistics_are_found_in_the_cache_and_merged(
    gathered, tiny_base, tiny_experts, tmp_path, method, steps
):
    recipe = write_files(tmp_path, tiny_base, tiny_experts, method=method, steps=steps)
    done = run_safemerge(
        tmp_path, "merge", recipe, tmp_path / "out", SAFEMERGE_CACHE=str(gathered / "cache")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cached (measured-") == 2
    merged = load_file(tmp_path / "out" / "model.safetensors")
    experts = [load_file(path / "model.safetensors") for path in tiny_experts.values()]
    for name, tensor in merged.items():
        assert torch.isfinite(tensor).all()
        assert not any(torch.equal(tensor, expert[name]) for expert in experts)
    kept = json.loads((tmp_path / "out" / "safemerge_recipe.json").read_text(encoding="utf-8"))
    assert all(len(ref["statistics"]["digest"]) == 16 for ref in kept["experts"])
