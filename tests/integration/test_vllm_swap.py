"""The live swap on real vLLM: golden against a fresh engine, and against its own past."""

import sys

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.method import TsvM
from safemerge.config.models import models_recipe
from safemerge.config.recipe import DareTies, Linear, MergeRecipe, TaskArithmetic
from safemerge.config.step import Resta
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import TokenizedPrompt
from safemerge.errors import EngineError, MergeError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged

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


def start(models, spec=SPEC, cpu_ids="0"):
    from safemerge.engines.vllm_engine import VllmEngine

    return VllmEngine(models, spec, cpu_ids=cpu_ids)


@pytest.fixture(scope="module")
def refs(tiny_base, tiny_experts):
    base = CheckpointRef(name="base", path=str(tiny_base))
    return base, [CheckpointRef(name=n, path=str(p)) for n, p in tiny_experts.items()]


@pytest.fixture(scope="module")
def engine(refs):
    engine = start(models_recipe(*refs))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(tiny_base):
    chat = ChatFormat(tiny_base)
    # Longer than a KV block, so that the prefix cache takes part.
    text = "Tell me something about the history of the number "
    return [
        TokenizedPrompt(f"p{i}", tuple(chat.prompt_ids(text * 2 + str(i))), 12) for i in range(12)
    ]


def recipe(refs, method):
    base, experts = refs
    return MergeRecipe(base=base, experts=experts, method=method)


@pytest.fixture(scope="module")
def base_recipe(refs):
    return recipe(refs, Linear(name="linear", weights={"base": 1.0}))


@pytest.fixture(scope="module")
def merges(refs):
    weights = {"math": 3.0, "safety": -2.0}
    matrices = TsvM(name="tsv_m", weights={"math": [3.0, 1.0], "safety": -2.0})
    add_safety = Resta(name="resta", aligned="safety", unaligned="math", scale=0.7)
    return [
        recipe(refs, TaskArithmetic(name="task_arithmetic", weights=weights)),
        recipe(refs, DareTies(name="dare_ties", weights=weights, density=0.6)),
        recipe(refs, matrices).model_copy(update={"steps": [add_safety]}),
    ]


@pytest.fixture(scope="module")
def fresh_answers(merges, prompts, tmp_path_factory):
    """Answers of new engines that were started on the merged checkpoints themselves."""
    answers = []
    for index, merge in enumerate(merges):
        folder = tmp_path_factory.mktemp("merged") / str(index)
        write_merged(merge, ResidentCheckpoints.open(merge).checkpoints, folder)
        itself = CheckpointRef(name="merged", path=str(folder))
        models = models_recipe(itself, [itself.model_copy(update={"name": "same"})])
        fresh = start(models)
        fresh.load(models)
        answers.append([response.text for response in fresh.generate(prompts)])
        fresh.close()
    return answers


def answers(engine, merge, prompts):
    engine.load(merge)
    responses = engine.generate(prompts)
    assert {response.candidate for response in responses} == {merge.digest}
    return [response.text for response in responses]


def test_swaps_answer_as_fresh_engines_do_and_the_base_comes_back(
    engine, base_recipe, merges, fresh_answers, prompts
):
    first = answers(engine, base_recipe, prompts)
    for merge, expected in zip(merges, fresh_answers, strict=True):
        got = answers(engine, merge, prompts)
        assert got == expected
        assert got != first, "the merge must change answers, or this test shows nothing"
    assert answers(engine, base_recipe, prompts) == first


def test_without_the_prefix_cache_reset_answers_would_be_stale(
    engine, base_recipe, merges, fresh_answers, prompts, monkeypatch
):
    """The control of the golden test: it fails when the reset is left out."""
    answers(engine, base_recipe, prompts)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        stale = answers(engine, merges[0], prompts)
    assert stale != fresh_answers[0]
    assert answers(engine, merges[0], prompts) == fresh_answers[0]


def test_a_refused_cache_reset_is_an_error(engine, merges, monkeypatch):
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(EngineError, match="prefix cache must be emptied"):
        engine.load(merges[0])
    with pytest.raises(EngineError, match="must be loaded"):
        engine.generate([])


def test_a_foreign_weight_version_is_refused(engine, base_recipe, prompts):
    engine.load(base_recipe)
    engine._llm.llm_engine.set_weight_version("somebody-else")
    with pytest.raises(EngineError, match="somebody-else"):
        engine.generate(prompts[:1])


def test_broken_candidates_do_not_spoil_those_after_them(engine, refs, base_recipe, prompts):
    first = answers(engine, base_recipe, prompts)
    huge = {"math": 1e30, "safety": 1e30}
    engine.load(recipe(refs, TaskArithmetic(name="task_arithmetic", weights=huge)))
    engine.generate(prompts)  # finite weights, activations that overflow
    assert answers(engine, base_recipe, prompts) == first
    beyond = {"math": 1e38, "safety": 1e38}
    with pytest.raises(MergeError, match="finite"):
        engine.load(
            recipe(refs, TaskArithmetic(name="task_arithmetic", weights=beyond, **{"lambda": 1e5}))
        )
    assert answers(engine, base_recipe, prompts) == first


def test_allowed_tokens_restrict_the_answer(engine, base_recipe, prompts):
    engine.load(base_recipe)
    restricted = [
        TokenizedPrompt(p.sample_id, p.token_ids, 1, allowed_ids=(17, 23)) for p in prompts
    ]
    for response in engine.generate(restricted):
        assert response.num_tokens == 1


def test_tensor_parallel_workers_merge_their_own_shards(
    refs, base_recipe, merges, fresh_answers, prompts
):
    import os

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two workers need a core each")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    spec = SPEC.model_copy(update={"tensor_parallel_size": 2})
    engine = start(models_recipe(*refs), spec, cpu_ids=f"{first}|{second}")
    try:
        assert answers(engine, merges[0], prompts) == fresh_answers[0]
    finally:
        engine.close()
