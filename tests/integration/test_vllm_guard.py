"""A guard on a vLLM engine says what it says on transformers; sampling there hangs on the seed."""

import sys

import pytest

from safemerge.config.judge import GuardJudge, JudgeServiceSpec
from safemerge.config.models import models_recipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Sampling, TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.generation.pool import model_groups
from safemerge.scoring.guard import GuardAsk
from safemerge.scoring.guard_model import TransformersGuardModel

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux"),
    # vLLM's own imports warn; nothing of ours does.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


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


@pytest.fixture(scope="module")
def engine(tiny_base):
    from safemerge.config.checkpoint import CheckpointRef

    ref = CheckpointRef(name="base", path=str(tiny_base))
    assert model_groups([ref]) == [[ref]]
    twin = ref.model_copy(update={"name": "twin"})
    recipe = models_recipe(ref, [twin])
    spec = EvaluatorSpec(max_model_len=128, max_num_seqs=8, kv_cache_gib=0.1, dtype="float32")
    engine = start_engine(recipe, spec, cpu_ids="0")
    engine.load(recipe)
    yield engine
    engine.close()


def test_drafts_hang_on_their_seed_and_not_on_the_batch(engine, tiny_base):
    ids = tuple(ChatFormat(tiny_base).prompt_ids("Write a question."))
    prompts = [
        TokenizedPrompt(f"d{seed}", ids, 12, sampling=Sampling(1.0, 0.9, seed))
        for seed in (1, 2, 1)
    ]
    first, second, again = (response.text for response in engine.generate(prompts))
    (alone,) = engine.generate(prompts[:1])
    assert first == again == alone.text
    assert first != second
