"""Losses on the low rung, and what Ray Tune does with them."""

import json
from types import SimpleNamespace

import pytest

from safemerge.config.recipe import MergeRecipe, TaskArithmetic
from safemerge.config.rung import RungSpec
from safemerge.config.study import EvaluatorSpec
from safemerge.distributed.rung import RungPairs
from safemerge.distributed.scheduler import StudyScheduler
from safemerge.distributed.searcher import StudySearcher
from safemerge.distributed.trainable import RESULT, RUNG, SCREENED
from safemerge.engines.chat import ChatFormat
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import DataError, EngineError
from safemerge.records import CandidateResult, RungResult
from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import SMOOTH, landscape_study


@pytest.fixture
def rung(tmp_path):
    for name, count in {"safety": 3, "first": 2, "second": 4}.items():
        lines = [
            json.dumps({"q": f"{name} {'x' * i}", "a": "yes" * (i + 1)}) for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def pairs(name):
        return {
            "source": {"kind": "file", "path": str(tmp_path / f"{name}.jsonl")},
            "prompt": "{q}",
            "response": "{a}",
        }

    return RungSpec.model_validate(
        {"sets": {"safety": [pairs("safety")], "skill": [pairs("first"), pairs("second")]}}
    )


@pytest.fixture
def mean(tiny_base, tiny_experts):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": [{"name": n, "path": str(path)} for n, path in tiny_experts.items()],
            "method": {"name": "task_arithmetic", "weights": dict.fromkeys(tiny_experts, 0.5)},
        }
    )


@pytest.fixture
def engine(mean):
    evaluator = EvaluatorSpec(engine="transformers", dtype="float32", max_model_len=128)
    engine = TransformersEngine(mean, evaluator)
    yield engine
    engine.close()


def test_losses_are_the_models_own_cross_entropies(rung, mean, engine, tiny_base):
    import torch

    chat = ChatFormat(str(tiny_base))
    pairs = RungPairs(rung, chat, max_model_len=128, seed=0)
    taken = pairs.screen(engine, mean, replica="r1")
    assert isinstance(taken, RungResult)
    assert taken.candidate == mean.digest
    assert taken.replica == "r1"
    assert taken.timings.total_s == pytest.approx(taken.timings.swap_s + taken.timings.score_s)
    assert [len(rows) for rows in taken.losses["safety"]] == [3]
    assert [len(rows) for rows in taken.losses["skill"]] == [2, 4]
    assert pairs.num_pairs == 9
    rows = [row for sources in taken.losses.values() for source in sources for row in source]
    for asked, value in zip(pairs._asked, rows, strict=True):
        ids = torch.tensor([[*asked.context_ids, *asked.continuation_ids]])
        labels = ids.clone()
        labels[:, : len(asked.context_ids)] = -100
        with torch.inference_mode():
            expected = engine._model(input_ids=ids, labels=labels).loss
        assert value == pytest.approx(float(expected), abs=1e-4)


def test_a_recipe_that_cannot_be_merged_is_broken_at_once(rung, mean, engine, tiny_base):
    pairs = RungPairs(rung, ChatFormat(str(tiny_base)), max_model_len=128, seed=0)
    method = TaskArithmetic(name="task_arithmetic", weights={"math": 1e41})
    broken = mean.model_copy(update={"method": method})
    taken = pairs.screen(engine, broken)
    assert isinstance(taken, CandidateResult)
    assert taken.broken
    assert taken.split == "search"


def test_losses_that_are_no_numbers_break_a_candidate(rung, mean, engine, tiny_base, monkeypatch):
    import dataclasses

    pairs = RungPairs(rung, ChatFormat(str(tiny_base)), max_model_len=128, seed=0)
    ask = engine.loglikelihoods

    def overflowing(asked):
        first, *rest = ask(asked)
        return [dataclasses.replace(first, logprob=float("nan")), *rest]

    monkeypatch.setattr(engine, "loglikelihoods", overflowing)
    taken = pairs.screen(engine, mean)
    assert isinstance(taken, CandidateResult)
    assert taken.broken == "non-finite log-probabilities: 1 of 9"


def test_another_candidates_losses_are_refused(rung, mean, engine, tiny_base, monkeypatch):
    pairs = RungPairs(rung, ChatFormat(str(tiny_base)), max_model_len=128, seed=0)
    other = mean.model_copy(update={"seed": 5, "dtype": "float16"})
    monkeypatch.setattr(engine, "load", lambda recipe: None)
    engine._candidate = mean.digest
    with pytest.raises(EngineError, match="rung: pairs must be scored by candidate"):
        pairs.screen(engine, other)


