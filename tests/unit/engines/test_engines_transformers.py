import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines import transformers_engine
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Sampling, TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import (
    CheckpointChangedError,
    CheckpointError,
    CheckpointMismatchError,
    DataError,
    EngineError,
    MergeError,
)
from safemerge.testing.pico import pico_base, pico_expert, pico_tokenizer

TEXTS = ("Hi", "What is the meaning of this?", "One two three four five six", "A b", "zzz " * 9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    # NOTE: large weights, so that greedy answers differ between prompts and between candidates.
    root = tmp_path_factory.mktemp("engine")
    base = pico_base(root / "base", seed=5)
    return {
        "base": base,
        **{n: pico_expert(base, root / n, seed=s, scale=0.3) for s, n in enumerate(("a", "b"), 6)},
    }


def recipe(folders, **weights):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": str(folders["base"])},
            "experts": [{"name": name, "path": str(folders[name])} for name in ("a", "b")],
            "method": {"name": "task_arithmetic", "weights": weights},
        }
    )


@pytest.fixture(scope="module")
def models(folders):
    return recipe(folders, a=1.0)


@pytest.fixture(scope="module")
def engine(models):
    engine = TransformersEngine(models, EvaluatorSpec(dtype="float32", max_num_seqs=2))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(folders):
    chat = ChatFormat(folders["base"])
    return [
        TokenizedPrompt(f"s:{i}", tuple(chat.prompt_ids(text)), 6 + i)
        for i, text in enumerate(TEXTS)
    ]


def model_of(folders, weights):
    """A plain model with base + sum of weight x (expert - base), built from the files."""
    base = load_file(folders["base"] / "model.safetensors")
    merged = {
        name: tensor
        + sum(
            weight * (load_file(folders[expert] / "model.safetensors")[name] - tensor)
            for expert, weight in weights.items()
        )
        for name, tensor in base.items()
    }
    model = AutoModelForCausalLM.from_pretrained(folders["base"]).eval()
    missing, unexpected = model.load_state_dict(merged, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return model


def greedy(model, prompt, end_id):
    """One prompt, no batch, no cache, no library loop: the most probable token each time."""
    ids, answer = list(prompt.token_ids), []
    for _ in range(prompt.max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        allowed = prompt.allowed_ids or range(len(logits))
        token = max(allowed, key=lambda index: float(logits[index]))
        if token == end_id:
            return answer, True
        ids.append(token)
        answer.append(token)
    return answer, False


def texts(responses):
    return [response.text for response in responses]


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 0.4, "b": -0.7}])
def test_answers_are_those_of_a_plain_greedy_loop(engine, folders, prompts, weights):
    asked = recipe(folders, **weights)
    engine.load(asked)
    chat = ChatFormat(folders["base"])
    model = model_of(folders, weights)
    for prompt, response in zip(prompts, engine.generate(prompts), strict=True):
        tokens, finished = greedy(model, prompt, chat.end_of_turn_id())
        assert response.text == chat.tokenizer.decode(tokens, skip_special_tokens=True)
        assert (response.finished, response.num_tokens) == (finished, len(tokens) + finished)
        assert (response.sample_id, response.candidate) == (prompt.sample_id, asked.digest)


def test_an_answer_that_ends_itself_is_finished_and_counts_its_end(engine, folders, prompts):
    engine.load(recipe(folders, a=0.0))
    end = ChatFormat(folders["base"]).end_of_turn_id()
    forced = TokenizedPrompt("s:0", prompts[0].token_ids, 5, allowed_ids=(end,))
    (response,) = engine.generate([forced])
    assert (response.text, response.num_tokens, response.finished) == ("", 1, True)


def test_swapping_back_restores_the_first_answers(engine, folders, prompts):
    first, second = recipe(folders, a=1.0), recipe(folders, b=1.0)
    engine.load(first)
    before = engine.generate(prompts)
    engine.load(second)
    between = engine.generate(prompts)
    engine.load(first)
    assert engine.generate(prompts) == before
    assert texts(between) != texts(before)


def test_answers_do_not_depend_on_the_batch_or_the_order(engine, folders, prompts):
    engine.load(recipe(folders, a=1.0, b=0.5))
    together = engine.generate(prompts)
    assert [engine.generate([prompt])[0] for prompt in prompts] == together
    assert engine.generate(prompts[::-1]) == together[::-1]
    assert engine.generate([]) == []


