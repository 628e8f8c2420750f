"""How far a search is, of a folder that a driver holds, left or finished."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from safemerge.api.status import seconds_per_trial, status
from safemerge.cli import main
from safemerge.records import CandidateResult, MetricEstimate, TrialRecord
from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import landscape_study

BEGIN = datetime(2026, 11, 30, 12, tzinfo=UTC)


def trial(number, start, end, **more):
    stamps = [
        (BEGIN + timedelta(seconds=at)).isoformat(timespec="milliseconds") for at in (start, end)
    ]
    return TrialRecord(
        number=number, role="sampled", label=f"trial {number}", state="FAIL", recipe={},
        candidate=str(number), started_at=stamps[0], finished_at=stamps[1],
        **more,
    )  # fmt: skip


def test_the_pace_counts_no_time_in_which_nothing_was_evaluated():
    alone = [trial(0, 0, 10), trial(1, 10, 20), trial(2, 8000, 8010)]
    assert seconds_per_trial(alone) == 10
    beside = [trial(0, 0, 10), trial(1, 0, 10), trial(2, 10, 20), trial(3, 10, 20)]
    assert seconds_per_trial(beside) == 5
    assert seconds_per_trial(alone[:1]) is None


def test_the_pace_is_that_of_the_last_trials():
    slow = [trial(at, 100 * at, 100 * at + 100) for at in range(5)]
    fast = [trial(5 + at, 500 + at, 501 + at) for at in range(20)]
    assert seconds_per_trial(slow + fast) == 1


@contextmanager
def driven(tmp_path):
    """A run with three trials told and two in flight, held by this process for a block."""
    spec = landscape_study("toy", num_trials=9)
    store = RunStore(tmp_path / "results" / "toy").create(spec)
    with SearchStudy(spec, store) as study:
        while len(study.records) < 3:
            asked = study.ask()
            metrics = {
                item.metric: MetricEstimate(
                    metric=item.metric, value=0.5, low=0.4, high=0.6, n=9,
                    direction=item.direction,
                )
                for item in spec.objectives
            }  # fmt: skip
            result = CandidateResult(candidate=asked.candidate, split="search", metrics=metrics)
            study.tell(asked.number, result)
        while sum(study.proposal(number).role == "sampled" for number in study.in_flight) < 2:
            study.ask()
        yield store.folder


@pytest.fixture
def started(tmp_path):
    with driven(tmp_path) as folder:
        yield folder


def test_a_run_that_nobody_drives_is_stopped(tmp_path, capsys):
    with driven(tmp_path) as started:
        assert status(started).state == "running"
    found = status(started)
    assert (found.state, found.owner, found.in_flight) == ("stopped", None, 0)
    assert found.finished == 3
    assert found.total >= 9
    assert main(["status", str(started)]) == 0
    out = capsys.readouterr().out
    assert f"toy: stopped, 3 of {found.total} trials" in out
    assert "safemerge search STUDY.yaml --resume" in out
    assert max(map(len, out.splitlines())) <= 80


def test_another_process_sees_who_drives_and_what_is_in_flight(started):
    command = [sys.executable, "-m", "safemerge", "status", str(started), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["state"] == "running"
    assert re.match(r"\d+ on \S+ since 20", found["owner"])
    assert found["in_flight"] == 2
    assert found["counts"]["feasible"] + found["counts"]["infeasible"] == 3


def test_every_run_of_the_results_is_listed(started, capsys):
    assert main(["status", "--results", str(started.parent), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["study"] == "toy"


def test_a_damaged_run_does_not_hide_the_others(started, capsys):
    (started.parent / "bad").mkdir()
    (started.parent / "bad" / "study.json").write_text("{")
    assert main(["status", "--results", str(started.parent)]) == 2
    printed = capsys.readouterr()
    assert "toy: running, 3 of" in printed.out
    assert f"{started.parent / 'bad' / 'study.json'}: damaged" in printed.err


def test_a_run_without_trials_has_no_pace_and_no_front(tmp_path, capsys):
    folder = RunStore(tmp_path / "toy").create(landscape_study("toy", num_trials=9)).folder
    assert main(["status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "toy: stopped, 0 of" in out
    assert "front      0 points (search split, so far)" in out
    assert "pace" not in out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["status", "--results", str(tmp_path)]) == 2
    assert "must hold runs of `safemerge search`; got none" in capsys.readouterr().err


def test_quiet_prints_results_alone_and_the_next_call_is_loud(tmp_path, capsys):
    from safemerge.commands.console import Console

    for arguments, lines in ((["-q", "status"], 0), (["status", "--quiet"], 0), (["status"], 1)):
        assert main([*arguments, "--results", str(tmp_path)]) == 2
        Console().say("progress")
        assert capsys.readouterr().out.count("progress") == lines
