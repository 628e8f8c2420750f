"""Declared stages for the tests of training."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.alignment import AlignSpec
from safemerge.config.stage import LoraSpec
from safemerge.config.training import FinetuneSpec
from safemerge.training.batch import EncodedSample, collate
from safemerge.training.lora import attach_lora

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
