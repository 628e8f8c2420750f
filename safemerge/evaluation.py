"""One candidate, one split of the suites, one engine: recipe in, scores out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safemerge.config.judge import JudgeSpec
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import Aggregate
from safemerge.config.suite import Choice, Harm
from safemerge.data.suite import LoadedSuite
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine, TokenizedPrompt
from safemerge.errors import ConfigError, EngineError, MergeError, ScoringError
from safemerge.records import CandidateResult, MetricEstimate, Response, Score, Split, Timings
from safemerge.scoring.estimate import mean_estimate, suite_estimates
from safemerge.scoring.judge import Judge
from safemerge.scoring.local_judge import local_judge
from safemerge.scoring.task import score_responses

MAX_INCOHERENT = 0.5
"""Above this share of degenerate answers to open questions a candidate counts as broken."""


@dataclass(frozen=True)
class PreparedSplit:
    """A split's suites with their prompts tokenised, ready for any candidate."""

    split: Split
    suites: tuple[LoadedSuite, ...]
    prompts: tuple[tuple[TokenizedPrompt, ...], ...]
    """Tokenised prompts, one tuple per suite."""
    judges: tuple[tuple[Judge, ...], ...] = ()
    """Judges, one tuple per suite, empty for suites that need none."""

    @property
    def num_prompts(self) -> int:
        """Prompts over all suites."""
        return sum(map(len, self.prompts))


def prepare_split(
    suites: Sequence[LoadedSuite],
    chat: ChatFormat,
    *,
    max_model_len: int,
    make_judge: Callable[[JudgeSpec], Judge] = local_judge,
) -> PreparedSplit:
    """Tokenise a split's suites once, and make their judges ready.

    Args:
        suites: The split's suites.
        chat: The model's chat format.
        max_model_len: The engine's context, in tokens.
        make_judge: From a declared judge to one that works; in this process, unless told.

    Returns:
        What every candidate is asked.

    Raises:
        DataError: If a prompt and its answer do not fit the engine's context.
        ConfigError: If a task needs what no engine gives yet, or a judge's model lacks a label.
        CheckpointError: If a judge cannot be loaded.
    """
    for suite in suites:
        if isinstance(suite.task, Choice):
            raise ConfigError(
                f"suite '{suite.name}': a choice by log-probability needs an engine that gives "
                "log-probabilities of endings; none does yet. Put the options into the prompt "
                "as letters and use a classification task."
            )
    prompts = tuple(tuple(chat.tokenize(suite, max_model_len=max_model_len)) for suite in suites)
    judges = tuple(
        tuple(make_judge(spec) for spec in suite.task.judges(suite.split))
        if isinstance(suite.task, Harm)
        else ()
        for suite in suites
    )
    return PreparedSplit(suites[0].split, tuple(suites), prompts, judges)


@dataclass(frozen=True)
class AnsweredSplit:
    """A candidate's answers to a split, before any is scored."""

    candidate: str
    """Digest of the recipe."""
    responses: tuple[Response, ...]
    started: float
    """`time.perf_counter` of this process, as are the others."""
    loaded: float
    generated: float
    broken: str | None = None
    """Why the recipe has no weights, if so; nothing was asked then."""


def evaluate_candidate(
    engine: Engine,
    recipe: MergeRecipe,
    prepared: PreparedSplit,
    *,
    aggregates: Mapping[str, Aggregate],
    max_unscored: float,
    replica: str = "",
) -> CandidateResult:
    """Merge, ask everything in one batch, score.

    Args:
        engine: Holds the checkpoints that the recipe names.
        recipe: Resolved recipe.
        prepared: What is asked.
        aggregates: Means of metrics, by name.
        max_unscored: Largest share of unscored responses of a suite.
        replica: Name of the evaluator replica, for the record.

    Returns:
        Metrics with intervals and per-sample scores. A recipe that merges to non-finite weights
        gives a result without metrics, marked `broken`; so does one whose answers to open
        questions are mostly degenerate (its metrics are kept).

    Raises:
        EngineError: If the engine failed; nothing is known about the candidate.
        ScoringError: If too many responses are unscored.
    """
    return score_candidate(
        answer_candidate(engine, recipe, prepared),
        prepared,
        aggregates=aggregates,
        max_unscored=max_unscored,
        replica=replica,
    )