def test_restricted_answers_are_the_most_probable_allowed_token(engine, folders, prompts):
    weights = {"a": 0.4, "b": -0.7}
    engine.load(recipe(folders, **weights))
    model = model_of(folders, weights)
    allowed = (40, 170, 301)
    asked = [TokenizedPrompt(p.sample_id, p.token_ids, 1, allowed) for p in prompts]
    free = TokenizedPrompt("free", prompts[0].token_ids, 3)
    chat = ChatFormat(folders["base"])
    for prompt, response in zip([*asked, free], engine.generate([*asked, free]), strict=True):
        tokens, _ = greedy(model, prompt, chat.end_of_turn_id())
        assert response.text == chat.tokenizer.decode(tokens)
        assert response.num_tokens == len(tokens)
    assert {response.num_tokens for response in engine.generate(asked)} == {1}


def test_nothing_is_answered_before_a_candidate_is_loaded(models, prompts):
    fresh = TransformersEngine(models, EvaluatorSpec(dtype="float32"))
    with pytest.raises(EngineError, match="engine: a candidate must be loaded before prompts are"):
        fresh.generate(prompts)
    fresh.load(models)
    assert len(fresh.generate(prompts)) == len(prompts)
    fresh.close()
    fresh.close()
    with pytest.raises(EngineError, match="a candidate must be loaded"):
        fresh.generate(prompts)


def test_after_a_failed_merge_nothing_is_answered_until_the_next_load(engine, folders, prompts):
    good = recipe(folders, a=1.0)
    engine.load(good)
    before = engine.generate(prompts)
    with pytest.raises(MergeError, match="finite"):
        engine.load(recipe(folders, a=1e39))
    with pytest.raises(EngineError, match="a candidate must be loaded"):
        engine.generate(prompts)
    engine.load(good)
    assert engine.generate(prompts) == before


PAIRS = [(0, (40, 170, 301)), (0, (41,)), (1, (7, 7, 8, 300)), (4, (170, 11)), (2, (40, 170, 301))]


@pytest.fixture(scope="module")
def continuations(prompts):
    return [
        Continuation(f"c:{i}", prompts[place].token_ids, ids)
        for i, (place, ids) in enumerate(PAIRS)
    ]


def log_probability(model, asked):
    """One token after the other, each from a forward pass of its own."""
    ids, total, is_greedy = list(asked.context_ids), 0.0, True
    for token in asked.continuation_ids:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        is_greedy = is_greedy and int(logits.argmax()) == token
        ids.append(token)
    return total, is_greedy


def close_to(expected):
    return [(pytest.approx(logprob, rel=1e-6), is_greedy) for logprob, is_greedy in expected]


@pytest.mark.parametrize("logits_bytes", [1, 2**28])
def test_likelihoods_are_those_of_a_plain_model_token_by_token(
    engine, folders, continuations, logits_bytes, monkeypatch
):
    weights = {"a": 0.4, "b": -0.7}
    asked = recipe(folders, **weights)
    engine.load(asked)
    monkeypatch.setattr(transformers_engine, "LOGITS_BYTES", logits_bytes)
    found = engine.loglikelihoods(continuations)
    model = model_of(folders, weights)
    assert [(item.logprob, item.is_greedy) for item in found] == close_to(
        log_probability(model, item) for item in continuations
    )
    assert [item.sample_id for item in found] == [item.sample_id for item in continuations]
    assert [item.num_tokens for item in found] == [len(ids) for _, ids in PAIRS]
    assert {item.candidate for item in found} == {asked.digest}
    assert engine.loglikelihoods([]) == []


def test_a_greedy_answer_is_a_greedy_continuation_and_another_is_not(engine, folders, prompts):
    weights = {"a": 1.0}
    engine.load(recipe(folders, **weights))
    end = ChatFormat(folders["base"]).end_of_turn_id()
    tokens, _ = greedy(model_of(folders, weights), prompts[1], end)
    other = (*tokens[:-1], (tokens[-1] + 1) % 512)
    asked = [Continuation("c", prompts[1].token_ids, ids) for ids in (tuple(tokens), other)]
    first, second = engine.loglikelihoods(asked)
    assert (first.is_greedy, second.is_greedy) == (True, False)
    assert second.logprob < first.logprob < 0.0


def test_nothing_is_scored_before_a_candidate_is_loaded(engine, folders, continuations):
    with pytest.raises(MergeError, match="finite"):
        engine.load(recipe(folders, a=1e39))
    with pytest.raises(EngineError, match="engine: a candidate must be loaded before texts are"):
        engine.loglikelihoods(continuations)


@pytest.mark.parametrize(("context", "continuation"), [((), (1,)), ((1,), ())])
def test_a_continuation_needs_a_token_on_either_side(context, continuation):
    with pytest.raises(DataError, match=r"must have a token each; got \d and \d for c:0"):
        Continuation("c:0", context, continuation)


