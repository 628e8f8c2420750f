"""One point against each reference point, on the prompts that both answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safemerge.records import Split
from safemerge.reports.comparison import PairedDifference, paired_difference
from safemerge.reports.metric import Metric
from safemerge.reports.run import Point, Run
from safemerge.statistics import holm_adjusted


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
    found = []
    for reference in run.references:
        if reference.search.candidate == point.search.candidate:
            continue
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
            )
            for metric in metrics
        )
        found.append(Versus(reference, split, differences))
    return _corrected(found)


def _corrected(found: Sequence[Versus]) -> list[Versus]:
    known = [
        item.p_value for versus in found for item in versus.differences if item.p_value is not None
    ]
    adjusted = iter(holm_adjusted(known) if known else [])
    return [
        replace(
            versus,
            differences=tuple(
                item if item.p_value is None else replace(item, p_value=next(adjusted))
                for item in versus.differences
            ),
        )
        for versus in found
    ]


def is_parent(run: Run, point: Point) -> bool:
    """Whether a reference point is one of the merged models, rather than a merge of them."""
    names = {item.name for item in run.spec.checkpoints}
    return point.label in names | {variant.label for variant in run.spec.variants}


def is_warm_start(run: Run, point: Point) -> bool:
    """Whether a reference point is a recipe that the search started from."""
    return point.label in {start.label for start in run.spec.started}
