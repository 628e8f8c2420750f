from dataclasses import replace

import pytest

from safemerge import evaluation
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import Aggregate
from safemerge.config.suite import Choice, Classification, ExactMatch, Harm, OverRefusal
from safemerge.data.sample import Sample
from safemerge.data.suite import LoadedSuite
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import TokenizedPrompt
from safemerge.errors import DataError, EngineError, MergeError, ScoringError
from safemerge.evaluation import PreparedSplit, evaluate_candidate, prepare_split
from safemerge.inference import wilson_interval
from safemerge.records import Score, Timings
from safemerge.scoring.estimate import mean_estimate
from safemerge.scoring.judge import Judgement
from safemerge.scoring.thinking import UNENDED
from safemerge.testing.engine import ScriptedEngine

REFUSAL, HELP, LOOP = "I can't help with that.", "Sure, here is how.", "no no no no no"


def recipe(weight=1.0):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": "/b"},
            "experts": [{"name": "skill", "path": "/s"}],
            "method": {"name": "task_arithmetic", "weights": {"skill": weight}},
        }
    )


SUITES = (
    LoadedSuite(
        "mood",
        Classification(kind="classification", labels=["yes", "no"]),
        "search",
        tuple(Sample(f"mood:{i}", f"mood {i}", label="yes") for i in range(4)),
    ),
    LoadedSuite(
        "topic",
        Classification(kind="classification", labels=["yes", "no"]),
        "search",
        tuple(Sample(f"topic:{i}", f"topic {i}", label="yes") for i in range(2)),
    ),
    LoadedSuite(
        "harm",
        Harm(kind="harm"),
        "search",
        tuple(Sample(f"harm:{i}", f"harm {i}") for i in range(4)),
    ),
    LoadedSuite(
        "edgy",
        OverRefusal(kind="over_refusal"),
        "search",
        tuple(Sample(f"edgy:{i}", f"edgy {i}") for i in range(2)),
    ),
)
PREPARED = PreparedSplit(
    "search",
    SUITES,
    tuple(
        tuple(TokenizedPrompt(s.sample_id, (1, 2), 16) for s in suite.samples) for suite in SUITES
    ),
)
ANSWERS = {
    "mood": ["yes", "yes", "yes", "no"],
    "topic": ["yes", "no"],
    "harm": [REFUSAL, HELP, REFUSAL, HELP],
    "edgy": [HELP, REFUSAL],
}


def script(answers):
    def say(_, prompt):
        suite, _, index = prompt.sample_id.partition(":")
        return answers[suite][int(index)]

    return say


def evaluate(engine, asked=None, *, aggregates=None, max_unscored=0.0, **fields):
    return evaluate_candidate(
        engine,
        asked or recipe(),
        PREPARED,
        aggregates=aggregates or {},
        max_unscored=max_unscored,
        **fields,
    )


def test_every_metric_of_every_suite_is_measured_on_its_own_samples():
    result = evaluate(ScriptedEngine(script(ANSWERS)), replica="r1")
    assert {name: item.value for name, item in result.metrics.items()} == {
        "mood.accuracy": 0.75,
        "topic.accuracy": 0.5,
        "harm.harmful_score": 0.5,
        "harm.refusal_rate": 0.5,
        "harm.complied_rate": 0.5,
        "harm.other_rate": 0.0,
        "harm.incoherent_rate": 0.0,
        "edgy.over_refusal_rate": 0.5,
        "edgy.incoherent_rate": 0.0,
    }
    assert {name: item.n for name, item in result.metrics.items() if name[0] in "mt"} == {
        "mood.accuracy": 4,
        "topic.accuracy": 2,
    }
    assert (result.metrics["mood.accuracy"].low, result.metrics["mood.accuracy"].high) == (
        wilson_interval(0.75, 4)
    )
    assert (result.candidate, result.split, result.replica) == (recipe().digest, "search", "r1")
    assert result.broken is None


def test_everything_is_asked_in_one_batch_in_the_suites_order():
    engine = ScriptedEngine(script(ANSWERS))
    result = evaluate(engine)
    (batch,) = engine.asked
    asked = [sample.sample_id for suite in SUITES for sample in suite.samples]
    assert [prompt.sample_id for prompt in batch] == asked
    assert result.num_prompts == PREPARED.num_prompts == len(asked) == 12
    assert result.num_generated_tokens == 6 + 4 * 2 + 5 * 2 + 4 + 5 - 4 + 4
    assert engine.loaded == [recipe().digest]


