"""Real vLLM: the live swap against fresh engines, log-likelihoods against transformers, drafts."""

import os
import shutil

import pytest
import torch

from safemerge.config.checkpoint import CheckpointRef, Neighbours, interpolated
from safemerge.config.method import TsvM
from safemerge.config.models import models_recipe
from safemerge.config.recipe import DareTies, Linear, MergeRecipe, TaskArithmetic
from safemerge.config.step import Resta
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Sampling, TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import CheckpointError, EngineError, MergeError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged
from safemerge.weights.fingerprint import fingerprint
from tests.integration.driving import VLLM_MARKS

pytest.importorskip("vllm")
pytestmark = VLLM_MARKS

SPEC = EvaluatorSpec(max_model_len=256, max_num_seqs=16, kv_cache_gib=0.1, dtype="float32")
TOLERANCE = 1e-4
"""Of a sum of log-probabilities, relative, in float32: vLLM's kernels add up in another order."""


def start(models, spec=SPEC, cpu_ids="0", **settings):
    return start_engine(models, spec, cpu_ids=cpu_ids, **settings)


@pytest.fixture(scope="module")
def refs(tiny_base, tiny_experts):
    base = CheckpointRef(name="base", path=str(tiny_base))
    return base, [CheckpointRef(name=n, path=str(p)) for n, p in tiny_experts.items()]


@pytest.fixture(scope="module")
def models(refs):
    return models_recipe(*refs)


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
        fresh = start(models, in_process=True)
        fresh.load(models)
        answers.append([response.text for response in fresh.generate(prompts)])
        fresh.close()
    return answers


@pytest.fixture(scope="module")
def sharded_answers(models, merges, prompts):
    """Answers of two tensor-parallel workers; None where there are no two cores."""
    if len(os.sched_getaffinity(0)) < 2:
        return None
    first, second = sorted(os.sched_getaffinity(0))[:2]
    spec = SPEC.model_copy(update={"tensor_parallel_size": 2})
    engine = start(models, spec, cpu_ids=f"{first}|{second}")
    try:
        return answers(engine, merges[0], prompts)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(models, fresh_answers, sharded_answers):
    """As a replica has it, in this process, which must have no other: those come before."""
    engine = start(models, in_process=True)
    yield engine
    engine.close()


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


def test_a_model_that_came_after_the_start_is_opened_by_its_fingerprint(
    engine, refs, merges, fresh_answers, prompts, tmp_path
):
    merge = merges[0]
    write_merged(merge, ResidentCheckpoints.open(merge).checkpoints, tmp_path / "late")
    base, (math, *_) = refs
    late = CheckpointRef(name="late", path=str(tmp_path / "late"))

    def whole(ref):
        weights = {"late": 1.0}
        return recipe((base, [ref]), Linear(name="linear", weights=weights, normalize=True))

    with pytest.raises(MergeError, match="model 'late' must be the one held"):
        engine.load(whole(late))
    known = late.model_copy(update={"digest": fingerprint(late.path)})
    assert answers(engine, whole(known), prompts) == fresh_answers[0]
    ends = Neighbours(low=known, high=math, share=0.0)
    assert answers(engine, whole(interpolated("late", ends)), prompts) == fresh_answers[0]


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


def test_tensor_parallel_workers_merge_their_own_shards(sharded_answers, fresh_answers):
    if sharded_answers is None:
        pytest.skip("two workers need a core each")
    assert sharded_answers == fresh_answers[0]


@pytest.fixture(scope="module")
def merge(models):
    weights = {"math": 3.0, "safety": -2.0}
    return MergeRecipe(
        base=models.base,
        experts=models.experts,
        method=TaskArithmetic(name="task_arithmetic", weights=weights),
    )


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


def test_a_special_token_ends_answers_as_in_the_transformers_engine(
    engine, models, merge, tiny_base
):
    chat = ChatFormat(tiny_base)
    ids, stop = tuple(chat.prompt_ids("Tell me more.")), ("<|im_start|>",)
    (special,) = chat.stop_ids(stop)
    asked = [
        TokenizedPrompt("cut", ids, 6, (special,), stop, stop_ids=(special,)),
        TokenizedPrompt("whole", ids, 6, (special,), stop),
    ]
    engine.load(merge)
    reference = TransformersEngine(models, SPEC)
    reference.load(merge)
    for answers in (engine.generate(asked), reference.generate(asked)):
        told = [(found.text, found.num_tokens, found.finished) for found in answers]
        assert told == [("", 1, True), ("", 6, False)]
    reference.close()


def test_drafts_hang_on_their_seed_and_not_on_the_batch(engine, merge, tiny_base):
    engine.load(merge)
    ids = tuple(ChatFormat(tiny_base).prompt_ids("Write a question."))
    prompts = [
        TokenizedPrompt(f"d{seed}", ids, 12, sampling=Sampling(1.0, 0.9, seed))
        for seed in (1, 2, 1)
    ]
    first, second, again = (response.text for response in engine.generate(prompts))
    (alone,) = engine.generate(prompts[:1])
    assert first == again == alone.text
    assert first != second


def test_an_engine_is_rebuilt_in_the_same_process(engine, models, merge, prompts):
    """Last: it ends the module's engine, as a replica does with one that failed."""
    expected = answers(engine, merge, prompts)
    threads = torch.get_num_threads()
    engine.close()
    assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid())
    rebuilt = start(models, in_process=True)
    try:
        assert os.sched_getaffinity(0) == {0}
        assert answers(rebuilt, merge, prompts) == expected
    finally:
        rebuilt.close()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1, "vLLM's own must be gone"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("in_process", [True, False])
def test_a_file_that_changes_under_a_worker_or_before_it_starts_again_is_named(
    refs, prompts, tmp_path, in_process
):
    own = [
        ref.model_copy(
            update={
                "path": str(shutil.copytree(str(ref.path), tmp_path / ref.name)),
                "digest": fingerprint(str(ref.path)),
            }
        )
        for ref in (refs[0], *refs[1])
    ]
    asked = recipe((own[0], own[1:]), TaskArithmetic(name="task_arithmetic", weights={"math": 1}))
    engine = start(asked, in_process=in_process)
    try:
        engine.load(asked)
        path = tmp_path / "math" / "model.safetensors"
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"math/model\.safetensors: must stay as it was"):
            engine.load(asked)
        with pytest.raises(EngineError, match="a candidate must be loaded"):
            engine.generate(prompts[:1])
    finally:
        engine.close()
    shutil.copyfile(str(refs[1][1].path) + "/model.safetensors", path)
    with pytest.raises(CheckpointError, match="model 'math': weights must have the fingerprint"):
        start(asked, in_process=in_process)
