"""States of a search study: what ends how, and what is stored."""

import math
import re
import threading

import pytest
from optuna.trial import TrialState

# The journal is the same code without SQLite's slow syncs.
from search_driving import (
    FAST,
    finish,
    optuna_states,
    stored,
)

from safemerge.errors import PreflightError, StudyError
from safemerge.pareto import dominates
from safemerge.records import CandidateResult
from safemerge.search import Failure
from safemerge.testing.landscapes import (
    ACCURACY,
    FRONT_HYPERVOLUME,
    HARM,
    SMOOTH,
)


def test_references_come_first_and_share_the_numbers(begin):
    study = begin(storage="journal", num_trials=2)
    proposals = [study.ask() for _ in range(6)]
    assert [item.number for item in proposals] == [0, 1, 2, 3, 4, 5]
    assert [item.label for item in proposals] == [
        "base", "skill", "safety", "mean", "trial 4", "trial 5",
    ]  # fmt: skip
    assert [item.role for item in proposals] == ["reference"] * 4 + ["sampled"] * 2
    assert study.ask() is None
    assert study.in_flight == (0, 1, 2, 3, 4, 5)
    assert not study.done


def test_a_study_can_do_without_references(begin):
    study = begin(**FAST, num_trials=1)
    assert study.ask().role == "sampled"
    assert study.ask() is None


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_told_result_is_stored_whole_in_both_places(begin, storage):
    study = begin(storage=storage, references=False, num_trials=1)
    proposal = study.ask()
    result = SMOOTH.evaluate(proposal.recipe)
    record = study.tell(proposal.number, result)
    assert record.state == "COMPLETE"
    assert record.feasible
    assert record.reason is None
    assert record.params == proposal.params
    assert record.space == "sum"
    assert record.recipe == proposal.recipe.resolved()
    assert record.candidate == proposal.candidate == proposal.recipe.digest
    assert record.objectives == {ACCURACY: result.value(ACCURACY), HARM: result.value(HARM)}
    assert record.result == result
    assert "" < record.started_at <= record.finished_at
    assert stored(study) == [record] == list(study.records)
    (trial,) = study._study.get_trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.values == list(record.objectives.values())
    assert trial.params == {f"sum/{path}": value for path, value in record.params.items()}
    assert study.done


def test_only_what_is_in_flight_can_be_told(begin):
    study = begin(**FAST)
    proposal = study.ask()
    study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))
    for number in (proposal.number, 99):
        with pytest.raises(
            StudyError, match=f"trial {number}: must be in flight.*In flight: none"
        ):
            study.tell(number, Failure("late"))


def test_a_result_of_the_report_split_is_refused_and_the_trial_stays_in_flight(begin):
    study = begin(**FAST)
    proposal = study.ask()
    with pytest.raises(StudyError, match="trial 0: needs a result of the search split"):
        study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe, "report"))
    assert study.in_flight == (0,)


def test_answers_of_another_candidate_fail_the_trial_and_are_tried_again(begin):
    study = begin(**FAST)
    first, second = study.ask(), study.ask()
    record = study.tell(first.number, SMOOTH.evaluate(second.recipe))
    assert record.state == "FAIL"
    assert (
        record.reason == f"answers of candidate {second.candidate} came back for {first.candidate}"
    )
    assert study.ask().candidate == first.candidate


def test_a_crash_fails_and_is_tried_again_up_to_the_limit_then_fails_for_good(begin):
    study = begin(**FAST, num_trials=1, evaluator={"num_retries": 2})
    records = []
    while (proposal := study.ask()) is not None:
        assert proposal.attempt == len(records)
        assert not study.done
        records.append(study.tell(proposal.number, Failure("engine died")))
    assert [item.number for item in records] == [0, 1, 2]
    assert {item.candidate for item in records} == {records[0].candidate}
    assert {(item.state, item.reason) for item in records} == {("FAIL", "engine died")}
    assert all(item.result is None and item.objectives == {} for item in records)
    assert stored(study) == records
    assert optuna_states(study) == [TrialState.FAIL] * 3
    assert study.done


