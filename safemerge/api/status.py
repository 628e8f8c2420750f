"""How far a search is, read from its folder; nothing is changed, and no cluster is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from safemerge.api.declared import StrPath
from safemerge.api.place import local_folder
from safemerge.config.base import StrictModel
from safemerge.object_store import is_url
from safemerge.records import TrialRecord
from safemerge.reports.run import Point, Run, load_run
from safemerge.store import RunStore

_TIMED = 20
"""Last trials that the pace is measured over."""


class FrontStatus(StrictModel):
    """A point of the front as it is now."""

    trial: int
    label: str
    objectives: dict[str, float | None]
    """Value by metric, None where unscored: on the report split once the front is published, else
    on the search split."""
    knee: bool


class RunStatus(StrictModel):
    """How far a search is."""

    study: str
    folder: str
    state: Literal["running", "stopped", "finished"]
    owner: str | None
    """Process, machine and start of who works in the folder now; None if nobody does."""
    finished: int
    """Trials that ended, reference points included, each crashed one once."""
    total: int
    """What the study asks for: its recipes and reference points."""
    in_flight: int | None
    """Sampled trials being evaluated; None if it is not known."""
    counts: dict[str, int]
    """Ended trials by outcome: feasible, infeasible, broken, pruned, failed."""
    published: bool
    """Whether the front was evaluated on the report split."""
    front: list[FrontStatus]
    seconds_per_trial: float | None
    """Wall-clock seconds from one ended trial to the next, of the last 20; None if under two."""
    seconds_left: float | None
    """For the trials that are left at this pace, without the report split; None if unknown."""
    last_finished_at: str | None
    """UTC, ISO 8601."""


def status(run: StrPath) -> RunStatus:
    """Say how far a search is.

    Args:
        run: Its folder, e.g. ``results/demo``, or its URL; the search may be going on.

    Raises:
        UserError: If the folder holds no run.
        StudyError: If a file of it is damaged.
    """
    from safemerge.remote_run import RemoteRun
    from safemerge.search import FlightFile, finished_trials, study_references

    stored = load_run(local_folder(run))
    ended = [item for item in finished_trials(stored.trials) if not item.retried]
    store = RunStore(stored.folder)
    owner = RemoteRun(str(run)).living_owner() if is_url(run) else store.owner()
    total = stored.spec.num_trials + len(study_references(stored.spec))
    pace = seconds_per_trial(ended)
    left = 0 if stored.is_complete else max(0, total - len(ended))
    numbers = {item.number for item in stored.trials}
    running = FlightFile(stored.folder).count_open(numbers)
    return RunStatus(
        study=stored.spec.name,
        folder=store.place,
        state="running" if owner else "finished" if stored.is_complete else "stopped",
        owner=owner,
        finished=len(ended),
        total=total,
        in_flight=0 if stored.is_complete or owner is None else running,
        counts=stored.counts,
        published=stored.front is not None,
        front=_front(stored),
        seconds_per_trial=pace,
        seconds_left=None if pace is None else pace * left,
        last_finished_at=max((item.finished_at for item in ended), default=None),
    )


def seconds_per_trial(trials: Sequence[TrialRecord]) -> float | None:
    """Return the pace of the last trials, in seconds from one to the next.

    A time in which nothing was evaluated, from the last end to the next start, does not count:
    the engine's start, or the night between two calls.

    Args:
        trials: Ended trials, in any order.

    Returns:
        Seconds a trial, by however many were evaluated at once; None of fewer than two.
    """
    spans = sorted(
        (datetime.fromisoformat(item.started_at), datetime.fromisoformat(item.finished_at))
        for item in trials
        if item.started_at and item.finished_at
    )[-_TIMED:]
    if len(spans) < 2:
        return None
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return busy / len(spans)


def _front(stored: Run) -> list[FrontStatus]:
    knee = None if stored.knee is None else stored.knee.number
    names = [item.metric for item in stored.spec.objectives]
    return [
        FrontStatus(
            trial=point.number,
            label=point.name,
            objectives={name: _value(point, name) for name in names},
            knee=point.number == knee,
        )
        for point in stored.points
    ]


def _value(point: Point, metric: str) -> float | None:
    value = point.shown.value(metric)
    return None if math.isnan(value) else value
