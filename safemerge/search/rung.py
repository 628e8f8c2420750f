"""Whether a candidate passes the low rung: dominance in loss, by paired tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from safemerge.config.rung import RungSpec
from safemerge.records import RungResult, TrialRecord
from safemerge.statistics.paired import holm_adjusted, sign_flip_p_value


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
        records: Finished trials; those that are feasible and have losses count, each candidate
            once.

    Returns:
        Of the rivals whose losses are lower on every set at `RungSpec.level` the surest; None
        if there is none. A rival has to pass the test on each set, so its p-value is the largest
        over the sets (an intersection-union test); over the rivals Holm's correction holds.
    """
    own = spec.means(found.losses)
    rivals: dict[str, TrialRecord] = {}
    for record in records:
        if record.state == "COMPLETE" and record.feasible and record.rung is not None:
            rivals.setdefault(record.candidate, record)
    rivals.pop(found.candidate, None)
    compared: list[tuple[TrialRecord, dict[str, float], float]] = []
    for record in rivals.values():
        assert record.rung is not None, "kept above"
        means = spec.means(record.rung.losses)
        if all(means[name] + spec.margin < own[name] for name in spec.sets):
            p_values = [
                _p_value(spec, name, found.losses[name], record.rung.losses[name])
                for name in spec.sets
            ]
            compared.append((record, means, max(p_values)))
    if not compared:
        return None
    adjusted = holm_adjusted([p_value for _, _, p_value in compared])
    p_value, index = min((value, index) for index, value in enumerate(adjusted))
    if p_value > spec.level:
        return None
    record, means, _ = compared[index]
    told = ", ".join(f"{name} {means[name]:.3f} < {own[name]:.3f}" for name in spec.sets)
    name = record.label if record.role == "reference" else f"trial {record.number}"
    return Rival(
        record.number, p_value, f"rung: {name} has lower losses ({told} nats; p {p_value:.2g})"
    )


def _p_value(
    spec: RungSpec, name: str, own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> float:
    strata = [
        [left - right - spec.margin for left, right in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(own, other, strict=True)
    ]
    return sign_flip_p_value(strata, weights=spec.weights(name))


def is_audited(spec: RungSpec, *, seed: int, number: int) -> bool:
    """Say whether a trial that is to be pruned is scored all the same.

    Args:
        spec: The rung.
        seed: The study's seed.
        number: The trial's number.
    """
    drawn = hashlib.sha256(f"rung/{seed}/{number}".encode()).digest()[:8]
    return int.from_bytes(drawn, "big") < spec.audit * 2**64