def test_a_second_try_that_works_counts_once_in_the_budget(begin):
    study = begin(**FAST, num_trials=2)
    first = study.ask()
    study.tell(first.number, Failure("engine died"))
    again = study.ask()
    assert again.params == first.params
    assert study.tell(again.number, SMOOTH.evaluate(again.recipe)).state == "COMPLETE"
    records = finish(study)
    assert len(records) == 1
    assert study.done


def test_a_failure_that_would_repeat_is_not_tried_again(begin):
    study = begin(**FAST, num_trials=1)
    study.tell(study.ask().number, Failure("unscored 37 of 200 responses", retry=False))
    assert study.ask() is None
    assert study.done


def test_a_reference_that_crashes_is_tried_again_and_then_given_up(begin):
    study = begin(storage="journal", num_trials=1, sampler={"name": "random"})
    base = study.ask()
    study.tell(base.number, Failure("engine died"))
    again = study.ask()
    assert (again.label, again.number, again.attempt) == ("base", 1, 1)
    study.tell(again.number, Failure("engine died"))
    assert study.ask().label == "skill"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (
            {},
            r"no value for task\.accuracy \(not measured\), harm\.harmful_score \(not measured\)",
        ),
        ("unscored", r"no value for harm\.harmful_score \(100 responses unscored, 0 scored\)"),
    ],
)
def test_a_missing_objective_fails_and_is_never_left_running(begin, metrics, reason):
    study = begin(**FAST, num_trials=1)
    proposal = study.ask()
    if metrics == "unscored":
        everywhere = type(SMOOTH)(unscored=lambda skill, safety: True)
        result = everywhere.evaluate(proposal.recipe)
    else:
        result = CandidateResult(candidate=proposal.candidate, split="search", metrics=metrics)
    record = study.tell(proposal.number, result)
    assert record.state == "FAIL"
    assert re.fullmatch(reason, record.reason)
    assert record.result is None
    assert optuna_states(study) == [TrialState.FAIL]
    assert study.done


def test_a_value_that_is_not_a_number_fails_the_trial(begin):
    study = begin(**FAST, num_trials=1)
    proposal = study.ask()
    result = SMOOTH.evaluate(proposal.recipe)
    bad = result.metrics[HARM].model_copy(update={"value": math.nan})
    result = result.model_copy(update={"metrics": {**result.metrics, HARM: bad}})
    assert study.tell(proposal.number, result).state == "FAIL"


def test_a_broken_candidate_is_complete_with_the_worst_values_and_infeasible(begin):
    study = begin(**FAST, num_trials=1)
    proposal = study.ask()
    everywhere = type(SMOOTH)(broken=lambda skill, safety: True)
    record = study.tell(proposal.number, everywhere.evaluate(proposal.recipe))
    assert (record.state, record.feasible) == ("COMPLETE", False)
    assert record.reason == "broken: non-finite weights"
    assert record.objectives == {ACCURACY: 0.0, HARM: 1.0}
    assert record.violations == {"broken": 1.0}
    (trial,) = study._study.get_trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints == {"broken": 1.0}
    assert study.front() == []
    assert study.hypervolume() == 0.0


CONSTRAINTS = [
    {"metric": HARM, "budget": 0.4},
    {"metric": ACCURACY, "budget": 0.3, "direction": "maximize"},
]


def test_a_violated_budget_is_complete_but_infeasible_with_its_reason(begin):
    study = begin(**FAST, num_trials=30, constraints=CONSTRAINTS)
    records = finish(study)
    for record, trial in zip(records, study._study.get_trials(), strict=True):
        harm, accuracy = record.objectives[HARM], record.objectives[ACCURACY]
        assert record.state == "COMPLETE"
        assert record.violations == pytest.approx({HARM: harm - 0.4, ACCURACY: 0.3 - accuracy})
        assert trial.constraints == record.violations
        assert record.feasible == (harm <= 0.4 and accuracy >= 0.3)
        assert (record.reason is None) == record.feasible
        assert ("exceeds its budget 0.4" in (record.reason or "")) == (harm > 0.4)
        assert ("is below its budget 0.3" in (record.reason or "")) == (accuracy < 0.3)
    assert 0 < len(study.front()) <= sum(record.feasible for record in records) < 30
    assert all(record.feasible for record in study.front())