def test_a_prompt_that_fills_the_context_is_told_with_its_place(rung, tiny_base):
    words = r"rung\.safety\.0: a prompt must leave room .* of 8 tokens .*evaluator\.max_model_len"
    with pytest.raises(DataError, match=words):
        RungPairs(rung, ChatFormat(str(tiny_base)), max_model_len=8, seed=0)


def test_answers_that_do_not_fit_are_cut_and_counted(rung, tiny_base):
    chat = ChatFormat(str(tiny_base))
    whole = RungPairs(rung, chat, max_model_len=128, seed=0)
    longest = max(len(item.context_ids) + len(item.continuation_ids) for item in whole._asked)
    cut = RungPairs(rung, chat, max_model_len=longest, seed=0)
    assert (whole.num_cut, cut.num_cut) == (0, 1)
    assert max(len(i.context_ids) + len(i.continuation_ids) for i in cut._asked) == longest - 1
    assert cut._rows == whole._rows


def test_rows_have_a_digest_that_tells_other_rows(rung, tiny_base, tmp_path):
    chat = ChatFormat(str(tiny_base))
    before = RungPairs(rung, chat, max_model_len=128, seed=0)._rows
    file = tmp_path / "safety.jsonl"
    file.write_text(file.read_text().replace("yes", "no"), encoding="utf-8")
    assert RungPairs(rung, chat, max_model_len=128, seed=0)._rows != before


ROWS = {"skill": [[1.0 + i / 100 for i in range(30)]], "safety": [[2.0] * 30]}
WORSE = {name: [[value + 1.0 for value in rows[0]]] for name, rows in ROWS.items()}
PAIRS = [{"source": {"kind": "file", "path": "/nowhere/pairs.jsonl"}, "response": "{answer}"}]


@pytest.fixture
def searcher(tmp_path):
    rung = {"sets": {"skill": PAIRS, "safety": PAIRS}, "audit": 0.0}
    sampler = {"name": "random", "startup": 1}
    spec = landscape_study(
        rung=rung, storage="journal", references=False, sampler=sampler, num_trials=2
    )
    records = []
    with SearchStudy(spec, RunStore(tmp_path / "run").create(spec)) as study:
        yield StudySearcher(study, on_record=records.append), records


def report(config, losses):
    candidate = MergeRecipe.model_validate_json(config["recipe"]).digest
    return {RUNG: RungResult(candidate=candidate, losses=losses).model_dump_json()}


def test_tune_stops_what_the_rung_prunes_and_goes_on_with_the_rest(searcher):
    searcher, records = searcher
    scheduler = StudyScheduler(clients=1, promote=searcher.promote)
    assert not scheduler.supports_buffered_results
    trials = [SimpleNamespace(trial_id=name) for name in ("a", "b")]
    configs = [searcher.suggest(trial.trial_id) for trial in trials]

    taken = report(configs[0], ROWS)
    assert scheduler.on_trial_result(None, trials[0], taken) == "CONTINUE"
    result = SMOOTH.evaluate(MergeRecipe.model_validate_json(configs[0]["recipe"]))
    last = {RESULT: result.model_dump_json(), "done": True}
    assert scheduler.on_trial_result(None, trials[0], last) == "CONTINUE"
    searcher.on_trial_complete("a", last)

    taken = report(configs[1], WORSE)
    assert scheduler.on_trial_result(None, trials[1], taken) == "STOP"
    searcher.on_trial_complete("b", taken)

    assert [record.state for record in records] == ["COMPLETE", "PRUNED"]
    assert records[1].rival == records[0].number == 0
    assert searcher.suggest("c") == "FINISHED"


def test_a_candidate_that_comes_again_is_not_screened_again(searcher):
    searcher, _ = searcher
    config = searcher.suggest("a")
    assert not config[SCREENED]
    taken = report(config, ROWS)
    assert searcher.promote("a", RungResult.model_validate_json(taken[RUNG]))
    searcher.on_trial_complete("a", taken, error=True)
    again = searcher.suggest("b")
    assert again["recipe"] == config["recipe"]
    assert again[SCREENED]


def test_a_trial_that_dies_after_its_rung_failed_and_was_not_pruned(searcher):
    searcher, records = searcher
    config = searcher.suggest("a")
    taken = report(config, ROWS)
    assert searcher.promote("a", RungResult.model_validate_json(taken[RUNG]))
    searcher.on_trial_complete("a", taken, error=True)
    assert [record.state for record in records] == ["FAIL"]
    assert "without a result" in records[0].reason


def test_the_scheduler_leaves_nothing_of_itself_in_tunes_own_state(searcher):
    import pickle

    pickle.loads(pickle.dumps(StudyScheduler(clients=1, promote=searcher[0].promote)))
