"""Optuna's storage holds the trials of trials.jsonl and no others, whatever file is found."""

import shutil

import pytest
from optuna.storages.journal import JournalFileBackend
from search_driving import FAST, answer, finish, stored

from safemerge.errors import ChangedRunError
from safemerge.search import Failure, SearchStudy, finished_trials
from safemerge.store import RunStore
from safemerge.testing.landscapes import CRASHING, SMOOTH, landscape_study

BUDGET = 8
JOURNAL = {"storage": "journal"}


def study_of(**changes):
    return landscape_study(**{**FAST, "num_trials": BUDGET, **changes})


def run(folder, limit=10_000, landscape=SMOOTH, **changes):
    """Begin or resume a study in a folder; return its records and what was told."""
    spec = study_of(**changes)
    store = RunStore(folder)
    store = RunStore.open(folder) if store.exists else store.create(spec)
    with SearchStudy(spec, store) as study:
        finish(study, landscape, limit=limit)
        return list(study.records), study.rebuilt


def complete(records):
    return [record for record in records if record.state == "COMPLETE"]


@pytest.fixture(params=["sqlite", "journal"])
def storage(request):
    return {"storage": request.param}


def file_of(folder, storage):
    return folder / {"sqlite": "study.db", "journal": "study.journal"}[storage["storage"]]


def test_a_storage_that_agrees_is_kept(tmp_path):
    run(tmp_path, limit=5, **JOURNAL)
    records, rebuilt = run(tmp_path, **JOURNAL)
    assert (len(complete(records)), rebuilt) == (BUDGET, None)
    assert not list(tmp_path.glob("*.old-1"))


def test_a_newer_storage_costs_no_recipe(tmp_path, storage):
    """The trials are restored from a copy of the folder's; the storage is of a later time."""
    run(tmp_path / "run", limit=4, **storage)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run(tmp_path / "run", limit=5, **storage)
    newer = file_of(tmp_path / "run", storage)
    shutil.copyfile(newer, file_of(tmp_path / "copy", storage))
    records, rebuilt = run(tmp_path / "copy", **storage)
    assert len(complete(records)) == BUDGET
    kept = newer.name + ".old-1"
    assert rebuilt == (
        f"{newer.name} holds trial 4, which trials.jsonl lacks: rebuilt from trials.jsonl; the "
        f"old file is kept as {kept}"
    )
    assert (tmp_path / "copy" / kept).read_bytes()[:2000] == newer.read_bytes()[:2000], (
        "nothing is lost"
    )
    assert run(tmp_path / "copy", **storage)[1] is None


@pytest.mark.parametrize("finished", [3, BUDGET])
def test_a_foreign_storage_costs_no_recipe(tmp_path, finished):
    run(tmp_path / "run", limit=4, **JOURNAL)
    run(tmp_path / "other", limit=finished, seed=99, **JOURNAL)
    foreign = file_of(tmp_path / "other", JOURNAL)
    shutil.copyfile(foreign, file_of(tmp_path / "run", JOURNAL))
    records, rebuilt = run(tmp_path / "run", **JOURNAL)
    assert len(complete(records)) == BUDGET
    assert "rebuilt from trials.jsonl" in rebuilt
    assert len({record.candidate for record in records}) == BUDGET


def test_an_older_storage_is_filled_up(tmp_path):
    run(tmp_path / "run", limit=3, **JOURNAL)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run(tmp_path / "run", limit=6, **JOURNAL)
    older = file_of(tmp_path / "copy", JOURNAL)
    shutil.copyfile(older, file_of(tmp_path / "run", JOURNAL))
    records, rebuilt = run(tmp_path / "run", **JOURNAL)
    assert (len(complete(records)), rebuilt) == (BUDGET, None)


