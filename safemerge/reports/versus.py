"""One point against each reference point, on the prompts that both answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from safemerge.config.metric import Metric
from safemerge.records import Split
from safemerge.reports.comparison import PairedDifference
from safemerge.reports.family import family_of
from safemerge.reports.run import Point, Run

_ZEROS = re.compile(r"(?<=\d)\.0(?=[,\]])")


@dataclass(frozen=True)
class Versus:
    """A point minus one reference point, metric by metric."""

    reference: Point
    split: Split
    differences: tuple[PairedDifference, ...]


def compare_with_references(run: Run, point: Point, *, metrics: Sequence[Metric]) -> list[Versus]:
    """Compare a point with every reference point: parents, the plain mean, warm starts.

    Args:
        run: The run.
        point: A point of it.
        metrics: What to compare on.

    Returns:
        One entry a reference point, other than the point itself and its duplicates, on the
        report split where both have it, else on the search split. The p-values are corrected
        over the run's whole family, see `safemerge.reports.family`; the intervals are not.
    """
    return compare_all_with_references(run, [point], metrics=metrics)[point.number]


def compare_all_with_references(
    run: Run,
    points: Sequence[Point],
    *,
    metrics: Sequence[Metric],
    references: Sequence[Point] | None = None,
) -> dict[int, list[Versus]]:
    """Compare points with reference points: a table.

    Args:
        run: The run.
        points: Points of it, with distinct numbers.
        metrics: What to compare on.
        references: What to compare with; every parent and the plain mean if left out.

    Returns:
        By number of the point, see `compare_with_references`.
    """
    family = family_of(run, points, metrics)
    against = run.references if references is None else references
    return {
        point.number: [
            Versus(
                reference,
                "report" if point.report and reference.report else "search",
                tuple(family.difference(point, reference, metric) for metric in metrics),
            )
            for reference in against
            if reference.search.candidate != point.search.candidate
        ]
        for point in points
    }


def is_parent(run: Run, point: Point) -> bool:
    """Whether a reference point is one of the merged models, rather than a merge of them."""
    names = {item.name for item in run.spec.checkpoints}
    labels = names | {variant.label for variant in run.spec.variants}
    # Runs from before labels were shortened have "=20.0" for "=20".
    return _ZEROS.sub("", point.label) in labels


def is_warm_start(run: Run, point: Point) -> bool:
    """Whether a reference point is a recipe that the search started from."""
    return point.label in {start.label for start in run.spec.started}
