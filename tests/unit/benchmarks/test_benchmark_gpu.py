"""The GPU benchmark on a CPU, as on a bare machine: no Ray, no vLLM, nothing of the search."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[3]
_BARE = """
import runpy, sys
for absent in ("ray", "vllm", "optuna", "botorch", "datasets", "pandas"):
    sys.modules[absent] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_bare_cpu(tmp_path):
    record = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--shape", "tiny", "--rounds", "1", "--json", str(record)]
    done = subprocess.run(
        [sys.executable, "-c", _BARE, "benchmarks/gpu.py", *asked],
        cwd=_REPOSITORY,
        env={**os.environ, "SAFEMERGE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text(encoding="utf-8"))
    assert all(row["same"] == row["tensors"] == 20 for row in found["equal"].values())
    assert set(found["swap"]) == {"gb", "copy"} | {
        f"{method}, {place}"
        for method in ("linear", "ties", "dare_ties")
        for place in ("device", "pinned", "mapped")
    }
    backends = ("sft", "three_pass", "in_place", "grouped")
    assert set(found["booster"]) == {f"pico, {name}" for name in backends}
    assert all(row["seconds"] > 0 for row in found["booster"].values())
