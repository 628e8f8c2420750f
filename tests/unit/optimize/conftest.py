"""Declared optimisations of pico experts, and what they need."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.models import models_recipe
from safemerge.engines.chat import ChatFormat
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.optimize.coefficient_table import coefficient_table
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.pairs import load_pairs
from safemerge.optimize.spec import OptimizeSpec


@pytest.fixture
def optimize(tiny_base, tiny_experts, tmp_path):
    """Return an optimisation of pico experts with some fields changed, and its data on disk."""
    for name, answers in {"safety": ["no", "i do not"], "expert": ["yes", "sure it is"]}.items():
        lines = [
            json.dumps({"q": f"{name} question {i} {'x' * (i % 3)}", "a": answers[i % 2]})
            for i in range(7)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def pairs(name):
        source = {"kind": "file", "path": str(tmp_path / f"{name}.jsonl")}
        return [{"source": source, "prompt": "{q}", "response": "{a}"}]

    def optimize(**fields):
        given = {
            "name": "toy",
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": [{"name": name, "path": str(path)} for name, path in tiny_experts.items()],
            "safety": pairs("safety"),
            "expert": pairs("expert"),
            "optimizer": {"name": "gradient", "steps": 6, "batch_size": 4},
            "compute": "float32",
            "max_tokens": 64,
        }
        return OptimizeSpec.model_validate({**given, **fields})

    return optimize


@pytest.fixture
def opened(tiny_base):
    """Open what a declared optimisation needs: table, model, pairs."""

    def opened(spec, *, dtype=torch.float32):
        resident = ResidentCheckpoints.open(models_recipe(spec.base, spec.experts))
        table = coefficient_table(spec, resident)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)
        merged = MergedModel(model, resident, table, where=spec.name)
        return table, merged, load_pairs(spec, ChatFormat(tiny_base))

    return opened
