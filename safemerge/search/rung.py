"""Whether a candidate passes the low rung: dominance in loss, by paired tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from safemerge.config.rung import RungSpec
from safemerge.inference import PValue, flip_p_value, holm_adjusted
from safemerge.records import RungResult, TrialRecord


class Rival(NamedTuple):
    """A scored candidate that is better on every set."""

    number: int
    """Its trial."""
    p_value: float
    """Of the set where it is least sure, after Holm over the rivals."""
    reason: str
    """One line that says so."""


def find_rival(spec: RungSpec, found: RungResult, records: Iterable[TrialRecord]) -> Rival | None:
    """Look for a scored candidate that leaves no reason to score this one.

    Args:
        spec: The rung.
        found: The candidate's losses.
        records: Finished trials; those that are feasible and have losses on the same rows
            count, each candidate once.

    Returns:
        Of the rivals whose losses are lower on every set at `RungSpec.level` the surest; None
        if there is none. A rival has to pass the test on each set, so its p-value is the largest
        over the sets (an intersection-union test); over the rivals Holm's correction holds.
    """
    own = spec.means(found.losses)
    rivals: dict[str, tuple[TrialRecord, RungResult, dict[str, float]]] = {}
    for record in records:
        taken = record.rung
        if taken is None or record.state != "COMPLETE" or not record.feasible:
            continue
        if record.candidate == found.candidate or record.interpolated:
            continue
        means = spec.means(taken.losses) if taken.rows == found.rows else own
        if all(means[name] + spec.margin < own[name] for name in spec.sets):
            rivals.setdefault(record.candidate, (record, taken, means))
    if not rivals:
        return None
    compared = list(rivals.values())
    # NOTE: by the upper ends: who is pruned is pruned for sure.
    adjusted = holm_adjusted(
        [
            max(
                _p_value(spec, name, found.losses[name], taken.losses[name]).high
                for name in spec.sets
            )
            for _, taken, _ in compared
        ]
    )
    p_value, index = min((value, index) for index, value in enumerate(adjusted))
    if p_value > spec.level:
        return None
    record, _, means = compared[index]
    losses = ", ".join(f"{name} {means[name]:.3f} < {own[name]:.3f}" for name in spec.sets)
    name = record.label if record.role == "reference" else f"trial {record.number}"
    return Rival(
        record.number, p_value, f"rung: {name} has lower losses ({losses} nats; p {p_value:.2g})"
    )


def _p_value(
    spec: RungSpec,
    name: str,
    own: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
) -> PValue:
    strata = [
        [left - right - spec.margin for left, right in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(own, other, strict=True)
    ]
    return flip_p_value(strata, weights=spec.weights(name))


def is_audited(spec: RungSpec, *, seed: int, candidate: str) -> bool:
    """Say whether a candidate that is to be pruned is scored all the same, at every try.

    Args:
        spec: The rung.
        seed: The study's seed.
        candidate: The candidate's digest.
    """
    drawn = hashlib.sha256(f"rung/{seed}/{candidate}".encode()).digest()[:8]
    return int.from_bytes(drawn, "big") < spec.audit * 2**64
