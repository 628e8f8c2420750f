"""Optuna's study in memory: what was in flight is known, and study.db shows it all."""

import itertools
import json
import logging
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState
from search_driving import answer, finish, optuna_states, stored
from sqlalchemy.exc import OperationalError

from safemerge.api import status
from safemerge.search import Failure, dashboard
from safemerge.testing.landscapes import ACCURACY, CRASHING, HARM, SMOOTH

MEMORY = {"storage": "memory", "references": False, "sampler": {"name": "random"}}
CONSTRAINTS = [{"metric": HARM, "budget": 0.4}]


def shown(folder, name="landscape"):
    """The study as a dashboard reads it."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder.resolve() / 'study.db'}")
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials()
    names = study.metric_names
    storage.remove_session()
    storage.engine.dispose()
    return trials, names


def facts(trial):
    return (
        trial.number,
        trial.state,
        trial.params,
        trial.distributions,
        trial.values,
        trial.constraints,
        trial.user_attrs,
        trial.datetime_start,
        trial.datetime_complete,
    )


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_dashboards_file_shows_the_study_as_it_is_in_memory(begin, sampler):
    study = begin(
        **{**MEMORY, "sampler": {"name": sampler, "startup": 3}},
        num_trials=8,
        constraints=CONSTRAINTS,
    )
    finish(study, CRASHING, limit=7)
    study.ask()
    held = [facts(trial) for trial in study._study.get_trials()]
    study.close()
    trials, names = shown(study.store.folder)
    assert [facts(trial) for trial in trials] == held
    assert names == [ACCURACY, HARM]
    assert {trial.state for trial in trials} >= {TrialState.COMPLETE, TrialState.RUNNING}


def test_the_file_is_written_at_intervals_and_only_then(begin, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    study = begin(**MEMORY, num_trials=9)
    path = study.store.folder / "study.db"
    finish(study, limit=3)
    assert not path.exists()
    now[0] += dashboard.EVERY_S
    finish(study, limit=1)
    assert len(shown(study.store.folder)[0]) == 4
    finish(study, limit=2)
    assert len(shown(study.store.folder)[0]) == 4
    now[0] += dashboard.EVERY_S
    finish(study, limit=1)
    assert len(shown(study.store.folder)[0]) == 7


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("No space left on device"), "No space left on device"),
        (
            OperationalError("CREATE TABLE studies (\n\tid)", {}, sqlite3.Error("disk is full")),
            "disk is full",
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line_and_does_not_end_the_search(
    begin, caplog, monkeypatch, error, reason
):
    study = begin(**MEMORY, num_trials=2)
    finish(study)

    def refused(_):
        raise error

    monkeypatch.setattr(dashboard, "_file_storage", refused)
    with caplog.at_level(logging.WARNING):
        study.close()
    (record,) = caplog.records
    said = record.getMessage()
    assert (
        said == f"{study.store.folder}/study.db: could not be written for the dashboard: {reason}"
    )
    assert len(stored(study)) == 2


@pytest.mark.parametrize("content", ["other study", "no database"])
def test_a_file_that_is_not_this_studys_is_kept_beside(begin, content):
    first = begin(**MEMORY, num_trials=2)
    finish(first)
    first.close()
    path = first.store.folder / "study.db"
    if content == "no database":
        path.write_bytes(b"this is not a database, whatever its name says" * 100)
    else:
        path.unlink()
        optuna.create_study(storage=f"sqlite:///{path.resolve()}", study_name="other")
    before = path.read_bytes()
    second = begin(**MEMORY, num_trials=3)
    assert len(finish(second)) == 1
    second.close()
    assert path.with_name("study.db.old-1").read_bytes() == before
    assert len(shown(second.store.folder)[0]) == 3


def test_what_is_in_flight_is_counted_from_outside(begin):
    study = begin(**MEMORY, num_trials=6)
    asked = [study.ask() for _ in range(3)]
    study.tell(asked[0].number, SMOOTH.evaluate(asked[0].recipe))
    folder = study.store.folder
    assert status.status(folder).in_flight == 2
    (folder / "in_flight.json").unlink()
    (folder / "in_flight.json").mkdir()  # whoever runs the tests may read any file
    assert status.status(folder).in_flight is None


def test_a_crash_in_flight_is_tried_again_as_the_same_try(begin):
    changes = {**MEMORY, "num_trials": 1, "evaluator": {"num_retries": 2}}
    first = begin(**changes)
    proposal = first.ask()
    first.tell(proposal.number, Failure("engine died"))
    second_try = first.ask()
    assert second_try.attempt == 1
    first.close()
    again = begin(**changes)
    assert again.interrupted == (second_try.number,)
    third = again.ask()
    assert (third.candidate, third.attempt) == (proposal.candidate, 1)
    again.tell(third.number, answer(SMOOTH, third))
    assert again.done
    assert again.num_sampled == 1


STORAGES = ("memory", "sqlite", "journal")


@pytest.mark.parametrize(("before", "second"), [*itertools.permutations(STORAGES, 2)])
def test_a_run_may_change_its_storage(begin, before, second):
    """What was in flight in the one is interrupted and proposed again in the other."""
    first = begin(**{**MEMORY, "storage": before}, num_trials=5)
    finish(first, limit=2)
    lost = first.ask()
    first.close()
    study = begin(**{**MEMORY, "storage": second}, num_trials=5)
    assert study.rebuilt is None
    assert study.interrupted == (lost.number,)
    again = study.ask()
    assert again.candidate == lost.candidate
    study.tell(again.number, answer(SMOOTH, again))
    assert len(finish(study)) == 2
    assert study.done
    assert optuna_states(study).count(TrialState.COMPLETE) == 5
    study.close()
    third = begin(**{**MEMORY, "storage": before}, num_trials=6)
    assert (third.rebuilt, third.interrupted) == (None, ())
    assert len(finish(third)) == 1


@pytest.mark.parametrize("before", ["sqlite", "journal"])
def test_what_an_earlier_version_had_in_flight_is_found_in_optunas_storage(begin, before):
    """It kept no list of its own."""
    first = begin(**{**MEMORY, "storage": before}, num_trials=3)
    lost = first.ask()
    first.close()
    (first.store.folder / "in_flight.json").unlink()
    second = begin(**MEMORY, num_trials=3)
    assert second.interrupted == (lost.number,)
    assert second.ask().candidate == lost.candidate


def test_a_damaged_or_foreign_list_of_what_is_in_flight_costs_nothing(begin):
    first = begin(**MEMORY, num_trials=3)
    finish(first, limit=1)
    first.ask()
    first.close()
    path = first.store.folder / "in_flight.json"
    document = json.loads(path.read_text())
    document["trials"][-1]["space"] = "another"
    path.write_text(json.dumps(document))
    second = begin(**MEMORY, num_trials=3)
    assert second.interrupted == ()
    second.close()
    path.write_text("{")
    third = begin(**MEMORY, num_trials=3)
    assert third.interrupted == ()
    assert len(finish(third)) == 2


def test_a_stale_list_in_flight_never_repeats_the_number_of_a_reference(begin):
    """Two records of one number would make the run unreadable."""
    changes = {**MEMORY, "references": True, "num_trials": 2}
    first = begin(**changes)
    finish(first)
    reference = next(record for record in first.records if record.role == "reference")
    sampled = next(record for record in first.records if record.role == "sampled")
    first.close()
    stale = {
        "number": reference.number,
        "space": sampled.space,
        "params": sampled.params,
        "started_at": sampled.started_at,
    }
    path = first.store.folder / "in_flight.json"
    path.write_text(json.dumps({"trials": [stale]}))
    second = begin(**changes)
    assert second.interrupted == ()
    assert len(stored(second)) == len(first.records)


@pytest.mark.parametrize("damage", [{"started_at": "noon"}, {"params": 99.0}])
def test_a_value_in_flight_that_nothing_can_have_written_costs_nothing(begin, damage):
    first = begin(**MEMORY, num_trials=2)
    finish(first, limit=1)
    first.ask()
    first.close()
    path = first.store.folder / "in_flight.json"
    document = json.loads(path.read_text())
    trial = document["trials"][-1]
    if "params" in damage:
        damage = {"params": dict.fromkeys(trial["params"], damage["params"])}
    trial.update(damage)
    path.write_text(json.dumps(document))
    second = begin(**MEMORY, num_trials=2)
    assert second.interrupted == ()
    assert len(finish(second)) == 1