def test_a_value_on_the_budget_is_feasible(begin):
    study = begin(**{**FAST, "references": True}, constraints=[{"metric": HARM, "budget": 0.25}])
    by_label = {record.label: record for record in finish(study, limit=4)}
    assert by_label["mean"].feasible
    assert by_label["mean"].violations == {HARM: 0.0}
    assert not by_label["skill"].feasible


def test_a_constraint_without_a_value_fails_the_trial(begin):
    study = begin(**FAST, num_trials=1, constraints=[{"metric": "harm.other_rate", "budget": 1}])
    (record,) = finish(study)
    assert record.state == "FAIL"
    assert record.reason == "no value for harm.other_rate (not measured)"


def test_the_front_is_what_nothing_feasible_dominates_references_included(begin):
    study = begin(storage="journal", num_trials=15, sampler={"name": "random"})
    records = finish(study)
    front = study.front()
    values = {item.number: list(item.objectives.values()) for item in records}
    directions = ["maximize", "minimize"]
    expected = [
        item.number
        for item in records
        if not any(dominates(other, values[item.number], directions) for other in values.values())
    ]
    assert [item.number for item in front] == expected
    labels = {item.label for item in front}
    assert {"skill", "safety", "mean"} <= labels
    assert "base" not in labels
    assert 0.375 < study.hypervolume() < FRONT_HYPERVOLUME


CHOICES = {
    "name": "sum",
    "method": {"name": "task_arithmetic", "weights": {"skill": 0.5, "safety": 0.5}},
    "vary": {"method.weights.skill": {"choices": [0.25, 0.75]}},
}


def test_a_candidate_that_came_before_has_a_known_result(begin):
    study = begin(**FAST, num_trials=12, spaces=[CHOICES])
    evaluated, known = 0, []
    while (proposal := study.ask()) is not None:
        result = study.known_result(proposal.candidate)
        known.append(result is not None)
        if result is None:
            evaluated += 1
            result = SMOOTH.evaluate(proposal.recipe)
        study.tell(proposal.number, result)
    assert evaluated == len(study.records) == 2, "a repeat is not even proposed"
    assert known == [False, False]
    assert all(study.known_result(item.candidate) == item.result for item in study.records)
    assert study.known_result("0" * 16) is None


def test_a_failed_candidate_has_no_known_result(begin):
    study = begin(**FAST)
    proposal = study.ask()
    study.tell(proposal.number, Failure("engine died"))
    assert study.known_result(proposal.candidate) is None


def test_a_full_disk_leaves_the_trial_to_be_told_again(begin, monkeypatch):
    study = begin(**FAST, num_trials=1)
    proposal = study.ask()
    with monkeypatch.context() as patch:

        def full(record):
            raise PreflightError("results: the disk is full; got 0 MiB free.")

        patch.setattr(study.store, "append", full)
        with pytest.raises(PreflightError, match="disk is full"):
            study.tell(proposal.number, Failure("engine died"))
    assert study.in_flight == (0,)
    assert study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe)).state == "COMPLETE"
    assert study.done
    assert len(stored(study)) == 1


def test_asks_and_tells_of_several_threads_give_each_trial_its_own_number(begin):
    study = begin(**FAST, num_trials=24)
    seen = []

    def work():
        while (proposal := study.ask()) is not None:
            seen.append(proposal.number)
            study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(seen) == list(range(24))
    assert sorted(item.number for item in stored(study)) == list(range(24))


# --- Resuming ---------------------------------------------------------------------------
