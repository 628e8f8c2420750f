"""The state of a running search, for whoever watches it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from safemerge.api.progress import Pace
from safemerge.config.study import StudySpec
from safemerge.records import CandidateResult, TrialRecord

_LATELY = 20
"""Last trials whose replicas count as answering."""


class SearchState(NamedTuple):
    """How far a search is, after a trial."""

    study: str
    done: int
    """Trials that ended, of earlier calls too."""
    total: int
    seconds_each: float | None
    """From one trial to the next, by this call's pace; None before its first."""
    failed: int
    infeasible: int
    replicas: int
    """Replicas that answered the last trials."""
    most_replicas: int
    prompts_per_s: float | None
    """Prompts answered a second of evaluation, over all replicas of the last trials."""
    metrics: tuple[str, ...]
    """The objectives."""
    best: tuple[tuple[str, tuple[float, ...]], ...]
    """(label, values by objective) of the front so far, best first objective first."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds for the trials that are left, without the report split; None if unknown."""
        if self.seconds_each is None:
            return None
        return self.seconds_each * (self.total - self.done)


Watch = Callable[[SearchState], None]
"""Takes the state of a search."""


class Tally:
    """Counts the trials of a search as they end: no state goes through all of them.

    Args:
        spec: The study.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._counted = self._failed = self._infeasible = 0
        self._lately: deque[CandidateResult | None] = deque(maxlen=_LATELY)

    def count(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Count the trials that are new since the last call, and return them.

        Args:
            trials: Every trial that ended, in that order.
        """
        new = list(trials[self._counted :])
        for item in new:
            self._failed += item.state == "FAIL"
            self._infeasible += item.state == "COMPLETE" and not item.feasible
            self._lately.append(item.result)
        self._counted = len(trials)
        return new

    def state(self, front: Iterable[TrialRecord], pace: Pace) -> SearchState:
        """Return the state of the search.

        Args:
            front: Its front on the search split.
            pace: Of this call.
        """
        spec = self._spec
        found = [item for item in self._lately if item is not None]
        spent = sum(item.timings.total_s for item in found)
        replicas = len({item.replica for item in found if item.replica})
        prompts = sum(item.num_prompts for item in found)
        goals = [item.metric for item in spec.objectives]
        sign = -1 if spec.objectives[0].direction == "maximize" else 1
        best = [
            (item.label, tuple(item.objectives.get(name, math.nan) for name in goals))
            for item in front
        ]
        return SearchState(
            study=spec.name,
            done=pace.done,
            total=pace.total,
            seconds_each=pace.seconds_each,
            failed=self._failed,
            infeasible=self._infeasible,
            replicas=replicas,
            most_replicas=spec.evaluator.max_replicas,
            prompts_per_s=prompts / spent * max(1, replicas) if spent else None,
            metrics=tuple(goals),
            best=tuple(sorted(best, key=lambda item: sign * item[1][0])),
        )
