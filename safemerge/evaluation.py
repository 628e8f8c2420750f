"""One candidate, one split of the suites, one engine: recipe in, scores out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from safemerge.config.judge import JudgeSpec
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import Aggregate
from safemerge.config.suite import Choice, Classification, Harm, LmEval, task_metrics
from safemerge.data.lm_eval_task import LmEvalQuestions, LmEvalTask
from safemerge.data.suite import LoadedSuite
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Engine, Likelihood, TokenizedPrompt
from safemerge.engines.lm_eval_requests import LmEvalRequests
from safemerge.errors import EngineError, MergeError, ScoringError
from safemerge.records import (
    Answer,
    CandidateResult,
    MetricEstimate,
    Response,
    Score,
    Split,
    Timings,
)
from safemerge.scoring.added_metric import added_estimates
from safemerge.scoring.choice import score_choices
from safemerge.scoring.estimate import mean_estimate, suite_estimates
from safemerge.scoring.judge import Judge
from safemerge.scoring.lm_eval_score import score_lm_eval
from safemerge.scoring.local_judge import local_judge
from safemerge.scoring.task import score_responses
from safemerge.scoring.thinking import answers_alone, without_cut


class HarnessRequests(NamedTuple):
    """A suite of lm-evaluation-harness on one split."""

    questions: LmEvalQuestions
    asked: LmEvalRequests
    """The questions' requests, tokenised."""


@dataclass(frozen=True)
class PreparedSplit:
    """A split's suites with their prompts tokenised, ready for any candidate."""

    split: Split
    suites: tuple[LoadedSuite, ...]
    prompts: tuple[tuple[TokenizedPrompt, ...], ...]
    """Tokenised prompts, one tuple per suite, empty for suites that generate nothing."""
    judges: tuple[tuple[Judge, ...], ...] = ()
    """Judges, one tuple per suite, empty for suites that need none."""
    continuations: tuple[tuple[Continuation, ...], ...] = ()
    """Tokenised endings, one tuple per suite, empty for suites that generate."""
    harness: Mapping[str, HarnessRequests] = field(default_factory=dict)
    """What the lm_eval suites ask, by the suite's name."""
    thinking: Mapping[str, bool] = field(default_factory=dict)
    """Suites whose answers are scored without their thoughts; the value is whether the prompts
    open these."""

    @property
    def num_prompts(self) -> int:
        """Questions over all suites."""
        return sum(len(suite.samples) for suite in self.suites)


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
        make_judge: From a declared judge to one that works; in this process by default.

    Returns:
        What every candidate is asked.

    Raises:
        DataError: If a prompt and its answer do not fit the engine's context.
        ConfigError: If a judge's model lacks a label, or an lm_eval task samples its answers.
        CheckpointError: If a judge cannot be loaded.
    """
    prompts: list[tuple[TokenizedPrompt, ...]] = []
    continuations: list[tuple[Continuation, ...]] = []
    harness: dict[str, HarnessRequests] = {}
    thinking = {
        suite.name: chat.with_arguments(suite.chat).opens_thinking(where=f"suite '{suite.name}'")
        for suite in suites
        if suite.strip_thinking
    }
    for suite in suites:
        texts: Sequence[TokenizedPrompt] = ()
        endings: Sequence[Continuation] = ()
        if isinstance(suite.task, LmEval):
            harness[suite.name] = _harness_requests(suite, suite.task, chat, max_model_len)
            texts, endings = harness[suite.name].asked.both
        elif isinstance(suite.task, Choice):
            endings = chat.continuations(suite, max_model_len=max_model_len)
        else:
            texts = chat.tokenize(suite, max_model_len=max_model_len)
        prompts.append(tuple(texts))
        continuations.append(tuple(endings))
    judges = tuple(
        tuple(make_judge(spec) for spec in suite.task.judges(suite.split))
        if isinstance(suite.task, Harm)
        else ()
        for suite in suites
    )
    return PreparedSplit(
        suites[0].split,
        tuple(suites),
        tuple(prompts),
        judges,
        tuple(continuations),
        harness,
        thinking,
    )


def _harness_requests(
    suite: LoadedSuite, task: LmEval, chat: ChatFormat, max_model_len: int
) -> HarnessRequests:
    where = f"suite '{suite.name}', {suite.split}"
    loaded = suite.harness or LmEvalTask(task, where=where)
    chat = chat.with_arguments(suite.chat)
    questions = loaded.asked(suite.samples, chat.conversation)
    asked = LmEvalRequests(
        questions.instances,
        chat,
        max_model_len=max_model_len,
        max_tokens=task.max_tokens,
        where=where,
    )
    return HarnessRequests(questions, asked)


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
    likelihoods: tuple[Likelihood, ...] = ()
    broken: str | None = None
    """Why nothing can be scored, if so: the recipe has no weights, or they overflow."""


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
        gives a result without metrics, marked `broken`; so does one with non-finite
        log-probabilities, and one whose answers to open questions are mostly degenerate (its
        metrics are kept).

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
        CheckpointError: If a checkpoint's file changed; nothing is known either.
    """
    started = time.perf_counter()
    try:
        engine.load(recipe)
    except MergeError as error:
        now = time.perf_counter()
        return AnsweredSplit(recipe.digest, (), started, now, now, broken=str(error))
    loaded = time.perf_counter()
    responses, likelihoods = _ask(engine, recipe, prepared)
    generated = time.perf_counter()
    overflown = [item.sample_id for item in likelihoods if math.isnan(item.logprob)]
    broken = None
    if overflown:
        broken = f"non-finite log-probabilities: {len(overflown)} of {len(likelihoods)}"
    return AnsweredSplit(
        recipe.digest,
        tuple(responses),
        started,
        loaded,
        generated,
        likelihoods=tuple(likelihoods),
        broken=broken,
    )


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
    scores, metrics = _score(
        prepared, answered.responses, answered.likelihoods, aggregates, max_unscored
    )
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
        num_prompts=prepared.num_prompts,
        num_generated_tokens=sum(response.num_tokens for response in answered.responses),
        replica=replica,
        cut=_num_cut(prepared, answered.responses),
        broken=_degenerate(prepared.suites, metrics),
    )


