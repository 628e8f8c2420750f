"""A search study that was killed goes on: nothing lost, nothing done twice."""

import itertools
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from search_driving import (
    FAST,
    finish,
    optuna_states,
    stored,
)

from safemerge.errors import StudyError
from safemerge.records import INTERRUPTED
from safemerge.search import Failure, SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import (
    ACCURACY,
    CRASHING,
    HARM,
    SMOOTH,
    landscape_study,
)

CONSTRAINTS = [
    {"metric": HARM, "budget": 0.4},
    {"metric": ACCURACY, "budget": 0.3, "direction": "maximize"},
]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_resumed_study_goes_on_where_it_stopped(begin, storage):
    changes = {**FAST, "storage": storage, "references": True}
    first = begin(**changes, num_trials=3)
    before = finish(first, limit=5)
    first.close()
    second = begin(**changes, num_trials=4)
    assert list(second.records) == before
    assert second.interrupted == ()
    after = finish(second)
    assert [item.number for item in after] == [5, 6, 7]
    assert second.done
    assert stored(second) == before + after


def test_trials_in_flight_are_recorded_as_interrupted_and_proposed_again_first(begin):
    first = begin(**FAST, num_trials=5)
    done = first.ask()
    first.tell(done.number, SMOOTH.evaluate(done.recipe))
    lost = [first.ask(), first.ask()]
    first.close()  # Ends as a kill would: trials in flight are not told.

    second = begin(**FAST, num_trials=5)
    assert second.interrupted == (1, 2)
    assert [(item.number, item.state) for item in stored(second)] == [
        (0, "COMPLETE"), (1, "FAIL"), (2, "FAIL"),
    ]  # fmt: skip
    assert [item.reason for item in second.records[1:]] == [INTERRUPTED] * 2
    assert [item.params for item in second.records[1:]] == [item.params for item in lost]
    again = [second.ask(), second.ask()]
    assert [item.candidate for item in again] == [item.candidate for item in lost]
    assert [item.number for item in again] == [3, 4]
    assert [item.attempt for item in again] == [0, 0], "an interruption is not a crash"
    fresh = second.ask()
    assert fresh.candidate not in {item.candidate for item in (done, *lost)}
    for proposal in (*again, fresh):
        second.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))
    assert len(finish(second)) == 1
    complete = [item for item in stored(second) if item.state == "COMPLETE"]
    assert len(complete) == 5
    assert TrialState.RUNNING not in optuna_states(second)


def test_an_interruption_twice_over_still_loses_nothing(begin):
    candidates = []
    for _ in range(3):
        study = begin(**FAST, num_trials=1)
        candidates.append(study.ask().candidate)
        study.close()
    assert len(set(candidates)) == 1
    last = begin(**FAST, num_trials=1)
    (record,) = finish(last)
    assert record.candidate == candidates[0]
    assert [item.number for item in stored(last)] == [0, 1, 2, 3]
    assert last.done


def test_references_in_flight_are_asked_again(begin):
    changes = {**FAST, "references": True}
    first = begin(**changes)
    finish(first, limit=2)
    first.ask()
    first.close()
    second = begin(**changes)
    assert [second.ask().label for _ in range(2)] == ["safety", "mean"]


