"""Where the evaluators' time went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from safemerge.records import Timings, TrialRecord
from safemerge.reports.run import Run

PARTS = ("swap", "generate", "score", "other")
"""Parts of a candidate's evaluation; ``other`` is what the three clocks do not cover."""


@dataclass(frozen=True)
class CandidateTiming:
    """Seconds of one evaluation, by part."""

    number: int
    split: str
    """``search``, ``report``, or ``rung``: losses on the low rung, which count as scoring."""
    seconds_by_part: dict[str, float]

    @property
    def total_s(self) -> float:
        """Sum of the parts."""
        return sum(self.seconds_by_part.values(), 0.0)


@dataclass(frozen=True)
class TimingSummary:
    """Totals over every evaluation of a run: both splits, and the low rung."""

    candidates: tuple[CandidateTiming, ...]
    seconds_by_part: dict[str, float]
    num_generated_tokens: int
    num_prompts: int
    num_replicas: int
    search_span_s: float | None
    """From the first trial's start to the last one's end, pauses included."""
    search_generate_s: float
    """Seconds spent generating for the trials of that span."""

    @property
    def total_s(self) -> float:
        """Seconds that evaluators worked, all replicas together."""
        return sum(self.seconds_by_part.values(), 0.0)

    @property
    def generating_share(self) -> float | None:
        """Share of the evaluators' working time spent generating."""
        return self.seconds_by_part["generate"] / self.total_s if self.total_s > 0 else None

    @property
    def generating_share_of_span(self) -> float | None:
        """The same, of all replicas' wall-clock time over the search, idle time included."""
        if not self.search_span_s or not self.num_replicas:
            return None
        return min(self.search_generate_s / (self.search_span_s * self.num_replicas), 1.0)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens generated per second of generating."""
        generating = self.seconds_by_part["generate"]
        return self.num_generated_tokens / generating if generating > 0 else None


def summarize_timings(run: Run) -> TimingSummary:
    """Add up the timings of every result that a run holds, those of the low rung too.

    Args:
        run: The run.

    Returns:
        The summary; all zero if nothing was timed.
    """
    searched = [(trial.number, trial.result) for trial in run.trials if trial.result is not None]
    reported = {
        point.report.candidate: (point.number, point.report)
        for point in (*run.points, *run.references)
        if point.report is not None
    }
    results = [result for _, result in (*searched, *reported.values())]
    screened = [(trial.number, trial.rung) for trial in run.trials if trial.rung is not None]
    candidates = [
        *(_timing(number, "rung", rung.timings) for number, rung in screened),
        *(
            _timing(number, result.split, result.timings)
            for number, result in (*searched, *reported.values())
        ),
    ]
    replicas = [result.replica for result in results] + [rung.replica for _, rung in screened]
    return TimingSummary(
        candidates=tuple(candidates),
        seconds_by_part={
            part: math.fsum(item.seconds_by_part[part] for item in candidates) for part in PARTS
        },
        num_generated_tokens=sum(result.num_generated_tokens for result in results),
        num_prompts=sum(result.num_prompts for result in results),
        num_replicas=len(set(replicas)),
        search_span_s=_span_s(run),
        search_generate_s=math.fsum(result.timings.generate_s for _, result in searched),
    )


def _timing(number: int, split: str, clock: Timings) -> CandidateTiming:
    known = clock.swap_s + clock.generate_s + clock.score_s
    parts = {
        "swap": clock.swap_s,
        "generate": clock.generate_s,
        "score": clock.score_s,
        "other": max(clock.total_s - known, 0.0),
    }
    return CandidateTiming(number, split, parts)


def span_of(trial: TrialRecord) -> tuple[datetime, datetime] | None:
    """Return when a trial started and ended; None without time stamps that have a zone."""
    try:
        span = datetime.fromisoformat(trial.started_at), datetime.fromisoformat(trial.finished_at)
        return span if span[1] >= span[0] else None
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class WallTime:
    """Seconds from the run's start to the end of its last trial; the parts add up to the whole."""

    total_s: float
    start_s: float
    """Before the first trial: data, cluster, engines, and ingredients that are trained."""
    working_s: float
    """Replicas at work while trials were under way, by replica: their time over their number."""
    waiting_s: float
    """The rest of that time: queues, training for a trial, replicas that started or idled."""
    paused_s: float
    """No trial was under way: pauses, and start-ups after them."""
    report_s: float
    """Evaluating the front on the report split, by replica; after `total_s`, and not in it."""


def wall_time(run: Run) -> WallTime | None:
    """Split the run's wall-clock time up, from what its trials and provenance say.

    Args:
        run: The run.

    Returns:
        The parts, or None if no trial has time stamps or the run does not say when it began.
    """
    spans = sorted(span for item in run.trials if (span := span_of(item)) is not None)
    summary = summarize_timings(run)
    if not spans or run.provenance is None or not summary.num_replicas:
        return None
    begun = datetime.fromisoformat(run.provenance.created_at)
    under_way, end = 0.0, spans[0][0]
    for start, finished in spans:
        under_way += max((finished - max(start, end)).total_seconds(), 0.0)
        end = max(end, finished)
    seconds = {
        is_report: math.fsum(
            item.total_s for item in summary.candidates if (item.split == "report") == is_report
        )
        / summary.num_replicas
        for is_report in (False, True)
    }
    # A result that was known already is in the records of several trials, and took no time twice.
    working = min(seconds[False], under_way)
    start_s = max((spans[0][0] - begun).total_seconds(), 0.0)
    paused = (end - spans[0][0]).total_seconds() - under_way
    return WallTime(
        total_s=start_s + under_way + paused,
        start_s=start_s,
        working_s=working,
        waiting_s=under_way - working,
        paused_s=paused,
        report_s=seconds[True],
    )


def _span_s(run: Run) -> float | None:
    spans = [span for item in run.trials if item.result or item.rung if (span := span_of(item))]
    if not spans:
        return None
    return (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
