"""From an evaluation's outcome to a trial's honest state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from safemerge.config.study import Constraint, StudySpec
from safemerge.errors import StudyError
from safemerge.front import violation
from safemerge.records import CandidateResult, TrialState
from safemerge.search.records import Failure, Proposal, Pruned

BROKEN = "broken"
"""Name of the violation that a broken candidate has, always 1."""


@dataclass(frozen=True)
class Verdict:
    """How a trial ends."""

    state: TrialState
    reason: str | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    """Value by metric; empty for FAIL and PRUNED."""
    violations: dict[str, float] = field(default_factory=dict)
    """By metric; above 0 where a constraint is broken."""
    feasible: bool = False
    retry: bool = False
    """Whether another try may end differently."""


def judge(
    spec: StudySpec, proposal: Proposal, outcome: CandidateResult | Failure | Pruned
) -> Verdict:
    """Decide how a trial ends.

    A crash is FAIL and may be tried again. A candidate that is deterministically broken is
    COMPLETE with every objective at its reference value, and infeasible, so that the sampler
    learns to stay away. A missing objective or constraint metric is FAIL: unscored is not
    zero. A violated constraint is COMPLETE and infeasible. What the low rung stopped is PRUNED.

    Args:
        spec: The study.
        proposal: What was asked for.
        outcome: What came back.

    Returns:
        State, reason, values, violations and whether to try again.

    Raises:
        StudyError: If the result is not of the search split.
    """
    if isinstance(outcome, Failure):
        return Verdict("FAIL", outcome.reason or "failed without a reason", retry=outcome.retry)
    if isinstance(outcome, Pruned):
        return Verdict("PRUNED", outcome.reason)
    if outcome.split != "search":
        raise StudyError(
            f"trial {proposal.number}: needs a result of the search split; "
            f"got split '{outcome.split}'."
        )
    if outcome.candidate != proposal.candidate:
        reason = f"answers of candidate {outcome.candidate} came back for {proposal.candidate}"
        return Verdict("FAIL", reason, retry=True)
    if outcome.broken is not None:
        worst = {item.metric: item.reference for item in spec.objectives}
        return Verdict("COMPLETE", f"broken: {outcome.broken}", worst, {BROKEN: 1.0})
    needed = [item.metric for item in spec.objectives]
    needed += [item.metric for item in spec.constraints]
    missing = [item for item in dict.fromkeys(needed) if not math.isfinite(outcome.value(item))]
    if missing:
        return Verdict("FAIL", f"no value for {_listed(outcome, missing)}")
    objectives = {item.metric: outcome.value(item.metric) for item in spec.objectives}
    violations = _violations(spec.constraints, outcome)
    broken = [item for item in spec.constraints if violations[item.metric] > 0]
    reason = "; ".join(
        f"{item.metric} {outcome.value(item.metric):.6g} "
        f"{'exceeds' if item.direction == 'minimize' else 'is below'} its budget {item.budget:g}"
        for item in broken
    )
    return Verdict("COMPLETE", reason or None, objectives, violations, feasible=not broken)


def _violations(constraints: list[Constraint], result: CandidateResult) -> dict[str, float]:
    """Violation by metric; of several constraints on one metric, the worst."""
    violations: dict[str, float] = {}
    for item in constraints:
        worst = violations.get(item.metric, -math.inf)
        violations[item.metric] = max(violation(item, result), worst)
    return violations


def _listed(result: CandidateResult, metrics: list[str]) -> str:
    parts = []
    for metric in metrics:
        estimate = result.metrics.get(metric)
        if estimate is None:
            parts.append(f"{metric} (not measured)")
        else:
            parts.append(f"{metric} ({estimate.unscored} responses unscored, {estimate.n} scored)")
    return ", ".join(parts)
