"""How much of a search's budget is spent, kept up to date trial by trial."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime

from safemerge.config.study import StudySpec
from safemerge.front import RunningFront
from safemerge.provenance import utc_now
from safemerge.records import INTERRUPTED, TrialRecord

GAIN_PATIENCE = 3
"""Recipes in a row whose expected gain is small before a search ends by it: one model of noisy
values may be flat by chance."""


class Spent:
    """What the trials of a run have cost so far.

    Args:
        spec: The study.
        records: Every finished trial, in the order they finished.
    """

    def __init__(self, spec: StudySpec, records: Iterable[TrialRecord] = ()) -> None:
        self._spec = spec
        self.evaluator_s = 0.0
        """Seconds of replicas."""
        self.standing_still = 0
        """Scored sampled recipes since the hypervolume last grew."""
        self._gains: deque[float] = deque(maxlen=GAIN_PATIENCE)
        """What the last recipes of a model were expected to gain."""
        self._busy: list[tuple[float, float]] = []
        self._front = RunningFront(spec)
        self._scored: set[str] = set()
        self._screened: set[str] = set()
        self._num_sampled = 0
        self._reached = 0.0
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Count a trial that finished."""
        if record.reason != INTERRUPTED and record.started_at and record.finished_at:
            self._add_busy(_seconds(record.started_at), _seconds(record.finished_at))
        # A candidate that was evaluated before is not evaluated again.
        if record.result is not None and record.candidate not in self._scored:
            self._scored.add(record.candidate)
            self.evaluator_s += record.result.timings.total_s
        if record.rung is not None and record.candidate not in self._screened:
            self._screened.add(record.candidate)
            self.evaluator_s += record.rung.timings.total_s
        if record.expected_gain is not None and record.state != "FAIL":
            self._gains.append(record.expected_gain)
        if (self._spec.budget and self._spec.budget.hypervolume_plateau) is not None:
            self._front.add(record)
            if record.state == "COMPLETE":
                self._watch_front(record)

    def wall_s(self, running_since: str | None = None, *, now: str | None = None) -> float:
        """Return the seconds in which some trial was being evaluated.

        Args:
            running_since: When the oldest trial in flight began, if one is.
            now: The time, ISO 8601; that of the clock if left out.
        """
        total = sum(end - start for start, end in self._busy)
        if running_since is None:
            return total
        start, end = _seconds(running_since), _seconds(now or utc_now())
        return total + max(0.0, end - max([start, *(item[1] for item in self._busy[-1:])]))

    def ended_by(self, running_since: str | None = None, *, now: str | None = None) -> str | None:
        """Say which budget is spent; None if none is.

        Args:
            running_since: See `wall_s`.
            now: See `wall_s`.
        """
        budget = self._spec.budget
        if budget is None:
            return None
        if budget.wall_time is not None:
            wall_s = self.wall_s(running_since, now=now)
            if wall_s >= budget.wall_time:
                return f"budget.wall_time of {budget.wall_time:g} s is spent ({wall_s:.0f} s)"
        if budget.evaluator_seconds is not None and self.evaluator_s >= budget.evaluator_seconds:
            return (
                f"budget.evaluator_seconds of {budget.evaluator_seconds:g} is spent "
                f"({self.evaluator_s:.0f} s)"
            )
        still = budget.hypervolume_plateau
        if still is not None and self.standing_still >= still:
            return (
                f"budget.hypervolume_plateau: the front's hypervolume did not grow by "
                f"{100 * budget.plateau_growth:g} % in the last {self.standing_still} scored "
                "recipes"
            )
        least, gains = budget.expected_gain, self._gains
        if least is not None and len(gains) == GAIN_PATIENCE and max(gains) < least:
            return (
                f"budget.expected_gain: none of the last {GAIN_PATIENCE} recipes was expected to "
                f"raise the hypervolume by {100 * least:g} % (at most {100 * max(gains):.2g} %)"
            )
        return None

    def _add_busy(self, start: float, end: float) -> None:
        """Join a trial's time with those that it overlaps; they come by their ends."""
        while self._busy and start <= self._busy[-1][1]:
            earlier, later = self._busy.pop()
            start, end = min(start, earlier), max(end, later)
        self._busy.append((start, end))

    def _watch_front(self, record: TrialRecord) -> None:
        assert self._spec.budget is not None, "watched for its plateau only"
        hypervolume = self._front.hypervolume()
        grown = hypervolume > self._reached * (1 + self._spec.budget.plateau_growth)
        if grown:
            self._reached = hypervolume
        if record.role != "sampled":
            return
        self._num_sampled += 1
        past_startup = self._num_sampled > self._spec.sampler.startup
        self.standing_still = 0 if grown or not past_startup else self.standing_still + 1


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
