"""A trial that was asked for and not finished yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safemerge.provenance import utc_now
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.flight import FlyingTrial
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.rung import Rival
from safemerge.search.verdict import Verdict

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Pending:
    """A proposal in flight."""

    proposal: Proposal
    started_at: str
    trial: optuna.Trial | None
    """Optuna's side of it; None for a reference."""
    retry_of: int | None = None
    """Trial that it tries again."""
    rung: RungResult | None = None
    """Its losses, once it has been on the low rung."""
    rival: Rival | None = None
    """Candidate that beat it there."""

    def flying(self) -> FlyingTrial:
        """Return what is kept of a sampled trial while it is in flight."""
        proposal = self.proposal
        assert proposal.space is not None, "asked of sampled trials only"
        return FlyingTrial(
            number=proposal.number,
            space=proposal.space,
            params=dict(proposal.params),
            start=proposal.start,
            attempt=proposal.attempt,
            retry_of=self.retry_of,
            started_at=self.started_at,
        )

    def record(
        self, verdict: Verdict, outcome: CandidateResult | Failure | Pruned, *, retried: bool
    ) -> TrialRecord:
        """Return the record of the trial, now that it has ended and may be tried again."""
        proposal = self.proposal
        result = outcome if isinstance(outcome, CandidateResult) else None
        return TrialRecord(
            number=proposal.number,
            role=proposal.role,
            label=proposal.label,
            state=verdict.state,
            reason=verdict.reason,
            retried=retried and self.trial is not None,
            space=proposal.space,
            params=dict(proposal.params),
            start=proposal.start,
            exact_of=proposal.exact_of,
            expected_gain=proposal.expected_gain,
            recipe=proposal.recipe.resolved(),
            candidate=proposal.candidate,
            objectives=verdict.objectives,
            violations=verdict.violations,
            feasible=verdict.feasible,
            result=result if verdict.state == "COMPLETE" else None,
            rung=self.rung,
            rival=None if self.rival is None else self.rival.number,
            started_at=self.started_at,
            finished_at=utc_now(),
        )
