import shutil

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import ConfigError, EngineError, ScoringError
from safemerge.generation.pool import (
    CUT,
    TOO_LONG,
    ModelPool,
    chat_formats,
    model_groups,
    outcomes,
)
from safemerge.generation.record import Ask
from safemerge.records import Response
from safemerge.scoring.judge import Judgement, RefusalProxyJudge, unscored
from safemerge.testing.engine import ScriptedEngine
from safemerge.testing.pico import pico_base

REFUSAL = "I can't help with that."


def ref(name, folder):
    return CheckpointRef(name=name, path=str(folder))


@pytest.fixture(scope="module")
def models(tiny_base, tiny_experts, tmp_path_factory):
    other = pico_base(tmp_path_factory.mktemp("other") / "deep", num_layers=3)
    return [
        ref("base", tiny_base),
        ref("deep", other),
        *(ref(name, folder) for name, folder in tiny_experts.items()),
    ]


@pytest.fixture
def started():
    return []


@pytest.fixture
def pool(models, started):
    def start(recipe):
        engine = ScriptedEngine(lambda candidate, prompt: f"{candidate} {prompt.sample_id}")
        started.append((recipe, engine))
        return engine

    return ModelPool(models, start_engine=start, max_model_len=64)


def asks(*ids, **changes):
    return [Ask(id=name, prompt="What now?", max_tokens=4, **changes) for name in ids]


def test_models_of_one_architecture_share_an_engine(models):
    groups = model_groups(models)
    assert [[item.name for item in group] for group in groups] == [
        ["base", "math", "safety"],
        ["deep"],
    ]


def test_a_model_with_another_end_of_turn_has_its_own_engine(tiny_base, tmp_path):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|endoftext|>"))
    groups = model_groups([ref("base", tiny_base), ref("other", other)])
    assert len(groups) == 2


def test_an_adapter_alone_is_refused(tiny_base, tiny_adapter):
    with pytest.raises(
        ConfigError, match=r"models\.lora: must be a whole checkpoint; got the LoRA"
    ):
        model_groups([ref("base", tiny_base), ref("lora", tiny_adapter)])


def test_engines_are_started_once_a_group_and_models_swapped_live(pool, started):
    replies = {
        name: [item.text for item in pool.reply(name, asks("q1", "q2"))]
        for name in ("base", "math", "safety", "deep", "math")
    }
    assert [recipe.base.name for recipe, _ in started] == ["base", "deep", "base"]
    assert [engine.closed for _, engine in started] == [True, True, False]
    assert len({texts[0] for texts in replies.values()}) == 4
    assert len(started[0][1].loaded) == 3


def test_a_model_that_is_loaded_is_not_loaded_again(pool, started):
    pool.reply("math", asks("q1"))
    pool.reply("math", asks("q2"))
    assert len(started[0][1].loaded) == 1


def test_sampling_reaches_the_engine_and_greedy_is_the_default(pool, started):
    pool.reply("base", [*asks("q1"), *asks("q2", temperature=0.7, top_p=0.9, seed=11)])
    ((greedy, drawn),) = started[0][1].asked
    assert greedy.sampling is None
    assert vars(drawn.sampling) == {"temperature": 0.7, "top_p": 0.9, "seed": 11}


def test_what_exceeds_the_context_is_not_asked(pool):
    long = Ask(id="long", prompt="word " * 80, max_tokens=4)
    replies = pool.reply("base", [long, *asks("q1")])
    assert replies[0] is None
    found = outcomes("answer", [long, *asks("q1")], replies)
    assert [item.dropped for item in found] == [TOO_LONG, None]


def test_an_engine_that_died_is_started_anew(models):
    engines = [
        ScriptedEngine(lambda *_: "", generate_error=EngineError("vllm: gone")),
        ScriptedEngine(lambda *_: "fine now"),
    ]
    waiting = list(engines)
    pool = ModelPool(models, start_engine=lambda _: waiting.pop(0), max_model_len=64)
    with pytest.raises(EngineError, match="gone"):
        pool.reply("base", asks("q1"))
    assert engines[0].closed
    assert [item.text for item in pool.reply("base", asks("q1"))] == ["fine now"]


def test_an_engine_that_leaves_a_prompt_out_is_an_error(models):
    engine = ScriptedEngine(lambda *_: "text", drop=["q2"])
    pool = ModelPool(models, start_engine=lambda _: engine, max_model_len=64)
    with pytest.raises(EngineError, match="every prompt must be answered; got 1 of 2"):
        pool.reply("base", asks("q1", "q2"))


# --- what is kept -------------------------------------------------------------------------


