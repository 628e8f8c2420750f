import os
import sys

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.vllm_engine import VllmEngine
from safemerge.errors import PreflightError


def test_without_vllm_the_message_says_what_to_install(monkeypatch, tiny_base, tiny_expert):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    base = CheckpointRef(name="base", path=str(tiny_base))
    models = models_recipe(base, [CheckpointRef(name="math", path=str(tiny_expert))])
    words = r"evaluator\.engine: vllm must be installed; got: .*vllm.*\. Install safemerge\[gpu\]"
    with pytest.raises(PreflightError, match=words):
        VllmEngine(models, EvaluatorSpec())