def test_a_stop_text_ends_the_answer_and_is_cut_off(engine, folders, prompts):
    engine.load(recipe(folders, a=1.0))
    long = replace(prompts[1], max_tokens=24)
    (whole,) = engine.generate([long])
    stop = whole.text[5:7]
    cut = whole.text[: whole.text.index(stop)]
    asked = [replace(long, stop=(stop, "never said")), replace(long, stop=("never said",))]
    first, second = engine.generate(asked)
    assert (first.text, first.finished) == (cut, True)
    assert first.num_tokens < whole.num_tokens
    assert second == whole


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(engine, folders, prompts):
    weights = {"a": 1.0}
    engine.load(recipe(folders, **weights))
    long = replace(prompts[1], max_tokens=24)
    chat = ChatFormat(folders["base"])
    tokens, _ = greedy(model_of(folders, weights), long, chat.end_of_turn_id())
    stop = tokens[6]
    before = tokens[: tokens.index(stop)]
    never = next(i for i in range(200) if i not in tokens and i != chat.end_of_turn_id())
    asked = [replace(long, stop_ids=(never, stop)), replace(long, stop_ids=(never,)), long]
    first, second, third = engine.generate(asked)
    assert first.text == chat.tokenizer.decode(before, skip_special_tokens=True)
    assert (first.finished, first.num_tokens) == (True, len(before) + 1)
    assert second == third, "other answers are as before"


def test_an_expert_of_other_ids_answers_as_before_in_the_bases_vocabulary(
    folders, models, engine, prompts, tmp_path
):
    from safemerge.testing.pico import pico_permuted, pico_with_tokens

    engine.load(models)
    expected = [response.text for response in engine.generate(prompts)]
    moved = pico_permuted(folders["a"], tmp_path / "moved", seed=1)
    other = recipe({**folders, "a": moved}, a=1.0)
    by_token = other.model_copy(update={"vocabulary": "base"})
    engine_of_base = TransformersEngine(by_token, EvaluatorSpec(dtype="float32"))
    engine_of_base.load(by_token)
    assert [response.text for response in engine_of_base.generate(prompts)] == expected
    more = pico_with_tokens(folders["a"], tmp_path / "more", ["<|a|>"], seed=1)
    union = recipe({**folders, "a": more}, a=1.0).model_copy(update={"vocabulary": "union"})
    with pytest.raises(CheckpointMismatchError, match="an engine's model keeps the base's shape"):
        TransformersEngine(union, EvaluatorSpec(dtype="float32"))


def test_sampled_answers_hang_on_their_seed_and_not_on_the_batch(engine, models, prompts):
    engine.load(models)

    def drawn(prompt, seed):
        return replace(prompt, sampling=Sampling(1.5, 1.0, seed))

    greedy = engine.generate(prompts)
    batch = [drawn(prompts[0], 1), drawn(prompts[0], 2), prompts[0], drawn(prompts[1], 1)]
    named = [replace(prompt, sample_id=f"n{i}") for i, prompt in enumerate(batch)]
    found = [response.text for response in engine.generate(named)]
    assert found[0] == engine.generate([drawn(prompts[0], 1)])[0].text
    assert len({found[0], found[1], found[2]}) == 3
    assert found[2] == greedy[0].text


@pytest.mark.parametrize("change", ["edited", "cut"])
def test_a_file_that_changes_under_an_engine_gives_no_answer(folders, prompts, tmp_path, change):
    own = {name: shutil.copytree(path, tmp_path / name) for name, path in folders.items()}
    asked = recipe(own, a=1.0, b=0.5)
    engine = TransformersEngine(asked, EvaluatorSpec(dtype="float32", max_num_seqs=2))
    engine.load(asked)
    path = own["b"] / "model.safetensors"
    if change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointChangedError, match=r"b/model\.safetensors: must stay"):
        engine.load(asked)
    with pytest.raises(EngineError, match="a candidate must be loaded"):
        engine.generate(prompts[:1])
    engine.close()
    refs = [ref.model_copy(update={"digest": "0" * 16}) for ref in asked.experts]
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors|model 'a': weights must"):
        start_engine(
            asked.model_copy(update={"experts": refs}), EvaluatorSpec(engine="transformers")
        )


def test_experts_stored_one_by_one_reach_a_model_that_holds_them_fused(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MixtralConfig(
        vocab_size=512, num_attention_heads=4, num_local_experts=2, eos_token_id=2, **sizes
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    pico_tokenizer().save_pretrained(tmp_path / "base")
    moved = pico_expert(tmp_path / "base", tmp_path / "a", seed=1, scale=0.3)
    folders = {"base": tmp_path / "base", "a": moved, "b": moved}
    engine = TransformersEngine(recipe(folders, a=1.0), EvaluatorSpec(dtype="float32"))
    engine.load(recipe(folders, a=1.0))
    expected = MixtralForCausalLM.from_pretrained(moved).state_dict()
    for name, tensor in engine._model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    engine.close()
