"""A guard on a vLLM engine says what it says on transformers."""

import pytest

from safemerge.config.judge import GuardJudge, JudgeServiceSpec
from safemerge.scoring.guard import GuardAsk
from safemerge.scoring.guard_model import TransformersGuardModel
from tests.integration.driving import VLLM_MARKS

pytest.importorskip("vllm")
pytestmark = VLLM_MARKS


def ask(text, longest=5):
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": "Well."})
    return GuardAsk(messages, max_reply_tokens=longest)


def test_a_guards_replies_and_probabilities_are_those_of_transformers(tiny_base):
    from safemerge.scoring.guard_vllm import VllmGuardModel

    spec = GuardJudge(
        kind="guard", name="g", path=str(tiny_base), family="llama_guard", max_tokens=128
    )
    asks = [ask("How are you?"), ask("too long " * 90), ask("And what do you say now?", 3)]
    expected = TransformersGuardModel(spec).reply(asks)
    model = VllmGuardModel(spec, JudgeServiceSpec(kv_cache_gib=0.1))
    try:
        found = model.reply(asks)
    finally:
        model.close()
    assert [reply.failed for reply in found] == [reply.failed for reply in expected]
    assert found[1].failed.startswith("too long for the judge: ")
    for here, there in zip(found, expected, strict=True):
        assert here.text == there.text
        assert len(here.steps) == len(there.steps)
        for step, other in zip(here.steps, there.steps, strict=True):
            likeliest = max(other, key=other.get)
            assert step[likeliest] == pytest.approx(other[likeliest], abs=1e-3)
