"""Declared stages for the tests of training."""

import pytest

from safemerge.config.training import AlignSpec, FinetuneSpec

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