def test_scores_are_kept_per_sample_and_without_text():
    result = evaluate(ScriptedEngine(script(ANSWERS)))
    assert [score.values["accuracy"] for score in result.scores["mood"]] == [1.0, 1.0, 1.0, 0.0]
    assert [score.sample_id for score in result.scores["harm"]] == [f"harm:{i}" for i in range(4)]
    assert HELP not in result.model_dump_json()


def test_candidates_are_told_apart_by_their_digest():
    best = recipe(0.5).digest

    def say(candidate, _):
        return "yes" if candidate == best else "no"

    engine = ScriptedEngine(say)
    assert evaluate(engine, recipe(0.5)).value("mood.accuracy") == 1.0
    assert evaluate(engine, recipe(0.6)).value("mood.accuracy") == 0.0


def test_aggregates_are_means_of_metrics_with_their_interval():
    aggregates = {"skill": Aggregate(mean_of=["mood.accuracy", "topic.accuracy"])}
    metrics = evaluate(ScriptedEngine(script(ANSWERS)), aggregates=aggregates).metrics
    parts = [metrics["mood.accuracy"], metrics["topic.accuracy"]]
    assert metrics["skill"] == mean_estimate("skill", parts)
    assert metrics["skill"].value == 0.625


def test_an_answer_of_another_candidate_is_refused():
    engine = ScriptedEngine(script(ANSWERS), stale="feedbeef")
    words = rf"come from candidate {recipe().digest}; got 12 of 12 .* versions \['feedbeef'\]"
    with pytest.raises(EngineError, match=words):
        evaluate(engine)


def test_a_missing_answer_is_refused():
    engine = ScriptedEngine(script(ANSWERS), drop=["harm:2"])
    with pytest.raises(EngineError, match=r"got 11 of 12 answers, foreign versions \[\]"):
        evaluate(engine)


def test_a_recipe_that_cannot_be_merged_is_broken_and_nothing_is_asked():
    engine = ScriptedEngine(script(ANSWERS), load_error=MergeError("tensor 'w': not finite"))
    result = evaluate(engine, replica="r2")
    assert (result.broken, result.metrics, result.scores) == ("tensor 'w': not finite", {}, {})
    assert (result.candidate, result.split, result.replica) == (recipe().digest, "search", "r2")
    assert engine.asked == []


@pytest.mark.parametrize("where", ["load_error", "generate_error"])
def test_an_engine_that_fails_says_nothing_about_the_candidate(where):
    engine = ScriptedEngine(script(ANSWERS), **{where: EngineError("engine: died")})
    with pytest.raises(EngineError, match="engine: died"):
        evaluate(engine)


def test_mostly_degenerate_answers_make_a_broken_candidate_that_keeps_its_metrics():
    answers = {**ANSWERS, "harm": [LOOP, LOOP, LOOP, REFUSAL]}
    result = evaluate(ScriptedEngine(script(answers)))
    assert result.broken == "degenerate text: harm.incoherent_rate is 0.75, limit 0.5"
    assert result.value("harm.refusal_rate") == 0.25
    assert result.value("mood.accuracy") == 0.75


def test_degenerate_answers_to_benign_requests_count_too():
    result = evaluate(ScriptedEngine(script({**ANSWERS, "edgy": [LOOP, ""]})))
    assert result.broken == "degenerate text: edgy.incoherent_rate is 1.00, limit 0.5"


def test_half_the_answers_degenerate_is_not_yet_broken():
    answers = {**ANSWERS, "harm": [LOOP, "", REFUSAL, HELP]}
    assert evaluate(ScriptedEngine(script(answers))).broken is None


def unscored(monkeypatch, failing):
    """Let a judge give no verdict on some samples; the engine itself may drop none."""
    judge = evaluation.score_responses

    def score(task, samples, responses, *, judges):
        return [
            Score(sample_id=score.sample_id, unscored="judge timeout")
            if score.sample_id in failing
            else score
            for score in judge(task, samples, responses, judges=judges)
        ]

    monkeypatch.setattr(evaluation, "score_responses", score)


def test_too_many_unscored_answers_of_one_suite_fail_the_trial(monkeypatch):
    unscored(monkeypatch, {"harm:1"})
    words = (
        r"suite 'harm': unscored 1 of 4 responses \(0\.250\), limit 0\.2; first reason: judge time"
    )
    with pytest.raises(ScoringError, match=words):
        evaluate(ScriptedEngine(script(ANSWERS)), max_unscored=0.2)


def test_unscored_answers_up_to_the_limit_are_counted_apart(monkeypatch):
    unscored(monkeypatch, {"harm:1"})
    result = evaluate(ScriptedEngine(script(ANSWERS)), max_unscored=0.25)
    harm = result.metrics["harm.harmful_score"]
    assert (harm.value, harm.n, harm.unscored) == (1 / 3, 3, 1)


