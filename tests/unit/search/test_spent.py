"""Budgets beside the number of trials: what is spent, what ends a search, what continues it."""

import pytest

from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError
from safemerge.records import INTERRUPTED, CandidateResult, RungResult, Timings, TrialRecord
from safemerge.search.spent import Spent
from safemerge.testing.landscapes import SMOOTH, landscape_study

FAST = {"references": False, "sampler": {"name": "random", "startup": 1}}


def at(second):
    return f"2026-11-21T04:{second // 60:02d}:{second % 60:02d}.000+00:00"


def record(number, start, end, *, candidate=None, total_s=0.0, skill=0.5, **fields):
    result = CandidateResult(
        candidate=candidate or f"c{number}",
        split="search",
        metrics={},
        timings=Timings(total_s=total_s),
    )
    given = {
        "role": "sampled",
        "label": f"trial {number}",
        "state": "COMPLETE",
        "recipe": {},
        "candidate": result.candidate,
        "objectives": {"task.accuracy": skill, "harm.harmful_score": 0.5},
        "feasible": True,
        "result": result,
    }
    return TrialRecord(
        number=number, started_at=at(start), finished_at=at(end), **(given | fields)
    )


def spec(**budget) -> StudySpec:
    return landscape_study(**FAST, budget=budget)


def test_time_counts_once_where_trials_overlap_and_not_between_calls():
    spent = Spent(spec(wall_time=30))
    for start, end in [(0, 4), (2, 6), (6, 8), (100, 110), (90, 112)]:
        spent.add(record(start, start, end))
    assert spent.wall_s() == 8 + 22
    assert spent.ended_by() == "budget.wall_time of 30 s is spent (30 s)"


def test_time_runs_while_a_trial_is_in_flight():
    spent = Spent(spec(wall_time=20), [record(0, 0, 10)])
    assert spent.wall_s(at(5), now=at(14)) == 14
    assert spent.wall_s(at(50), now=at(54)) == 14
    assert spent.ended_by(at(50), now=at(59)) is None
    assert spent.ended_by(at(50), now=at(60)) is not None


def test_the_time_until_a_killed_run_was_resumed_is_not_spent():
    killed = record(1, 10, 3000, state="FAIL", reason=INTERRUPTED, result=None)
    assert Spent(spec(wall_time=20), [record(0, 0, 10), killed]).wall_s() == 10


def test_evaluators_work_counts_once_a_candidate_with_its_rung():
    rung = RungResult(candidate="c1", losses={}, timings=Timings(total_s=0.5))
    spent = Spent(spec(evaluator_seconds=10))
    spent.add(record(0, 0, 9, total_s=4.0))
    spent.add(record(1, 0, 9, total_s=4.0, rung=rung))
    spent.add(record(2, 0, 9, candidate="c1", total_s=4.0, rung=rung))
    assert spent.evaluator_s == 8.5
    assert spent.ended_by() is None
    pruned = RungResult(candidate="c3", losses={}, timings=Timings(total_s=1.5))
    spent.add(record(3, 0, 9, candidate="c3", state="PRUNED", result=None, rung=pruned))
    assert spent.ended_by() == "budget.evaluator_seconds of 10 is spent (10 s)"


def test_a_plateau_begins_anew_when_the_front_grows_enough():
    spent = Spent(spec(hypervolume_plateau=3, plateau_growth=0.1))
    found = []
    for number, skill in enumerate((0.5, 0.3, 0.52, 0.6, 0.6, 0.61, 0.2)):
        spent.add(record(number, number, number + 1, skill=skill))
        found.append(spent.standing_still)
    assert found == [0, 1, 2, 0, 1, 2, 3]
    assert "did not grow by 10 % in the last 3 scored recipes" in spent.ended_by()


def test_startup_and_reference_points_are_no_plateau():
    changes = {**FAST, "sampler": {"name": "random", "startup": 3}}
    spent = Spent(landscape_study(**changes, budget={"hypervolume_plateau": 1}))
    for number in range(3):
        spent.add(record(number, number, number + 1))
    spent.add(record(3, 3, 4, role="reference"))
    assert spent.standing_still == 0
    spent.add(record(4, 4, 5))
    assert spent.ended_by() is not None


def test_without_a_budget_nothing_ends_a_search():
    assert Spent(landscape_study(), [record(0, 0, 10**3, total_s=1e9)]).ended_by() is None


def drive(study, *, total_s=1.0):
    """Answer until the study is done; return how many recipes it took."""
    count = 0
    while not study.done:
        proposal = study.ask()
        result = SMOOTH.evaluate(proposal.recipe)
        timed = result.model_copy(update={"timings": Timings(total_s=total_s)})
        study.tell(proposal.number, timed)
        count += 1
    return count


def test_a_spent_budget_ends_a_search_and_a_larger_one_continues_it(begin):
    study = begin(**FAST, num_trials=20, budget={"evaluator_seconds": 4.5})
    assert drive(study) == 5
    assert study.ask() is None
    assert study.ended_by == "budget.evaluator_seconds of 4.5 is spent (5 s)"
    study.close()
    larger = begin(**FAST, num_trials=20, budget={"evaluator_seconds": 7})
    assert larger.ended_by is None
    assert drive(larger) == 2
    larger.close()
    unlimited = begin(**FAST, num_trials=20)
    assert drive(unlimited) == 13
    assert unlimited.ended_by is None


def test_what_is_in_flight_is_finished_and_counts(begin):
    study = begin(**FAST, num_trials=20, budget={"evaluator_seconds": 1})
    first, second = study.ask(), study.ask()
    study.tell(
        first.number,
        SMOOTH.evaluate(first.recipe).model_copy(update={"timings": Timings(total_s=3.0)}),
    )
    assert study.ask() is None
    assert not study.done
    study.tell(second.number, SMOOTH.evaluate(second.recipe))
    assert study.done
    assert study.num_sampled == 2


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"wall_time": 0}, "budget.wall_time: must be above 0; got 0"),
        ({"hypervolume_plateau": 0}, "budget.hypervolume_plateau: must be at least 1; got 0"),
        ({"hours": 2}, "budget.hours: unknown key; got 2"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget, message):
    with pytest.raises(ConfigError, match=message):
        landscape_study(budget=budget)


def test_it_ends_once_three_recipes_in_a_row_were_expected_to_gain_little():
    budget = {**FAST, "sampler": {"name": "bayesian"}, "budget": {"expected_gain": 0.01}}
    spent = Spent(landscape_study(**budget))
    for number, gain in enumerate([0.001, 0.002, 0.02, 0.003, None, 0.004]):
        spent.add(record(number, number, number, expected_gain=gain))
    spent.add(record(6, 6, 6, expected_gain=0.0, state="FAIL", result=None))
    assert spent.ended_by() is None
    spent.add(record(7, 7, 7, expected_gain=0.005))
    assert spent.ended_by() == (
        "budget.expected_gain: none of the last 3 recipes was expected to raise the hypervolume "
        "by 1 % (at most 0.5 %)"
    )


def test_a_study_whose_sampler_expects_nothing_is_refused_that_budget():
    with pytest.raises(ConfigError, match=r"budget\.expected_gain: needs the Bayesian sampler"):
        landscape_study(budget={"expected_gain": 0.01}, sampler={"name": "tpe"})
