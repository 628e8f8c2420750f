"""Whole files against mergekit 0.1.5 as it runs, for ``make test-all``; the rest is recorded.

It is in an environment of its own (``make bench-peers``), or in SAFEMERGE_MERGEKIT's folder.

Both are given the same YAML and the same pico checkpoints in float32. Random masks are mergekit's
own, so DARE is compared at density 1 only.
"""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from safemerge.cli import main
from safemerge.testing import pico

ENVIRONMENT = Path(
    os.environ.get(
        "SAFEMERGE_MERGEKIT", Path(__file__).resolve().parents[2] / "benchmarks/.peers/mergekit"
    )
)
PYTHON = ENVIRONMENT / "bin" / "python"

pytestmark = [
    pytest.mark.reference,
    pytest.mark.slow,
]

PEER = """
import json, sys
from pathlib import Path
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for file, out, cache in json.load(sys.stdin):
    document = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
    options = MergeOptions(lora_merge_cache=cache, quiet=True, write_model_card=False)
    run_merge(document, out, options)
"""

WEIGHTS = {"math": 0.4, "safety": 0.7}
FILTERED = [
    {"filter": "self_attn", "value": [0.1, 0.9]},
    {"filter": "mlp", "value": 0.3},
    {"value": 0.5},
]


def task_vectors(method, shared=None, **own):
    models = [
        {
            "model": name,
            "parameters": {"weight": weight, **{key: value[name] for key, value in own.items()}},
        }
        for name, weight in WEIGHTS.items()
    ]
    parameters = {"parameters": shared} if shared else {}
    return {"merge_method": method, "base_model": "base", "models": models, **parameters}


def listed(method, *models, **more):
    return {"merge_method": method, "models": [{"model": name} for name in models], **more}


DENSITY = {"math": 0.3, "safety": 0.6}
SOURCES = [{"model": name, "layer_range": [0, pico.NUM_LAYERS]} for name in ("base", "math")]
FILES = {
    "linear": listed("linear", "base", "math", "safety", parameters={"weight": FILTERED}),
    "linear-sum": listed(
        "linear", "math", "safety", parameters={"weight": [0.2, 0.6], "normalize": False}
    ),
    "task_arithmetic": task_vectors("task_arithmetic", {"lambda": 0.8}),
    "ties": task_vectors("ties", density=DENSITY),
    "ties-sum": task_vectors("ties", {"normalize": False, "lambda": 1.2}, density=DENSITY),
    "dare_linear": task_vectors("dare_linear", {"density": 1.0}),
    "dare_ties": task_vectors("dare_ties", {"density": 1.0, "normalize": True}),
    "slerp": listed("slerp", "base", "math", base_model="base", parameters={"t": FILTERED}),
    "slerp-slice": {
        "merge_method": "slerp",
        "base_model": "math",
        "slices": [{"sources": SOURCES, "base_model": "base", "parameters": {"t": [0.2, 0.8]}}],
    },
    "breadcrumbs": task_vectors("breadcrumbs", {"gamma": 0.05}, density=DENSITY),
    "breadcrumbs_ties": task_vectors("breadcrumbs_ties", {"normalize": True}, density=DENSITY),
    "model_stock": listed("model_stock", "math", "near", base_model="base"),
    "karcher": listed("karcher", "math", "safety", parameters={"max_iter": 20}),
    "multislerp": listed("multislerp", "math", "safety", parameters={"weight": 0.5}),
    "adapter": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "base+lora", "parameters": {"weight": 0.6}},
            {"model": "math", "parameters": {"weight": 0.5}},
        ],
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_base, tiny_experts, tiny_adapter):
    """A folder with the models and the files; and what mergekit made of each, by one process."""
    folder = tmp_path_factory.mktemp("mergekit")
    for name, model in {"base": tiny_base, **tiny_experts, "lora": tiny_adapter}.items():
        (folder / name).symlink_to(model)
    near(tiny_base, tiny_experts, folder / "near")
    for name, document in FILES.items():
        text = yaml.safe_dump({**document, "dtype": "float32"})
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    exported(folder)
    return folder


def exported(folder):
    """Write a recipe over an adapter in mergekit's form, and its merge."""
    recipe = {
        "base": {"name": "base", "path": "base"},
        "experts": [{"name": "lora", "path": "lora"}, {"name": "math", "path": "math"}],
        "method": {"name": "ties", "weights": {"lora": 0.8, "math": 0.5}, "density": 0.4},
        "dtype": "float32",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    arguments = [str(folder / "recipe.yaml"), str(folder / "ours-exported")]
    assert main(["merge", *arguments, "--mergekit", str(folder / "exported.yml")]) == 0


@pytest.fixture(scope="module")
def theirs(place):
    """What mergekit merged, by name of the file."""
    names = [*FILES, "exported"]
    tasks = [(f"{name}.yml", f"theirs-{name}", "merged-adapters") for name in names]
    done = subprocess.run(
        [PYTHON, "-c", PEER],
        input=json.dumps(tasks),
        cwd=place,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: tensors(place / f"theirs-{name}") for name in names}


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def near(base, experts, out):
    """Make an expert at an acute angle to another, for a mean cosine that is not negative."""
    shutil.copytree(base, out)
    math, safety = (load_file(experts[name] / "model.safetensors") for name in WEIGHTS)
    origin = load_file(base / "model.safetensors")
    mixed = {
        name: tensor + 0.8 * (math[name] - tensor) + 0.5 * (safety[name] - tensor)
        for name, tensor in origin.items()
    }
    save_file(mixed, out / "model.safetensors", metadata={"format": "pt"})


def assert_same(ours, theirs):
    assert set(ours) <= set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_merges_to_what_mergekit_makes_of_it(name, place, theirs):
    assert main(["merge", str(place / f"{name}.yml"), str(place / f"ours-{name}")]) == 0
    assert_same(tensors(place / f"ours-{name}"), theirs[name])


def test_mergekit_merges_an_exported_recipe_over_an_adapter_to_the_same(place, theirs):
    assert_same(tensors(place / "ours-exported"), theirs["exported"])


def test_the_merges_differ_from_each_other(theirs):
    # A comparison of merges that come to the same would prove nothing.
    name = "model.layers.0.mlp.up_proj.weight"
    alike = {"multislerp", "dare_linear"}
    kept = [key for key in theirs if key not in alike]
    for one, other in itertools.combinations(kept, 2):
        assert not torch.allclose(theirs[one][name], theirs[other][name], atol=1e-6), (one, other)
