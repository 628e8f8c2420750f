"""Every comparison that a report makes, in one family: one comparison, one p-value.

Front points with each other on the objectives, and with the reference points on objectives, limits
and safety metrics. Holm's correction counts them all, so the headline, the tables, the card and
the JSON of a run say the same number of the same comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

from safemerge.config.metric import Metric, metrics_of
from safemerge.reports.comparison import PairedDifference, holm_corrected, known_difference
from safemerge.reports.metric import safety_metrics
from safemerge.reports.run import Point, Run

_Key = tuple[str, str, str]


class Family:
    """The comparisons of a run, corrected together.

    Args:
        run: The run.
        points: Points beside the front's that are compared with the references, e.g. an exported
            trial.
        metrics: Metrics beside the run's own that points and references are compared on.
    """

    def __init__(
        self, run: Run, *, points: Sequence[Point] = (), metrics: Sequence[Metric] = ()
    ) -> None:
        self._run = run
        self.pairs = list(_pairs(run, points, metrics))
        known: dict[Any, Any] = {}
        found = [
            known_difference(
                *_results(left, right),
                metric.name,
                metric.mean_of,
                metric.direction,
                known=known,
            )
            for left, right, metric in self.pairs
        ]
        self._by_key = {
            _key(left, right, metric): difference
            for (left, right, metric), difference in zip(
                self.pairs, holm_corrected(found), strict=True
            )
        }

    def difference(self, left: Point, right: Point, metric: Metric) -> PairedDifference:
        """Return left minus right, whichever way round the two were compared."""
        found = self._by_key.get(_key(left, right, metric))
        return self._by_key[_key(right, left, metric)].reversed() if found is None else found

    def document(self) -> list[dict[str, Any]]:
        """Return the comparisons as plain values, for JSON."""
        return [
            {
                "left": left.number,
                "right": right.number,
                "metric": metric.name,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "p_adjusted": found.p_value,
                "num_comparisons": found.num_comparisons,
                "verdict": found.verdict,
            }
            for left, right, metric in self.pairs
            for found in [self._by_key[_key(left, right, metric)]]
        ]


def family_of(run: Run, points: Sequence[Point] = (), metrics: Sequence[Metric] = ()) -> Family:
    """Return the run's family, computed once; a larger one if it lacks a point or a metric."""
    own = {item.name for item in family_metrics(run)}
    numbers = {item.number for item in run.points}
    more = [item for item in points if item.number not in numbers]
    others = [item for item in metrics if item.name not in own]
    if more or others:
        return Family(run, points=more, metrics=others)
    if "family" not in run.__dict__:
        run.__dict__["family"] = Family(run)
    found: Family = run.__dict__["family"]
    return found


def family_metrics(run: Run) -> list[Metric]:
    """Return what points are compared with references on: objectives, limits, safety."""
    metrics = metrics_of(run.spec)
    limits = [metrics[item.metric] for item in run.spec.constraints]
    objectives = [metrics[item.metric] for item in run.spec.objectives]
    named = {item.name: item for item in (*objectives, *limits, *safety_metrics(run.spec))}
    return list(named.values())


def _pairs(
    run: Run, points: Sequence[Point], metrics: Sequence[Metric]
) -> Iterator[tuple[Point, Point, Metric]]:
    known = metrics_of(run.spec)
    objectives = [known[item.metric] for item in run.spec.objectives]
    against = list({item.name: item for item in (*family_metrics(run), *metrics)}.values())
    compared = list({item.number: item for item in (*run.points, *points)}.values())
    made: set[_Key] = set()
    wanted: Iterable[tuple[Point, Point, list[Metric]]] = (
        *((point, reference, against) for point in compared for reference in run.references),
        *((*pair, objectives) for pair in combinations(run.points, 2)),
    )
    for left, right, judged in wanted:
        if left.search.candidate == right.search.candidate:
            continue
        for metric in judged:
            key = _key(left, right, metric)
            if key not in made and _key(right, left, metric) not in made:
                made.add(key)
                yield left, right, metric


def _results(left: Point, right: Point) -> tuple[Any, Any]:
    if left.report is not None and right.report is not None:
        return left.report, right.report
    return left.search, right.search


def _key(left: Point, right: Point, metric: Metric) -> _Key:
    return left.search.candidate, right.search.candidate, metric.name
