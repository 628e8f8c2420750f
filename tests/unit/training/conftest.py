"""Declared stages for the tests of training."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from safemerge.config.models import models_recipe
from safemerge.config.optimize import OptimizeSpec
from safemerge.config.training import AlignSpec, FinetuneSpec, LoraSpec
from safemerge.engines.chat import ChatFormat
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.training.batch import EncodedSample, collate
from safemerge.training.coefficient_table import coefficient_table
from safemerge.training.lora import attach_lora
from safemerge.training.merged_model import MergedModel
from safemerge.training.pairs import load_pairs

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}


@pytest.fixture
def finetune():
    """Return a fine-tuning declaration with some fields changed."""

    def finetune(**fields):
        given = {"name": "toy", "base": {"name": "base", "path": "/b"}, "data": [SET], "steps": 20}
        return FinetuneSpec.model_validate({**given, **fields})

    return finetune


@pytest.fixture
def align():
    """Return an alignment declaration with some fields changed."""

    def align(**fields):
        given = {"name": "safe", "base": {"name": "base", "path": "/b"}, "steps": 20}
        return AlignSpec.model_validate({**given, "data": [SET, SET], **fields})

    return align


@pytest.fixture
def exact(monkeypatch):
    """Let every step run in float64 where the model or the loss would round to float32."""

    def normalized(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    narrow = torch.Tensor.float
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", normalized)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t)
    )


@pytest.fixture
def adapted(tiny_base):
    """Build a pico model with an adapter that is not zero any more, as after training."""

    def adapted(dtype=torch.float64, **lora):
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)
        spec = LoraSpec(**{"rank": 3, "targets": ["q_proj", "v_proj", "down_proj"], **lora})
        model = attach_lora(base, spec, where="toy")
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    drawn = torch.randn(parameter.shape, generator=generator) * 0.1
                    parameter.copy_(drawn)
        return model.train()

    return adapted


@pytest.fixture
def rows():
    """Build a batch of rows of many lengths that begin with the same tokens."""

    def rows(count, *, seed, shared=3):
        generator = torch.Generator().manual_seed(seed)

        def drawn(low, high):
            return int(torch.randint(low, high, (), generator=generator))

        return collate(
            [
                EncodedSample(
                    (*range(7, 7 + shared), *(drawn(20, 400) for _ in range(length))), shared + 2
                )
                for length in (drawn(3, 12) for _ in range(count))
            ]
        )

    return rows


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
