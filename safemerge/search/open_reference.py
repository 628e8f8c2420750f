"""Which reference points of a study are still to be evaluated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from safemerge.records import TrialRecord
from safemerge.search.space import Reference


def open_references(
    references: Sequence[Reference],
    records: Sequence[TrialRecord],
    *,
    given_up: Collection[str],
    flying: Collection[str],
    num_retries: int,
) -> list[Reference]:
    """Return the references that have neither finished, nor are in flight, nor failed for good.

    Args:
        references: All of the study's.
        records: Finished trials.
        given_up: Digests of candidates that are not tried again.
        flying: Digests of candidates in flight.
        num_retries: How often a candidate that crashed is tried again.
    """
    complete = {item.candidate for item in records if item.state == "COMPLETE"}
    settled = complete | set(given_up) | set(flying)
    return [
        item
        for item in references
        if (candidate := item.recipe.digest) not in settled
        and num_failed(records, candidate) <= num_retries
    ]


def num_failed(records: Sequence[TrialRecord], candidate: str) -> int:
    """Return how often a candidate failed as a reference point."""
    return sum(
        item.candidate == candidate and item.state == "FAIL" and item.role == "reference"
        for item in records
    )
