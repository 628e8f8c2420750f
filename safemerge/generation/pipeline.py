"""From declared sets to samples: questions, answers, the draw; each stage keyed by digest."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from safemerge.config.base import digest
from safemerge.config.chat import ONLY_DATED
from safemerge.data.distinct import DistinctTexts
from safemerge.data.rows import source_name
from safemerge.data.sample import sample_id
from safemerge.errors import DataError, ScoringError
from safemerge.generation.draft import draft_ask
from safemerge.generation.question import data_questions, question_texts
from safemerge.generation.record import (
    Ask,
    GeneratedSample,
    Outcome,
    Question,
    SetSummary,
    Tally,
    TaskKind,
)
from safemerge.generation.spec import (
    DOMAIN_PROMPT,
    SAFETY_PROMPT,
    UNSAFE_TOPICS,
    GenerateSpec,
    QuestionData,
    WriterSpec,
)
from safemerge.generation.stage import StageFile

FRAME = "{question}"
"""What a model is asked about a question, unless an expert's set says otherwise."""
SPARE = 1.25
"""Drafts asked for each question that is missing; some are dropped."""


class Work(Protocol):
    """Whoever asks the pool's models; see `safemerge.generation.pool`."""

    def __call__(
        self, kind: TaskKind, model: str, batches: Sequence[Sequence[Ask]]
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each batch, in order."""
        ...


Progress = Callable[[str, int, int], None]
"""Called with a stage's name, prompts done, prompts in all."""


class Generation:
    """One run over a declared file.

    Args:
        spec: Its models resolved to fingerprinted folders.
        stages: Folder of the stage files; what they hold is not asked again.
        work: Asks the models.
        progress: See `Progress`.
    """

    def __init__(
        self, spec: GenerateSpec, stages: Path, work: Work, *, progress: Progress
    ) -> None:
        self._spec = spec
        self._stages = stages
        self._work = work
        self._progress = progress
        self._digests = {ref.name: ref.digest for ref in spec.models}

    def safety(self) -> tuple[list[GeneratedSample], SetSummary]:
        """Make the safety set: one refusal drawn for each question that a model refused.

        Returns:
            At most the declared number of samples, and what was dropped.

        Raises:
            DataError: If no question is left, or nobody refused any.
            ScoringError: If the judge left too many answers unscored.
            EngineError: If an engine failed.
        """
        declared = self._spec.safety
        if declared is None:
            raise DataError("safety: must be declared; got none.")
        questions, asked = self._questions(
            "safety",
            declared.questions,
            expert=None,
            prompt=SAFETY_PROMPT,
            threshold=declared.max_similarity,
        )
        models = declared.answered_by or [ref.name for ref in self._spec.models]
        refusals: dict[str, dict[str, str]] = {question.id: {} for question in questions}
        answers = {}
        for model in models:
            found, answers[model] = self._answers(
                "safety", "refuse", model, questions, declared.max_tokens
            )
            for question in questions:
                if question.id in found:
                    refusals[question.id][model] = found[question.id]
        refused = [question for question in questions if refusals[question.id]]
        if not refused:
            raise DataError(
                f"safety: a model must refuse a question; got none of {len(questions)} refused by "
                f"{', '.join(models)}. Add an aligned model to the pool."
            )
        samples = []
        for question in refused[: declared.size]:
            drawn = random.Random(f"{self._spec.seed}/draw/{question.id}")
            model = drawn.choice(list(refusals[question.id]))
            samples.append(self._sample("safety", question, model, refusals[question.id][model]))
        dropped = {"nobody refused": len(questions) - len(refused)}
        dropped["more than wanted"] = len(refused) - len(samples)
        return samples, _summary(declared.size, samples, asked, answers, dropped)

    def experts(self) -> tuple[list[GeneratedSample], SetSummary]:
        """Make the domain set: each expert's answers to its own questions.

        Returns:
            See `safety`.

        Raises:
            DataError: If no question is left, or no answer.
            EngineError: If an engine failed.
        """
        declared = self._spec.experts
        if declared is None:
            raise DataError("experts: must be declared; got none.")
        samples: list[GeneratedSample] = []
        asked: dict[str, Tally] = {}
        answers: dict[str, Tally] = {}
        dropped: Counter[str] = Counter()
        distinct = DistinctTexts(threshold=declared.max_similarity)
        for index, item in enumerate(declared.sets):
            questions, tallies = self._questions(
                f"experts-{item.model}",
                item.questions,
                expert=item.model,
                prompt=DOMAIN_PROMPT,
                threshold=declared.max_similarity,
            )
            for writer, tally in tallies.items():
                asked[f"{writer} for {item.model}" if writer != item.model else writer] = tally
            found, answers[item.model] = self._answers(
                f"experts-{item.model}",
                "answer",
                item.model,
                questions,
                declared.max_tokens,
                frame=item.ask,
            )
            answered = [question for question in questions if question.id in found]
            repeats = distinct.add([question.text for question in answered])
            fresh = [one for one, repeat in zip(answered, repeats, strict=True) if repeat is None]
            dropped["asked of another expert"] += len(answered) - len(fresh)
            taken = fresh[: declared.share(index)]
            dropped["more than wanted"] += len(fresh) - len(taken)
            samples += [
                self._sample("experts", question, item.model, found[question.id], item.ask)
                for question in taken
            ]
        if not samples:
            raise DataError("experts: an answer must be kept; got none. See the stages' reasons.")
        return samples, _summary(declared.size, samples, asked, answers, dropped)

    # --- questions ----------------------------------------------------------------------

    def _questions(
        self,
        place: str,
        declared: WriterSpec | QuestionData,
        *,
        expert: str | None,
        prompt: str,
        threshold: float | None,
    ) -> tuple[list[Question], dict[str, Tally]]:
        """Distinct questions, and the tally by writer."""
        distinct = DistinctTexts(threshold=threshold)
        dropped: Counter[str] = Counter()
        if isinstance(declared, QuestionData):
            rows = data_questions(declared, place)
            writer, num_asked = source_name(declared.source), len(rows)
            repeats = distinct.add([text for text, _ in rows])
            dropped.update(repeat for repeat in repeats if repeat is not None)
            kept = [row for row, repeat in zip(rows, repeats, strict=True) if repeat is None]
        else:
            writer = declared.model or str(expert)
            examples = (
                question_texts(declared.examples, f"{place}.examples") if declared.examples else []
            )
            distinct = DistinctTexts(examples, threshold=threshold)
            written = declared.model_copy(update={"prompt": declared.prompt or prompt})
            kept, num_asked = self._drafts(place, written, writer, examples, distinct, dropped)
        if not kept:
            raise DataError(
                f"{place}: a question must be kept; got {num_asked} dropped: "
                f"{_reasons(dropped)}. Change the prompt, the examples or max_similarity."
            )
        tally = Tally(asked=num_asked, kept=len(kept), dropped=dict(sorted(dropped.items())))
        questions = [
            Question(
                id=sample_id(place.partition("-")[0], text),
                text=text,
                topic=topic,
                written_by=writer,
                writer_digest=self._digests.get(writer),
            )
            for text, topic in kept
        ]
        return questions, {writer: tally}

    def _drafts(
        self,
        place: str,
        declared: WriterSpec,
        writer: str,
        examples: Sequence[str],
        distinct: DistinctTexts,
        dropped: Counter[str],
    ) -> tuple[list[tuple[str, str | None]], int]:
        """Ask a writer round by round until enough distinct questions are there."""
        topics = declared.topics or list(UNSAFE_TOPICS)
        seed = f"{self._spec.seed}/{place}/{writer}"
        said = declared.model_dump(mode="json", exclude={"count", "max_attempts", "examples"})
        stage = self._stage(
            f"{place}-questions-{writer}", writer, said, list(examples), seed, distinct.threshold,
            declared.count, declared.max_attempts,
        )  # fmt: skip
        limit = declared.max_attempts or 4 * declared.count
        kept: list[tuple[str, str | None]] = []
        attempt = 0
        while len(kept) < declared.count and attempt < limit:
            num_asks = min(math.ceil(SPARE * (declared.count - len(kept))), limit - attempt)
            drafts = [
                draft_ask(
                    declared, attempt + index, prompt=str(declared.prompt), topics=topics,
                    examples=examples, seed=seed,
                )
                for index in range(num_asks)
            ]  # fmt: skip
            attempt += num_asks
            outcomes = self._run(stage, f"{place}: {writer} writes", "draft", writer, drafts)
            texts = []
            for (_, topic), outcome in zip(drafts, outcomes, strict=True):
                if outcome.text is None:
                    dropped[str(outcome.dropped)] += 1
                else:
                    texts.append((outcome.text, topic))
            for (text, topic), repeat in zip(
                texts, distinct.add([text for text, _ in texts]), strict=True
            ):
                if repeat is not None:
                    dropped[repeat] += 1
                elif len(kept) < declared.count:
                    kept.append((text, topic))
                else:
                    dropped["more than wanted"] += 1
        return kept, attempt

    # --- answers ------------------------------------------------------------------------

    def _answers(
        self,
        place: str,
        kind: TaskKind,
        model: str,
        questions: Sequence[Question],
        max_tokens: int,
        *,
        frame: str = FRAME,
    ) -> tuple[dict[str, str], Tally]:
        """Texts kept by question id, and the tally."""
        judge = None
        if kind == "refuse" and self._spec.safety is not None:
            judge = self._spec.safety.judge.model_dump(mode="json", exclude={"placement"})
            if judge.get("device") == "auto":
                judge["device"] = "cpu"  # the default before there was auto: what is kept, stays
        asks = [
            Ask(id=question.id, prompt=_framed(frame, question), max_tokens=max_tokens)
            for question in questions
        ]
        stage = self._stage(
            f"{place}-answers-{model}", model, [(ask.id, ask.prompt) for ask in asks], max_tokens,
            judge,
        )  # fmt: skip
        outcomes = self._run(
            stage, f"{place}: {model} answers", kind, model, [(ask, None) for ask in asks]
        )
        unscored = [outcome for outcome in outcomes if outcome.unscored]
        limit = self._spec.evaluator.max_unscored
        if len(unscored) > limit * len(outcomes):
            stage.remove()
            raise ScoringError(
                f"{place}: unscored {len(unscored)} of {len(outcomes)} answers of '{model}', "
                f"limit {limit:g}; first reason: {unscored[0].dropped}. Fix the judge or raise "
                "evaluator.max_unscored, then resume; these answers are asked again."
            )
        dropped = Counter(outcome.dropped for outcome in outcomes if outcome.dropped is not None)
        found = {
            question.id: outcome.text
            for question, outcome in zip(questions, outcomes, strict=True)
            if outcome.text is not None
        }
        tally = Tally(asked=len(asks), kept=len(found), dropped=dict(sorted(dropped.items())))
        return found, tally

    # --- shared -------------------------------------------------------------------------

    def _stage(self, name: str, model: str, *parts: Any) -> StageFile:
        """The file of a stage; its digest holds all that the outcomes hang on."""
        evaluator = self._spec.evaluator
        engine = [
            evaluator.engine, evaluator.dtype, evaluator.max_model_len, evaluator.max_num_seqs,
        ]  # fmt: skip
        # At its default it does not count: stages from before there was any stay valid.
        chat = [] if self._spec.chat == ONLY_DATED else [self._spec.chat]
        key = digest([self._digests[model], engine, *parts, *chat])
        return StageFile(self._stages, name, key)

    def _run(
        self,
        stage: StageFile,
        name: str,
        kind: TaskKind,
        model: str,
        asks: Sequence[tuple[Ask, Any]],
    ) -> list[Outcome]:
        size = self._spec.evaluator.max_num_seqs
        prompts = [ask for ask, _ in asks]
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        found: list[Outcome] = []
        for outcomes in stage.outcomes(batches, lambda todo: self._work(kind, model, todo)):
            found += outcomes
            self._progress(name, len(found), len(prompts))
        return found

    def _sample(
        self, set_name: Any, question: Question, model: str, response: str, frame: str = FRAME
    ) -> GeneratedSample:
        return GeneratedSample(
            id=question.id,
            prompt=_framed(frame, question),
            response=response,
            question=question.text,
            set=set_name,
            topic=question.topic,
            written_by=question.written_by,
            answered_by=model,
            writer_digest=question.writer_digest,
            model_digest=self._digests[model],
        )


def _framed(frame: str, question: Question) -> str:
    return frame.replace(FRAME, question.text)


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} x{count}" for reason, count in dropped.most_common()) or "none"


def _summary(
    wanted: int,
    samples: Sequence[GeneratedSample],
    questions: dict[str, Tally],
    answers: dict[str, Tally],
    dropped: dict[str, int],
) -> SetSummary:
    return SetSummary(
        wanted=wanted,
        written=len(samples),
        questions=questions,
        answers=answers,
        dropped={reason: count for reason, count in dropped.items() if count},
        taken_from=dict(sorted(Counter(sample.answered_by for sample in samples).items())),
    )