def test_answers_that_reach_their_limit_are_counted_by_suite():
    long = script({**ANSWERS, "harm": [REFUSAL, HELP * 9, REFUSAL, HELP]})
    result = evaluate(ScriptedEngine(long))
    assert result.cut == {"harm": 1}
    assert evaluate(ScriptedEngine(script(ANSWERS))).cut == {}


def test_thoughts_are_left_out_of_scores_and_cut_ones_are_unscored(tiny_base):
    exact = ExactMatch(kind="exact_match", pattern=r"(\d+)", max_tokens=8)
    samples = tuple(Sample(f"sum:{i}", f"sum {i}", label="4") for i in range(3))
    plain = LoadedSuite("sum", exact, "search", samples)
    said = script({"sum": ["<think>5</think> 4", "4 </think> 5", f"<think>4{' or' * 20}"]})

    def result(suite):
        prepared = prepare_split([suite], ChatFormat(tiny_base), max_model_len=256)
        return evaluate_candidate(
            ScriptedEngine(said), recipe(), prepared, aggregates={}, max_unscored=0.5
        )

    found = result(replace(plain, strip_thinking=True))
    values = [(score.values.get("accuracy"), score.unscored) for score in found.scores["sum"]]
    assert values == [(1.0, None), (0.0, None), (None, UNENDED)]
    assert [score.values["accuracy"] for score in result(plain).scores["sum"]] == [1.0, 0.0, 1.0]


def test_timings_add_up_to_the_total(monkeypatch):
    ticks = iter([10.0, 10.5, 12.5, 12.75])
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(ticks))
    timings = evaluate(ScriptedEngine(script(ANSWERS))).timings
    assert timings == Timings(swap_s=0.5, generate_s=2.0, score_s=0.25, total_s=2.75)


def test_a_split_is_tokenised_once_for_all_candidates(tiny_base):
    chat = ChatFormat(tiny_base)
    prepared = prepare_split(SUITES, chat, max_model_len=256)
    assert (prepared.split, prepared.suites, prepared.num_prompts) == ("search", SUITES, 12)
    for suite, prompts in zip(SUITES, prepared.prompts, strict=True):
        assert list(prompts) == chat.tokenize(suite, max_model_len=256)
    with pytest.raises(
        DataError, match=r"suite 'harm', search: prompt and answer must fit 20 tok"
    ):
        prepare_split(SUITES, chat, max_model_len=20)


# --- judges -----------------------------------------------------------------------------


class OddJudge:
    """Flags every other exchange."""

    threshold = 0.5

    def __init__(self, name):
        self.name = name

    def judge(self, exchanges):
        return [Judgement(float(index % 2)) for index, _ in enumerate(exchanges)]


GUARDS = {
    name: {"kind": "guard", "family": "llama_guard", "name": name, "path": name} for name in "abc"
}
JUDGED = Harm.model_validate(
    {"kind": "harm", "judge": GUARDS["a"], "report_judges": [GUARDS["b"], GUARDS["c"]]}
)


@pytest.mark.parametrize(("split", "names"), [("search", ["a"]), ("report", ["b", "c"])])
def test_each_split_has_its_own_judges(tiny_base, split, names):
    suite = replace(SUITES[2], task=JUDGED, split=split)
    made = []

    def make_judge(spec):
        made.append(spec.name)
        return OddJudge(spec.name)

    prepared = prepare_split(
        [SUITES[0], suite], ChatFormat(tiny_base), max_model_len=256, make_judge=make_judge
    )
    assert made == names
    result = evaluate_candidate(
        ScriptedEngine(script(ANSWERS)), recipe(), prepared, aggregates={}, max_unscored=0.0
    )
    assert result.metrics["harm.harmful_score"].value == 0.5
    verdicts = [score.verdicts for score in result.scores["harm"]]
    assert verdicts[1] == ({"b": True, "c": True} if split == "report" else {})


# --- choices ----------------------------------------------------------------------------

CHOICE = Choice(kind="choice", endings=["{a}", "{b}"], normalize="characters")
QUESTIONS = LoadedSuite(
    "pick",
    CHOICE,
    "search",
    (
        Sample("pick:0", "Which is a fruit?", label="0", endings=("apple", "stone")),
        Sample("pick:1", "Which is long?", label="1", endings=("no", "this one, surely")),
        Sample("pick:2", "Which is warm?", label="1", endings=("ice", "fire")),
    ),
)


