"""What a search asks for, and what it gets when no result came back."""

from __future__ import annotations

from dataclasses import dataclass, field

from safemerge.config.recipe import MergeRecipe
from safemerge.records import TrialRole


@dataclass(frozen=True)
class Proposal:
    """A candidate to evaluate on the search split, and then to tell about by its number."""

    number: int
    """Position in the study, from 0; unique over all runs of the study."""
    role: TrialRole
    label: str
    """The parent's name, ``mean``, ``start NAME``, or ``trial N``."""
    recipe: MergeRecipe
    space: str | None = None
    """Search space it was drawn from; None for a reference."""
    params: dict[str, float | int | bool | str] = field(default_factory=dict)
    """Value by dotted path."""
    start: str | None = None
    """Warm start that it was sampled for."""
    exact_of: int | None = None
    """Trial with interpolated weights that this one is trained for."""
    attempt: int = 0
    """How often this candidate crashed before, in this study."""
    expected_gain: float | None = None
    """See `TrialRecord.expected_gain`."""

    @property
    def candidate(self) -> str:
        """Digest of the candidate."""
        return self.recipe.digest


@dataclass(frozen=True)
class Failure:
    """Nothing is known about the candidate: its evaluation crashed, timed out or was stopped."""

    reason: str
    """One line, without generated text."""
    retry: bool = True
    """Whether another try may end differently, as after a crash. Too many unscored responses
    are no crash."""


@dataclass(frozen=True)
class Pruned:
    """The candidate was stopped at the low rung; it has losses and no result."""

    reason: str
    """One line: which trial beat it there."""