@pytest.mark.parametrize("outcome", ["complete", "infeasible", "crash"])
def test_a_driver_killed_between_the_two_writes_loses_and_repeats_nothing(
    begin, monkeypatch, outcome
):
    changes = {**FAST, "num_trials": 2, "constraints": CONSTRAINTS}
    first = begin(**changes)
    proposal = first.ask()
    result = Failure("engine died")
    if outcome != "crash":
        everywhere = type(SMOOTH)(broken=lambda skill, safety: outcome == "infeasible")
        result = everywhere.evaluate(proposal.recipe)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(first._sampling, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        first.tell(proposal.number, result)
    first.close()

    second = begin(**changes)
    assert second.interrupted == ()
    (record,) = stored(second)
    trial = second._study.get_trials()[0]
    assert trial.state.name == record.state
    assert trial.constraints == record.violations
    assert trial.values == (list(record.objectives.values()) or None)
    following = second.ask()
    assert (following.candidate == proposal.candidate) == (outcome == "crash")
    assert following.attempt == (1 if outcome == "crash" else 0)


def test_a_driver_killed_before_a_retry_is_queued_still_tries_again(begin, monkeypatch):
    first = begin(**FAST, num_trials=1)
    proposal = first.ask()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(first._sampling, "queue_again", killed)
    with pytest.raises(KeyboardInterrupt):
        first.tell(proposal.number, Failure("engine died"))
    first.close()
    second = begin(**FAST, num_trials=1)
    again = second.ask()
    assert (again.candidate, again.attempt) == (proposal.candidate, 1)
    assert second.ask() is None


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_at_any_write_of_the_storage_costs_no_recipe(tmp_path, monkeypatch, when):
    spec = landscape_study(**FAST, num_trials=3, constraints=CONSTRAINTS)
    write = JournalFileBackend.append_logs
    for count in itertools.count():
        store = RunStore(tmp_path / str(count)).create(spec)
        left = count

        def struck(backend, logs):
            nonlocal left
            left -= 1
            if left == -1 and when == "before":
                raise KeyboardInterrupt
            write(backend, logs)
            if left == -1 and when == "after":
                raise KeyboardInterrupt

        with SearchStudy(spec, store) as study, monkeypatch.context() as patch:
            crashed = study.ask()
            patch.setattr(JournalFileBackend, "append_logs", struck)
            with suppress(KeyboardInterrupt):
                study.tell(crashed.number, Failure("engine died"))
                finish(study)
        with SearchStudy(spec, RunStore.open(store.folder)) as study:
            finish(study)
            states = [item.state for item in study.records]
            assert states.count("COMPLETE") == 3, f"struck at write {count}: {states}"
        if left >= 0:
            break
    assert count > 20


@pytest.mark.parametrize("damage", ["deleted", "torn", "locked"])
def test_optunas_storage_is_rebuilt_or_mended_from_the_trials(begin, damage):
    changes = {
        **FAST,
        "num_trials": 6,
        "constraints": CONSTRAINTS,
        "evaluator": {"num_retries": 1},
    }
    first = begin(**changes)
    records = finish(first, CRASHING, limit=4)
    lost = first.ask()
    before = [
        (trial.state, trial.params, trial.values, trial.constraints)
        for trial in first._study.get_trials()
        if trial.state.is_finished()
    ]
    first.close()
    path = first.store.folder / "study.journal"
    if damage == "deleted":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes() + b'{"op_code": 5, "wor')
    else:
        path.with_name("study.journal.lock").symlink_to(path)
    second = begin(**changes)
    trials = second._study.get_trials()
    after = [(t.state, t.params, t.values, t.constraints) for t in trials]
    assert after[: len(before)] == before
    assert list(second.records)[: len(records)] == records
    if damage != "deleted":
        assert second.ask().candidate == lost.candidate
    finish(second, CRASHING)
    if damage != "deleted":
        second.tell(second.in_flight[0], Failure("engine died", retry=False))
    assert second.done
    numbers = [item.number for item in stored(second)]
    assert len(set(numbers)) == len(numbers)


def test_a_rebuilt_storage_proposes_interrupted_trials_again(begin):
    first = begin(**FAST, num_trials=2)
    lost = first.ask()
    first.close()
    second = begin(**FAST, num_trials=2)
    second.close()  # The interruption is recorded, nothing was asked.
    (second.store.folder / "study.journal").unlink()
    third = begin(**FAST, num_trials=2)
    assert third.ask().candidate == lost.candidate


def test_a_rebuilt_storage_counts_a_retry_once(begin):
    first = begin(**FAST, num_trials=3)
    proposal = first.ask()
    first.tell(proposal.number, Failure("engine died"))
    finish(first, limit=1)
    first.close()
    (first.store.folder / "study.journal").unlink()
    second = begin(**FAST, num_trials=3)
    fresh = finish(second)
    assert len(fresh) == 2
    assert proposal.candidate not in {item.candidate for item in fresh}, "it has a result"
    assert second.done


def test_a_study_that_does_not_match_the_folder_is_refused(begin):
    begin(**FAST).close()
    with pytest.raises(StudyError, match=r"study 'landscape'.*at seed: 7 vs 8"):
        begin(**FAST, seed=8)
    begin(**FAST, num_trials=99)


def test_a_damaged_optuna_storage_is_told_with_the_way_out(begin):
    first = begin(references=False, num_trials=1, storage="sqlite")
    records = finish(first)
    first.close()
    path = first.store.folder / "study.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StudyError, match=r"study\.db: Optuna's storage cannot be used.*delete it"):
        begin(references=False, num_trials=1, storage="sqlite")
    path.unlink()
    second = begin(references=False, num_trials=1, storage="sqlite")
    assert list(second.records) == records
    assert second.done


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
def test_a_resumed_sampler_does_not_repeat_its_draws(begin, sampler):
    changes = {**FAST, "sampler": {"name": sampler}, "num_trials": 8}
    first = begin(**changes)
    before = {item.candidate for item in finish(first, limit=4)}
    first.close()
    after = {item.candidate for item in finish(begin(**changes))}
    assert len(before) == len(after) == 4
    assert not before & after


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
def test_the_same_seed_gives_the_same_search(tmp_path, sampler):
    drawn = []
    for folder in ("one", "two"):
        spec = landscape_study(**{**FAST, "sampler": {"name": sampler}, "num_trials": 12})
        with SearchStudy(spec, RunStore(tmp_path / folder).create(spec)) as study:
            drawn.append([item.candidate for item in finish(study)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 12


def test_a_killed_process_leaves_a_study_that_can_be_resumed(begin, tmp_path):
    script = """
        import os, sys
        from safemerge.search import SearchStudy
        from safemerge.store import RunStore
        from safemerge.testing.landscapes import SMOOTH, landscape_study
        spec = landscape_study(references=False, num_trials=4)
        study = SearchStudy(spec, RunStore(sys.argv[1]).create(spec))
        proposal = study.ask()
        study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))
        print(study.ask().candidate, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    study = begin(references=False, num_trials=4)
    assert study.interrupted == (1,)
    assert study.ask().candidate == done.stdout.strip()


# --- Samplers learn -----------------------------------------------------------------------