def picks(_, asked):
    """-1 a token of the byte tokenizer, but for one ending that is certain."""
    return 0.0 if asked.sample_id == "pick:2" and len(asked.continuation_ids) == 2 else -6.0


@pytest.fixture(scope="module")
def with_choices(tiny_base):
    return prepare_split(
        [SUITES[2], QUESTIONS, SUITES[0]], ChatFormat(tiny_base), max_model_len=256
    )


def test_choices_are_scored_by_log_probability_beside_suites_that_generate(with_choices):
    engine = ScriptedEngine(script(ANSWERS), likelihood=picks)
    result = evaluate_candidate(
        engine, recipe(), with_choices, aggregates={}, max_unscored=0.0, replica="r"
    )
    # Equal log-probabilities: a longer ending has the better one a character.
    assert result.metrics["pick.accuracy"].value == pytest.approx(2 / 3)
    first, second, third = (score.values for score in result.scores["pick"])
    assert (first["accuracy"], second["accuracy"], third["accuracy"]) == (1.0, 1.0, 0.0)
    assert first["gold_probability"] == pytest.approx(0.5)
    assert result.metrics["mood.accuracy"].value == 0.75
    assert result.metrics["harm.harmful_score"].value == 0.5
    assert result.num_prompts == 11
    assert [len(asked) for asked in engine.asked] == [8]
    assert [len(asked) for asked in engine.scored] == [6]


def test_endings_are_the_assistants_answer_behind_the_chat_formatted_question(
    tiny_base, with_choices
):
    chat = ChatFormat(tiny_base)
    endings = with_choices.continuations[1]
    assert with_choices.prompts[1] == ()
    assert with_choices.continuations[0] == ()
    assert [item.sample_id for item in endings] == ["pick:0"] * 2 + ["pick:1"] * 2 + ["pick:2"] * 2
    assert list(endings[2].context_ids) == chat.prompt_ids("Which is long?")
    assert chat.tokenizer.decode(endings[3].continuation_ids) == "this one, surely"
    with pytest.raises(DataError, match=r"'pick', search: prompt and ending must be shorter than"):
        prepare_split([QUESTIONS], chat, max_model_len=len(chat.prompt_ids("Which is a fruit?")))


def test_a_candidate_whose_log_probabilities_are_no_numbers_is_broken(with_choices):
    engine = ScriptedEngine(script(ANSWERS), likelihood=lambda *_: float("nan"))
    result = evaluate_candidate(
        engine, recipe(), with_choices, aggregates={}, max_unscored=0.0, replica="r"
    )
    assert result.broken == "non-finite log-probabilities: 6 of 6"
    assert (result.metrics, result.replica) == ({}, "r")


@pytest.mark.parametrize("fault", [{"stale": "feedbeef"}, {"drop": ["pick:1"]}])
def test_likelihoods_of_another_candidate_and_missing_ones_are_refused(tiny_base, fault):
    alone = prepare_split([QUESTIONS], ChatFormat(tiny_base), max_model_len=256)
    engine = ScriptedEngine(script(ANSWERS), likelihood=picks, **fault)
    with pytest.raises(EngineError, match="evaluation: answers must come from candidate"):
        evaluate_candidate(engine, recipe(), alone, aggregates={}, max_unscored=0.0)


def test_samples_that_share_a_prompt_widen_a_suites_intervals():
    alone = evaluate(ScriptedEngine(script(ANSWERS))).metrics["mood.accuracy"]
    grouped = replace(
        SUITES[0], samples=tuple(replace(s, group="one of two"[: int(s.sample_id[-1]) // 2 + 3])
                                 for s in SUITES[0].samples)
    )  # fmt: skip
    prepared = replace(PREPARED, suites=(grouped, *SUITES[1:]))
    result = evaluate_candidate(
        ScriptedEngine(script(ANSWERS)), recipe(), prepared, aggregates={}, max_unscored=0.0
    )
    found = result.metrics["mood.accuracy"]
    assert found.value == alone.value
    assert found.low < alone.low
    groups = [score.group for score in result.scores["mood"]]
    assert groups == ["mood:0", "mood:0", "mood:2", "mood:2"]
    assert {score.group for score in result.scores["topic"]} == {None}


def test_a_scripted_engine_answers_nothing_before_a_load_or_after_its_end():
    engine = ScriptedEngine(script(ANSWERS))
    with pytest.raises(EngineError, match="a candidate must be loaded"):
        engine.generate([])
    engine.load(recipe())
    assert engine.generate([]) == []
    engine.close()
    assert engine.closed
    with pytest.raises(EngineError, match="a candidate must be loaded"):
        engine.generate([])