class ScriptedJudge:
    name, threshold = "scripted", 0.5

    def __init__(self, *judgements):
        self.judgements = judgements
        self.seen = []

    def judge(self, exchanges):
        self.seen += exchanges
        return list(self.judgements)


def said(*texts):
    return [
        Response(sample_id=f"q{i}", text=text, num_tokens=1, finished=True, candidate="c")
        for i, text in enumerate(texts)
    ]


def kept(judge, *texts):
    return outcomes(
        "refuse", asks(*(f"q{i}" for i in range(len(texts)))), said(*texts), judge=judge
    )


def test_only_refusals_are_kept_by_the_detector():
    found = kept(RefusalProxyJudge(), REFUSAL, "Sure, first you", "", REFUSAL)
    assert [item.text for item in found] == [REFUSAL, None, None, REFUSAL]
    assert [item.dropped for item in found] == [None, "no refusal", "incoherent answer", None]


def test_an_answer_that_is_no_refusal_is_in_no_outcome():
    judge = ScriptedJudge(
        Judgement(0.9), Judgement(0.1), unscored("timed out"), Judgement(0.9, refusal=True)
    )
    found = kept(judge, "secret one here", "secret two here", "secret three here", REFUSAL)
    assert "secret" not in "".join(item.model_dump_json() for item in found)
    assert [item.dropped for item in found] == [
        "no refusal", "no refusal", "unscored: timed out", "flagged by the judge",
    ]  # fmt: skip
    assert [item.unscored for item in found] == [False, False, True, False]


def test_a_judge_that_knows_refusals_is_believed():
    judge = ScriptedJudge(Judgement(0.0, refusal=True), Judgement(0.0, refusal=False))
    found = kept(judge, "That is not for me to say.", REFUSAL)
    assert [item.text for item in found] == ["That is not for me to say.", None]


def test_a_judge_of_harm_alone_and_the_detector_must_agree():
    judge = ScriptedJudge(Judgement(0.1), Judgement(0.1), Judgement(0.8))
    found = kept(judge, REFUSAL, "Birds are nice.", REFUSAL)
    assert [item.text for item in found] == [REFUSAL, None, None]


def test_the_judge_sees_question_and_answer():
    judge = ScriptedJudge(Judgement(0.0))
    kept(judge, REFUSAL)
    assert [(item.prompt, item.response) for item in judge.seen] == [("What now?", REFUSAL)]


def test_refusals_need_a_judge():
    with pytest.raises(ScoringError, match="must be marked by a judge; got none"):
        kept(None, REFUSAL)


def test_drafts_become_questions():
    found = outcomes("draft", asks("q0", "q1"), said("1. How do birds fly?", "finance"))
    assert [item.text for item in found] == ["How do birds fly?", None]
    assert found[1].dropped == "no question"


def test_degenerate_answers_are_dropped():
    found = outcomes("answer", asks("q0", "q1"), said(" finance\n", "no no no no no"))
    assert [(item.text, item.dropped) for item in found] == [
        ("finance", None),
        (None, "incoherent answer"),
    ]


def cut(*texts):
    return [item.model_copy(update={"finished": False}) for item in said(*texts)]


def test_an_experts_answer_that_was_cut_is_dropped_and_the_reason_counted():
    replies = [*said("finance"), *cut("A bird is an animal that")]
    found = outcomes("answer", asks("q0", "q1"), replies)
    assert [(item.text, item.dropped) for item in found] == [("finance", None), (None, CUT)]


def test_a_refusal_that_was_cut_is_judged_but_not_drawn():
    judge = ScriptedJudge(Judgement(0.1), Judgement(0.9), unscored("timed out"))
    found = outcomes("refuse", asks("q0", "q1", "q2"), cut(REFUSAL, REFUSAL, REFUSAL), judge=judge)
    assert len(judge.seen) == 3
    assert [item.dropped for item in found] == [CUT, "flagged by the judge", "unscored: timed out"]
    assert [item.unscored for item in found] == [False, False, True]


def test_template_arguments_go_to_the_models_whose_template_reads_them(tiny_base, tmp_path):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ 'deep' if think is defined and think }}")
    models = [ref("base", tiny_base), ref("other", other)]
    found = chat_formats(models, {"date": "2026-01-31", "think": True})
    assert [sorted(found[name].arguments) for name in ("base", "other")] == [
        ["date"],
        ["date", "think"],
    ]
    with pytest.raises(
        ConfigError, match=r"chat\.thinks: must be an argument that a model's chat"
    ):
        chat_formats(models, {"thinks": True})
