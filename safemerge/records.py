"""Frozen results that cross a border: what an evaluator returns and a store keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.metric import Direction, Unit

INTERRUPTED = "interrupted: the driver stopped before the result came back"
"""Reason of a trial that was in flight then; another one asks its recipe again."""

Split = Literal["search", "report"]
"""Which prompts: those of the search, or the held-out ones that the front is published on."""


class Response(StrictModel):
    """What a candidate answered to one sample."""

    sample_id: str
    text: str
    num_tokens: int = Field(ge=0)
    """Generated tokens, end of turn included."""
    finished: bool
    """False if the answer was cut at the token limit."""
    candidate: str
    """Weight version the engine stamped on the answer: the candidate's digest."""


class Score(StrictModel):
    """How one response was judged; `unscored` says why there is no verdict."""

    sample_id: str
    values: dict[str, float] = Field(default_factory=dict)
    """Value by metric, in [0, 1] for shares; empty if unscored."""
    unscored: str | None = None
    """Reason there is no verdict; never counted as 0."""
    verdicts: dict[str, bool | None] = Field(
        default_factory=dict, exclude_if=lambda made: not made
    )
    """Whether each of several judges flags the response, by the judge's name; None: that judge
    gave no verdict. Empty where one judge scored alone."""
    group: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """Name of the group of a suite's samples that are not independent, e.g. those that share a
    prompt; None for a sample that stands for itself."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if bool(self.values) == (self.unscored is not None):
            raise ValueError("a score has values or a reason why it is unscored, not both.")
        return self


@dataclass(frozen=True)
class Answer:
    """A scored answer, as the metrics of other packages see it."""

    prompt: str
    """The user's message, without chat markup."""
    label: str | None
    """Gold label or answer, where the task compares with one."""
    text: str | None
    """What the candidate said, without thoughts where the suite strips them; None where nothing
    is generated (`choice`)."""
    num_tokens: int
    """Generated tokens, end of turn included."""
    finished: bool
    """False if the answer was cut at the token limit."""
    score: Score
    """The suite's own values, by its metrics' names, e.g. ``score.values["accuracy"]``."""


class MetricEstimate(StrictModel):
    """An aggregate with its sample size and 95 % interval."""

    metric: str
    """``suite.metric`` or an aggregate's name."""
    value: float | None
    """Mean over scored samples; None if nothing was scored."""
    low: float | None
    """Lower end of the 95 % interval (Wilson for shares)."""
    high: float | None
    n: int = Field(ge=0)
    """Scored samples."""
    unscored: int = Field(default=0, ge=0)
    """Samples without a verdict."""
    direction: Direction
    unit: Unit = "share"
    """How the value is printed; it is a fraction for shares."""


class Timings(StrictModel):
    """Wall-clock seconds of one candidate's evaluation, by part."""

    swap_s: float = 0.0
    """Recipe to weights in the live engine, cache reset included."""
    generate_s: float = 0.0
    score_s: float = 0.0
    total_s: float = 0.0


class CandidateResult(StrictModel):
    """One candidate on one split of the suites."""

    candidate: str
    """Digest of the recipe's weights; every response carried it as its weight version."""
    split: Split
    metrics: dict[str, MetricEstimate]
    """Estimate by full metric name, aggregates included."""
    scores: dict[str, list[Score]] = Field(default_factory=dict)
    """Per-sample scores by suite, for paired comparisons; no text."""
    timings: Timings = Field(default_factory=Timings)
    num_prompts: int = 0
    num_generated_tokens: int = 0
    replica: str = ""
    """Which evaluator replica answered."""
    cut: dict[str, int] = Field(default_factory=dict, exclude_if=lambda given: not given)
    """Answers that reached `max_tokens`, by suite; not of suites whose answers are one token by
    their kind, and none where no answer was cut."""
    broken: str | None = None
    """Why the candidate is deterministically broken (NaN weights, degenerate text), if so."""

    def value(self, metric: str) -> float:
        """Return a metric's value, NaN if it is missing or unscored."""
        estimate = self.metrics.get(metric)
        return math.nan if estimate is None or estimate.value is None else estimate.value


class RungResult(StrictModel):
    """A candidate's losses on the pairs of the low rung."""

    candidate: str
    """Digest of the candidate."""
    losses: dict[str, list[list[float]]]
    """Nats a target token, lower is better: of each row in order, by set, then by source."""
    rows: str = ""
    """Digest of the rows: losses on other rows are not compared."""
    timings: Timings = Field(default_factory=Timings)
    """Swap, then scoring."""
    replica: str = ""
    """Which evaluator replica scored it."""


TrialState = Literal["COMPLETE", "PRUNED", "FAIL"]
"""PRUNED: stopped at the low rung, so without a result."""
TrialRole = Literal["sampled", "reference"]

MEAN_LABEL = "mean"
"""Label of the reference point that is the experts' plain mean."""


