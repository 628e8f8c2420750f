"""One point against each reference point, on the prompts that both answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from safemerge.records import Split
from safemerge.reports.comparison import (
    PairedDifference,
    holm_corrected,
    paired_difference,
)
from safemerge.reports.metric import Metric
from safemerge.reports.run import Point, Run

_ZEROS = re.compile(r"(?<=\d)\.0(?=[,\]])")


@dataclass(frozen=True)
class Versus:
    """A point minus one reference point, metric by metric."""

    reference: Point
    split: Split
    differences: tuple[PairedDifference, ...]


def compare_with_references(
    run: Run, point: Point, *, metrics: Sequence[Metric], seed: int = 0
) -> list[Versus]:
    """Compare a point with every reference point: parents, the plain mean, warm starts.

    Args:
        run: The run.
        point: A point of it.
        metrics: What to compare on.
        seed: Seed of the bootstrap.

    Returns:
        One entry a reference point, other than the point itself and its duplicates, on the
        report split where both have it, else on the search split. All p-values are
        Holm-corrected together; the intervals are not.
    """
    return compare_all_with_references(run, [point], metrics=metrics, seed=seed)[point.number]


def compare_all_with_references(
    run: Run,
    points: Sequence[Point],
    *,
    metrics: Sequence[Metric],
    references: Sequence[Point] | None = None,
    seed: int = 0,
) -> dict[int, list[Versus]]:
    """Compare points with reference points: a table.

    Args:
        run: The run.
        points: Points of it, with distinct numbers.
        metrics: What to compare on.
        references: What to compare with; every parent and the plain mean if left out.
        seed: Seed of the bootstrap.

    Returns:
        By number of the point, see `compare_with_references`. All p-values of all points are
        Holm-corrected together; the intervals are not.
    """
    against = run.references if references is None else references
    num_comparisons = len(points) * len(against) * len(metrics)
    found = {
        point.number: [
            _compared(point, reference, metrics, seed, num_comparisons)
            for reference in against
            if reference.search.candidate != point.search.candidate
        ]
        for point in points
    }
    rows = [versus for row in found.values() for versus in row]
    corrected = iter(holm_corrected([item for versus in rows for item in versus.differences]))
    return {
        number: [
            replace(versus, differences=tuple(islice(corrected, len(versus.differences))))
            for versus in row
        ]
        for number, row in found.items()
    }


def _compared(
    point: Point, reference: Point, metrics: Sequence[Metric], seed: int, num_comparisons: int
) -> Versus:
    split: Split = "search"
    left, right = point.search, reference.search
    if point.report is not None and reference.report is not None:
        split, left, right = "report", point.report, reference.report
    differences = tuple(
        paired_difference(
            left,
            right,
            metric=metric.name,
            mean_of=metric.mean_of,
            direction=metric.direction,
            seed=seed,
            num_comparisons=num_comparisons,
        )
        for metric in metrics
    )
    return Versus(reference, split, differences)


def is_parent(run: Run, point: Point) -> bool:
    """Whether a reference point is one of the merged models, rather than a merge of them."""
    names = {item.name for item in run.spec.checkpoints}
    labels = names | {variant.label for variant in run.spec.variants}
    # Runs from before labels were shortened have "=20.0" for "=20".
    return _ZEROS.sub("", point.label) in labels


def is_warm_start(run: Run, point: Point) -> bool:
    """Whether a reference point is a recipe that the search started from."""
    return point.label in {start.label for start in run.spec.started}
