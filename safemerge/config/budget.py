"""What ends a search before its last trial: time, evaluators' work, a front that stands still."""

from __future__ import annotations

from pydantic import Field

from safemerge.config.base import StrictModel


class BudgetSpec(StrictModel):
    """Limits beside `num_trials`; whichever is reached first ends the search.

    Trials in flight are finished, nothing more is sampled, and the front is published. Reference
    points and warm starts count, and are evaluated in any case. A larger budget with ``--resume``
    continues the run.
    """

    wall_time: float | None = Field(default=None, gt=0)
    """Seconds in which some trial was being evaluated, over all calls that continued the run;
    starts of engines and the report split are not among them."""
    evaluator_seconds: float | None = Field(default=None, gt=0)
    """Seconds that replicas spent on candidates of the search, low rung included, added up over
    replicas."""
    hypervolume_plateau: int | None = Field(default=None, ge=1)
    """Scored sampled recipes in a row after which the search ends, if the hypervolume of the
    observed front did not grow by `plateau_growth`; counted from `sampler.startup` recipes on."""
    plateau_growth: float = Field(default=0.01, ge=0, lt=1)
    """Growth of the hypervolume that is progress, as a share of it: luck makes the observed front
    creep up."""
    expected_gain: float | None = Field(default=None, gt=0, lt=1)
    """End once none of the last three recipes was expected to raise the believed front's
    hypervolume by this share of it, e.g. 0.001. The Bayesian sampler's own estimate, made before
    each is evaluated; no other sampler has one."""
