"""Log-likelihoods on real vLLM: those of the transformers engine, with the prefix cache in use."""

import sys

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.recipe import MergeRecipe, TaskArithmetic
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, TokenizedPrompt
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import EngineError

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

SPEC = EvaluatorSpec(max_model_len=256, max_num_seqs=16, kv_cache_gib=0.1, dtype="float32")
TOLERANCE = 1e-4
"""Of a sum of log-probabilities, relative, in float32: vLLM's kernels add up in another order."""


@pytest.fixture(scope="module")
def models(tiny_base, tiny_experts):
    base = CheckpointRef(name="base", path=str(tiny_base))
    return models_recipe(
        base, [CheckpointRef(name=n, path=str(p)) for n, p in tiny_experts.items()]
    )


@pytest.fixture(scope="module")
def merge(models):
    weights = {"math": 3.0, "safety": -2.0}
    return MergeRecipe(
        base=models.base,
        experts=models.experts,
        method=TaskArithmetic(name="task_arithmetic", weights=weights),
    )


@pytest.fixture(scope="module")
def engine(models):
    from safemerge.engines.vllm_engine import VllmEngine

    engine = VllmEngine(models, SPEC, cpu_ids="0")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def continuations(tiny_base):
    chat = ChatFormat(tiny_base)
    asked = []
    for question in range(6):
        context = tuple(chat.prompt_ids("What is known about the number ? " * (1 + question)))
        for choice, ids in enumerate([(5, 6, 7), (5, 6, 8), (9,), (5, 6, 7, 8) * 12]):
            asked.append(Continuation(f"q{question}.{choice}", context, ids))
    return [*asked, asked[3], Continuation("short", (1,), (40, 41, 42))]


@pytest.fixture(scope="module")
def expected(models, merge, continuations):
    reference = TransformersEngine(models, SPEC)
    reference.load(merge)
    found = reference.loglikelihoods(continuations)
    reference.close()
    return found


def agree(found, expected):
    assert [item.logprob for item in found] == pytest.approx(
        [item.logprob for item in expected], rel=TOLERANCE
    )
    same = [(item.sample_id, item.num_tokens, item.is_greedy, item.candidate) for item in found]
    assert same == [(e.sample_id, e.num_tokens, e.is_greedy, e.candidate) for e in expected]


def test_likelihoods_are_those_of_the_transformers_engine(engine, merge, continuations, expected):
    engine.load(merge)
    agree(engine.loglikelihoods(continuations), expected)
    assert engine.loglikelihoods([]) == []


def test_what_the_cache_holds_already_is_scored_the_same(engine, merge, continuations, expected):
    """All blocks of every prompt are cached: scores must come from computing it again."""
    engine.load(merge)
    engine.loglikelihoods(continuations)
    engine.generate(
        [
            TokenizedPrompt(item.sample_id, item.context_ids + item.continuation_ids, 2)
            for item in continuations
        ]
    )
    agree(engine.loglikelihoods(continuations), expected)


def test_a_context_is_computed_once_for_its_continuations(
    engine, merge, continuations, monkeypatch
):
    engine.load(merge)
    outputs, generate = [], engine._llm.generate

    def kept(*arguments, **settings):
        outputs.extend(generate(*arguments, **settings))
        return outputs

    monkeypatch.setattr(engine._llm, "generate", kept)
    question = [item for item in continuations if item.sample_id.startswith("q5")][:3]
    engine.loglikelihoods(question)
    block, length = 32, len(question[0].context_ids)
    whole = (length - 1) // block * block
    assert whole > 2 * block
    assert [output.num_cached_tokens for output in outputs] == [0, whole, whole, whole]


def test_scores_of_another_candidate_are_refused(engine, models, merge, continuations):
    engine.load(models)
    base = engine.loglikelihoods(continuations[:2])
    engine.load(merge)
    merged = engine.loglikelihoods(continuations[:2])
    assert [item.logprob for item in merged] != pytest.approx([i.logprob for i in base], rel=1e-3)
    engine._llm.llm_engine.set_weight_version("somebody-else")
    with pytest.raises(EngineError, match="somebody-else"):
        engine.loglikelihoods(continuations[:2])


def test_stop_texts_end_answers_as_in_the_transformers_engine(engine, models, merge, tiny_base):
    engine.load(merge)
    ids = tuple(ChatFormat(tiny_base).prompt_ids("Tell me more."))
    (whole,) = engine.generate([TokenizedPrompt("p", ids, 24)])
    stop = whole.text[4:6]
    asked = [TokenizedPrompt("p", ids, 24, stop=(stop, "never said"))]
    (cut,) = engine.generate(asked)
    assert (cut.text, cut.finished) == (whole.text[: whole.text.index(stop)], True)
    reference = TransformersEngine(models, SPEC)
    reference.load(merge)
    assert reference.generate(asked)[0].text == cut.text
    reference.close()