def _num_cut(prepared: PreparedSplit, responses: Sequence[Response]) -> dict[str, int]:
    """Count answers without an end, by suite that has any."""
    answers, found = iter(responses), {}
    for suite, prompts in zip(prepared.suites, prepared.prompts, strict=True):
        num_cut = sum(not response.finished for response in islice(answers, len(prompts)))
        if num_cut and not isinstance(suite.task, Classification):
            found[suite.name] = num_cut
    return found


def _ask(
    engine: Engine, recipe: MergeRecipe, prepared: PreparedSplit
) -> tuple[list[Response], list[Likelihood]]:
    """Ask all suites at once: one batch of prompts, one of continuations."""
    prompts = [prompt for suite in prepared.prompts for prompt in suite]
    endings = [ending for suite in prepared.continuations for ending in suite]
    responses = engine.generate(prompts) if prompts else []
    likelihoods = engine.loglikelihoods(endings) if endings else []
    found: list[Response | Likelihood] = [*responses, *likelihoods]
    stale = {item.candidate for item in found} - {recipe.digest}
    if stale or (len(responses), len(likelihoods)) != (len(prompts), len(endings)):
        raise EngineError(
            f"evaluation: answers must come from candidate {recipe.digest}; got {len(found)} of "
            f"{len(prompts) + len(endings)} answers, foreign versions {sorted(stale)}."
        )
    return responses, likelihoods


def _score(
    prepared: PreparedSplit,
    responses: Sequence[Response],
    likelihoods: Sequence[Likelihood],
    aggregates: Mapping[str, Aggregate],
    max_unscored: float,
) -> tuple[dict[str, list[Score]], dict[str, MetricEstimate]]:
    scores: dict[str, list[Score]] = {}
    metrics: dict[str, MetricEstimate] = {}
    none: tuple[tuple[()], ...] = ((),) * len(prepared.suites)
    answers, endings = iter(responses), iter(likelihoods)
    for suite, prompts, asked, judges in zip(
        prepared.suites,
        prepared.prompts,
        prepared.continuations or none,
        prepared.judges or none,
        strict=True,
    ):
        answered = list(islice(answers, len(prompts)))
        found = list(islice(endings, len(asked)))
        cut: frozenset[str] = frozenset()
        if suite.name in prepared.thinking:
            answered, cut = answers_alone(answered, opened=prepared.thinking[suite.name])
        if isinstance(suite.task, LmEval):
            questions, requests = prepared.harness[suite.name]
            text = requests.answers(answered, found)
            made, estimates = score_lm_eval(
                suite, questions, text, metrics=task_metrics(suite.task)
            )
        else:
            if isinstance(suite.task, Choice):
                made = score_choices(suite.task, suite.samples, found)
            else:
                made = score_responses(suite.task, suite.samples, answered, judges=judges)
                made = without_cut(made, cut)
            estimates = suite_estimates(
                suite.name, task_metrics(suite.task), made, groups=suite.groups
            )
            if suite.metrics:
                made, more = added_estimates(
                    suite.name,
                    suite.metrics,
                    _answers(suite, answered, made),
                    groups=suite.groups,
                )
                estimates += more
        _check_unscored(suite.name, made, max_unscored)
        scores[suite.name] = _grouped(made, suite.groups)
        metrics.update((estimate.metric, estimate) for estimate in estimates)
    for name, aggregate in aggregates.items():
        metrics[name] = mean_estimate(name, [metrics[part] for part in aggregate.mean_of])
    return scores, metrics


def _answers(
    suite: LoadedSuite, responses: Sequence[Response], scores: Sequence[Score]
) -> list[Answer]:
    by_id = {response.sample_id: response for response in responses}
    found = []
    for sample, score in zip(suite.samples, scores, strict=True):
        said = by_id.get(sample.sample_id)
        found.append(
            Answer(
                prompt=sample.prompt,
                label=sample.label,
                text=None if said is None else said.text,
                num_tokens=0 if said is None else said.num_tokens,
                finished=said is None or said.finished,
                score=score,
            )
        )
    return found


def _grouped(scores: Sequence[Score], groups: Mapping[str, str]) -> list[Score]:
    """Name the group on the scores of samples that share one: comparisons need it."""
    return [
        score.model_copy(update={"group": groups[score.sample_id]})
        if score.sample_id in groups
        else score
        for score in scores
    ]


def _check_unscored(suite: str, scores: Sequence[Score], limit: float) -> None:
    reasons = [score.unscored for score in scores if score.unscored is not None]
    share = len(reasons) / max(1, len(scores))
    if share > limit:
        raise ScoringError(
            f"suite '{suite}': unscored {len(reasons)} of {len(scores)} responses ({share:.3f}), "
            f"limit {limit:g}; first reason: {reasons[0]}. "
            "Fix the judge or raise evaluator.max_unscored, then resume."
        )


def _degenerate(
    suites: Sequence[LoadedSuite], metrics: Mapping[str, MetricEstimate]
) -> str | None:
    for suite in suites:
        for row in suite.measures:
            limit, name = row.broken_above, f"{suite.name}.{row.name}"
            value = metrics[name].value
            if limit is not None and value is not None and value > limit:
                return f"degenerate text: {name} is {value:.2f}, limit {limit}"
    return None