class TrialRecord(StrictModel):
    """One finished trial: a line of ``trials.jsonl``."""

    number: int = Field(ge=0)
    """Position in the study, from 0."""
    role: TrialRole
    """``reference``: a parent, the plain mean or a warm start as it is; ``sampled``: proposed by
    the sampler."""
    label: str
    """Human name: the parent's, ``mean``, ``start NAME``, or ``trial N``."""
    expected_gain: float | None = Field(default=None, exclude_if=lambda given: given is None)
    """By how much the sampler expected it to raise the believed front's hypervolume, as a share of
    that; None if it did not say."""
    state: TrialState
    reason: str | None = None
    """Why it failed or was pruned, or why a complete trial is infeasible."""
    retried: bool = Field(default=False, exclude_if=lambda given: not given)
    """Whether another trial tries this one again after a crash: the two cost one recipe."""
    space: str | None = None
    """Search space it was drawn from."""
    params: dict[str, float | int | bool | str] = Field(default_factory=dict)
    """Varied values by dotted path."""
    start: str | None = None
    """Warm start that it was sampled for; None if the sampler chose freely."""
    exact_of: int | None = Field(default=None, exclude_if=lambda given: given is None)
    """Trial with interpolated weights whose values were trained for and scored here."""
    recipe: dict[str, Any]
    """The resolved recipe, as a document."""
    candidate: str
    """Digest of the candidate."""
    objectives: dict[str, float] = Field(default_factory=dict)
    """Value by metric; empty for FAIL and PRUNED."""
    violations: dict[str, float] = Field(default_factory=dict)
    """Constraint violation by metric, 0 or less where it holds."""
    feasible: bool = False
    result: CandidateResult | None = None
    """Search-split result; None for FAIL and PRUNED."""
    rung: RungResult | None = Field(default=None, exclude_if=lambda given: given is None)
    """Losses on the low rung, if the study has one."""
    rival: int | None = Field(default=None, exclude_if=lambda given: given is None)
    """Trial that is better on every set of the rung. With a result this trial was scored all the
    same: audited, or before pruning had begun."""
    started_at: str = ""
    """UTC, ISO 8601."""
    finished_at: str = ""

    def experts(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield name and checkpoint of each expert; of one between two checkpoints, both."""
        for expert in self.recipe.get("experts", ()):
            between = expert.get("between")
            for end in [expert] if between is None else [between["low"], between["high"]]:
                yield expert["name"], end

    @property
    def is_tried_again(self) -> bool:
        """Whether another trial asks its recipe again, so that the two count once."""
        return self.retried or self.reason == INTERRUPTED

    @property
    def interpolated(self) -> bool:
        """Whether weights between two trained models were scored: an estimate, not for a front."""
        return any(expert.get("between") is not None for expert in self.recipe.get("experts", ()))


class Believed(StrictModel):
    """What is believed of a value after all evaluations: posterior mean and 95 % interval."""

    mean: float
    low: float
    high: float


class PointBelief(StrictModel):
    """What is believed of one candidate on the search split's kind of prompts."""

    values: dict[str, Believed]
    """By metric, of the objectives."""
    chance: float = Field(ge=0, le=1)
    """Probability that no other candidate dominates it and that it keeps every limit."""


class FrontBelief(StrictModel):
    """How a front was chosen by a posterior."""

    evaluations: int = Field(ge=0)
    """Scored trials that the model was fitted to."""
    members: list[int]
    """Trials whose posterior means no other's dominate, by number."""
    chance: float
    """Points from this probability on are published, the members in any case."""
    hypervolume: Believed
    """Of the published points."""
    importance: dict[str, dict[str, dict[str, float]]] = Field(
        default_factory=dict, exclude_if=lambda given: not given
    )
    """Total effect of each parameter on the model's mean of an objective, by metric, space and
    dotted path: the share of its variance over the space that the parameter has a part in, in
    [0, 1]. Empty in runs from before it was kept."""


class FrontPoint(StrictModel):
    """A point of the published front: searched, then evaluated on the report split."""

    number: int
    label: str
    candidate: str
    role: TrialRole
    search: CandidateResult
    report: CandidateResult
    recipe: dict[str, Any]
    belief: PointBelief | None = Field(default=None, exclude_if=lambda given: given is None)
    """None where the front is the observed one."""


class Front(StrictModel):
    """What ``front.json`` holds."""

    study: str
    study_digest: str
    objectives: list[dict[str, Any]]
    """Metric, direction and reference of each objective."""
    points: list[FrontPoint]
    """Non-dominated feasible trials on the search split, as observed or as believed, all reported
    on the report split."""
    references: list[FrontPoint] = Field(default_factory=list)
    """Parents, the plain mean and warm starts, on both splits, for comparison."""
    knee: int | None = None
    """Trial number of the knee point: by posterior means where there is a belief, else on the
    report split."""
    belief: FrontBelief | None = Field(default=None, exclude_if=lambda given: given is None)
    """How the points were chosen by a posterior; None where they are the observed front."""
    covered: bool = Field(default=False, exclude_if=lambda given: not given)
    """Whether the search ended because every recipe of its spaces was sampled."""
    ended_by: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """Which budget ended the search before its number of trials, in words, if one did."""
    hypervolume_search: float | None = None
    hypervolume_report: float | None = None