def answer_candidate(
    engine: Engine, recipe: MergeRecipe, prepared: PreparedSplit
) -> AnsweredSplit:
    """Merge, and ask everything in one batch: the part that needs the engine.

    Args:
        engine: Holds the checkpoints that the recipe names.
        recipe: Resolved recipe.
        prepared: What is asked.

    Raises:
        EngineError: If the engine failed; nothing is known about the candidate.
    """
    started = time.perf_counter()
    try:
        engine.load(recipe)
    except MergeError as error:
        now = time.perf_counter()
        return AnsweredSplit(recipe.digest, (), started, now, now, broken=str(error))
    loaded = time.perf_counter()
    asked = [prompt for prompts in prepared.prompts for prompt in prompts]
    responses = engine.generate(asked)
    generated = time.perf_counter()
    stale = {response.candidate for response in responses} - {recipe.digest}
    if stale or len(responses) != len(asked):
        raise EngineError(
            f"evaluation: answers must come from candidate {recipe.digest}; got "
            f"{len(responses)} of {len(asked)} answers, foreign versions {sorted(stale)}."
        )
    return AnsweredSplit(recipe.digest, tuple(responses), started, loaded, generated)


def score_candidate(
    answered: AnsweredSplit,
    prepared: PreparedSplit,
    *,
    aggregates: Mapping[str, Aggregate],
    max_unscored: float,
    replica: str = "",
) -> CandidateResult:
    """Score a candidate's answers: the part that needs no engine, so another may be asked.

    Args:
        answered: See `answer_candidate`.
        prepared: What was asked.
        aggregates: Means of metrics, by name.
        max_unscored: Largest share of unscored responses of a suite.
        replica: Name of the evaluator replica, for the record.

    Returns:
        See `evaluate_candidate`.

    Raises:
        ScoringError: If too many responses are unscored.
    """
    if answered.broken is not None:
        return CandidateResult(
            candidate=answered.candidate,
            split=prepared.split,
            metrics={},
            broken=answered.broken,
            replica=replica,
        )
    scores, metrics = _score(prepared, answered.responses, aggregates, max_unscored)
    finished = time.perf_counter()
    return CandidateResult(
        candidate=answered.candidate,
        split=prepared.split,
        metrics=metrics,
        scores=scores,
        timings=Timings(
            swap_s=answered.loaded - answered.started,
            generate_s=answered.generated - answered.loaded,
            score_s=finished - answered.generated,
            total_s=finished - answered.started,
        ),
        num_prompts=len(answered.responses),
        num_generated_tokens=sum(response.num_tokens for response in answered.responses),
        replica=replica,
        broken=_degenerate(metrics),
    )


def _score(
    prepared: PreparedSplit,
    responses: Sequence[Response],
    aggregates: Mapping[str, Aggregate],
    max_unscored: float,
) -> tuple[dict[str, list[Score]], dict[str, MetricEstimate]]:
    scores: dict[str, list[Score]] = {}
    metrics: dict[str, MetricEstimate] = {}
    offset = 0
    judges = prepared.judges or ((),) * len(prepared.suites)
    for suite, suite_judges in zip(prepared.suites, judges, strict=True):
        answers = responses[offset : offset + len(suite.samples)]
        offset += len(suite.samples)
        scores[suite.name] = score_responses(
            suite.task, suite.samples, answers, judges=suite_judges
        )
        _check_unscored(suite.name, scores[suite.name], max_unscored)
        for estimate in suite_estimates(
            suite.name, suite.task.kind, scores[suite.name], groups=suite.groups
        ):
            metrics[estimate.metric] = estimate
    for name, aggregate in aggregates.items():
        metrics[name] = mean_estimate(name, [metrics[part] for part in aggregate.mean_of])
    return scores, metrics


def _check_unscored(suite: str, scores: Sequence[Score], limit: float) -> None:
    reasons = [score.unscored for score in scores if score.unscored is not None]
    share = len(reasons) / max(1, len(scores))
    if share > limit:
        raise ScoringError(
            f"suite '{suite}': unscored {len(reasons)} of {len(scores)} responses ({share:.3f}), "
            f"limit {limit:g}; first reason: {reasons[0]}. "
            "Mend the judge or raise evaluator.max_unscored, then resume."
        )


def _degenerate(metrics: Mapping[str, MetricEstimate]) -> str | None:
    for name, estimate in metrics.items():
        if name.endswith(".incoherent_rate") and (estimate.value or 0.0) > MAX_INCOHERENT:
            return f"degenerate text: {name} is {estimate.value:.2f}, limit {MAX_INCOHERENT}"
    return None