@pytest.mark.parametrize("last", [1, 6])
def test_shortened_trials_are_noticed_and_then_cost_no_recipe(tmp_path, last):
    run(tmp_path, limit=6, **JOURNAL)
    store = RunStore(tmp_path)
    lines = store.trials_path.read_bytes().splitlines(keepends=True)
    store.trials_path.write_bytes(b"".join(lines[:-last]))
    with pytest.raises(ChangedRunError, match=f"6 lines .* got {6 - last}, {last} of them gone"):
        run(tmp_path, **JOURNAL)
    assert store.accept_records()[store.trials_path].name == "trials.digest.old-1"
    records, rebuilt = run(tmp_path, **JOURNAL)
    assert len(complete(records)) == BUDGET
    # The last one asked for has no record any more: it counts as interrupted.
    assert len(finished_trials(records)) == BUDGET
    assert "which trials.jsonl lacks" in rebuilt


def test_a_storage_of_other_objectives_is_rebuilt(tmp_path):
    run(tmp_path / "run", limit=3, **JOURNAL)
    goal = {"metric": "task.accuracy", "direction": "maximize", "reference": 0.0}
    run(tmp_path / "other", limit=3, objectives=[goal], **JOURNAL)
    foreign = file_of(tmp_path / "other", JOURNAL)
    shutil.copyfile(foreign, file_of(tmp_path / "run", JOURNAL))
    records, rebuilt = run(tmp_path / "run", **JOURNAL)
    assert len(complete(records)) == BUDGET
    assert "is of other objectives" in rebuilt


def test_trials_in_flight_of_another_run_are_not_taken_over(tmp_path):
    """A driver that was killed left trials running: those of other spaces are foreign."""
    other = {"vary": {"method.lambda": {"low": 0.5, "high": 1.0}}}
    space = landscape_study().resolved()["spaces"][0]
    spec = study_of(spaces=[{**space, **other}])
    with SearchStudy(spec, RunStore(tmp_path / "other").create(spec)) as study:
        study.ask()
    run(tmp_path / "run", limit=2)
    shutil.copyfile(tmp_path / "other/study.journal", tmp_path / "run/study.journal")
    records, rebuilt = run(tmp_path / "run")
    assert len(complete(records)) == BUDGET
    assert "holds" in rebuilt


def test_a_storage_is_not_taken_for_foreign_wherever_a_driver_is_killed(tmp_path, monkeypatch):
    """Struck at every write of the storage, with crashes and tries again among the trials."""
    spec = study_of(num_trials=2, evaluator={"num_retries": 1})
    write = JournalFileBackend.append_logs
    count = 0
    while True:
        store = RunStore(tmp_path / str(count)).create(spec)
        left = [count]

        def struck(backend, logs, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            write(backend, logs)

        with SearchStudy(spec, store) as study, monkeypatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", struck)
            try:
                first = study.ask()
                study.tell(first.number, Failure("engine died"))
                finish(study, CRASHING)
            except KeyboardInterrupt:
                pass
        with SearchStudy(spec, RunStore.open(store.folder)) as study:
            assert study.rebuilt is None, f"struck at write {count}"
            finish(study, CRASHING)
            assert study.num_sampled == 2
        if left[0] >= 0:
            break
        count += 1
    assert count > 10


def test_a_retry_is_known_from_the_trials_alone(tmp_path):
    """Killed before it is tried again, and the storage is gone: the budget counts it once."""
    spec = study_of(num_trials=2, evaluator={"num_retries": 1})
    with SearchStudy(spec, RunStore(tmp_path).create(spec)) as study:
        proposal = study.ask()
        record = study.tell(proposal.number, Failure("engine died"))
        assert record.retried
    (tmp_path / "study.journal").unlink()
    with SearchStudy(spec, RunStore.open(tmp_path)) as study:
        again = study.ask()
        assert (again.candidate, again.attempt) == (proposal.candidate, 1)
        assert not study.tell(again.number, answer(SMOOTH, again)).retried
        assert len(finish(study)) == 1
        assert [item.state for item in stored(study)] == ["FAIL", "COMPLETE", "COMPLETE"]
        assert study.done
