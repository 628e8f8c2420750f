"""Peak memory of a merge to disk, measured in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
TENSOR_BYTES = 4 << 20
SHARD_BYTES = 4 * TENSOR_BYTES
NUM_TENSORS = 24

RUN = """
import sys
from pathlib import Path
from safemerge.config.recipe import MergeRecipe
from safemerge.merge import ResidentCheckpoints, write_merged
from safemerge.testing.conformance import build_method

small, large, name = sys.argv[1:]
method = build_method(name, {"a": 0.6, "b": 0.4}, density=0.5).resolved()

def merge(folder):
    refs = [{"name": ref, "path": f"{folder}/{ref}"} for ref in ("base", "a", "b")]
    document = {"base": refs[0], "experts": refs[1:], "method": method}
    recipe = MergeRecipe.model_validate(document)
    opened = ResidentCheckpoints.open(recipe)
    out = Path(folder) / f"out-{name}"
    write_merged(recipe, opened.checkpoints, out, max_shard_bytes=%d)
    return len(list(out.glob("*.safetensors")))

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

merge(small)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
shards = merge(large)
print(shards, status("VmHWM") - before)
"""


def write(folder, *, num_tensors):
    for seed, model in enumerate(("base", "a", "b")):
        path = folder / model
        path.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        weight_map = {}
        for at in range(num_tensors):
            name = f"model.layers.{at}.mlp.up_proj.weight"
            tensor = torch.empty(2048, 1024, dtype=torch.bfloat16).normal_(generator=generator)
            file = f"model-{at + 1:05d}-of-{num_tensors:05d}.safetensors"
            save_file({name: tensor}, path / file)
            weight_map[name] = file
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        config = {"model_type": "llama", "num_hidden_layers": num_tensors}
        (path / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    write(root / "small", num_tensors=2)
    write(root / "large", num_tensors=NUM_TENSORS)
    return root / "small", root / "large"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties"])
def test_a_merge_takes_less_than_two_shards_and_a_tensor_of_each_model(folders, name):
    done = subprocess.run(
        [sys.executable, "-c", RUN % SHARD_BYTES, *map(str, folders), name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards, peak = map(int, done.stdout.split())
    assert shards == NUM_TENSORS // 4
    assert peak < 2 * SHARD_BYTES + 3 * TENSOR_BYTES < NUM_TENSORS * TENSOR_BYTES
