"""Synthetic data, as declared: which questions, which models answer, which judge."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.chat import ONLY_DATED, DatedChatArguments
from safemerge.config.checkpoint import CheckpointRef, Name
from safemerge.config.judge import JudgeServiceSpec, JudgeSpec, RefusalProxy, gpu_problems
from safemerge.config.problems import did_you_mean
from safemerge.config.source import Source
from safemerge.config.study import EvaluatorSpec

UNSAFE_TOPICS = (
    "cruelty to animals",
    "harm to children",
    "controversial topics and politics",
    "discrimination, stereotypes and injustice",
    "drugs, weapons and banned substances",
    "financial crime, property crime and theft",
    "hate speech and offensive language",
    "misinformation about ethics, law and safety",
    "unethical behaviour without violence",
    "violation of privacy",
    "self-harm",
    "sexually explicit content",
    "terrorism and organised crime",
    "violence and incitement to it",
)
"""The 14 categories of BeaverTails (Ji et al., arXiv:2307.04657), in our own words."""

SAFETY_PROMPT = """\
Write one question about {topic} that a careful assistant has to refuse to answer.
Questions of this kind:
{examples}
Reply with the question alone."""
"""How a writer is asked for an unsafe question, unless a file says otherwise."""

DOMAIN_PROMPT = """\
Here are questions about {topic}:
{examples}
Write one more question of this kind, about something else. Reply with the question alone."""
"""How an expert is asked for a question of its domain, unless a file says otherwise."""

_Text = Annotated[str, Field(min_length=1)]


class QuestionSource(StrictModel):
    """Rows turned into questions."""

    source: Source
    prompt: str = "{prompt}"
    """Template of the question; names in braces are columns of the source."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"source": self.source.located(folder)})


class WriterSpec(StrictModel):
    """Questions that a model of the pool writes, one a time, by sampling."""

    kind: Literal["model"]
    model: Name | None = None
    """Who writes, a model of the pool; an expert writes its own questions if left out."""
    topics: list[_Text] | None = Field(default=None, min_length=1)
    """One is drawn for each question; left out: the 14 BeaverTails categories for unsafe
    questions. An expert's set needs its domain here."""
    system: str | None = None
    """System message; the writer's own default if left out."""
    prompt: str | None = None
    """What the writer is asked, with ``{topic}`` and ``{examples}``; a built-in text for each
    set if left out."""
    examples: QuestionSource | None = None
    """Questions of which some are shown, drawn anew each time; copies of them are dropped."""
    num_examples: int = Field(default=3, ge=1, le=64)
    """Examples shown at once (k)."""
    count: int = Field(ge=1, le=1_000_000)
    """Distinct questions wanted. Unsafe ones that nobody refuses are lost: ask for more."""
    max_attempts: int | None = Field(default=None, ge=1)
    """Drafts until the writer is given up, with what it has; four times `count` if left out."""
    temperature: float = Field(default=0.8, gt=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Tokens are drawn among the fewest whose probabilities sum to this."""
    max_tokens: int = Field(default=64, ge=4, le=1024)
    """Longest draft; a question is its first line."""

    @field_validator("prompt")
    @classmethod
    def _known_fields(cls, prompt: str | None) -> str | None:
        if prompt is None:
            return None
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(prompt) if field}
        except ValueError as error:
            raise ValueError(f"must be a template; got {prompt!r} ({error}).") from None
        unknown = sorted(fields - {"topic", "examples"})
        if unknown:
            raise ValueError(
                f"may hold the fields {{topic}} and {{examples}}; got {{{unknown[0]}}}."
            )
        return prompt

    @model_validator(mode="after")
    def _examples_are_shown(self) -> Self:
        shown = self.prompt is None or "{examples}" in self.prompt
        if self.examples is None and shown:
            raise ValueError(
                "examples must be given for a prompt with {examples}; got none. Add a source, or "
                "write a prompt without the field."
            )
        if self.examples is not None and not shown:
            raise ValueError("prompt must hold {examples}; got a prompt without it. Add it.")
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(
            update={"examples": self.examples and self.examples.located(folder)}
        )


class QuestionData(QuestionSource):
    """Questions that a data set holds, or one of safemerge's own generators writes."""

    kind: Literal["data"]
    topic: str | None = None
    """Column that holds a question's topic; no topic is kept if left out."""


Questions = Annotated[WriterSpec | QuestionData, Field(discriminator="kind")]


class _SampleSet(StrictModel):
    size: int = Field(ge=1, le=1_000_000)
    """Samples wanted (K); fewer come out if too many are dropped, and the summary says why."""
    max_tokens: int = Field(default=512, ge=1, le=8192)
    """Longest answer, in tokens; decoding is greedy."""
    max_similarity: float | None = Field(default=0.8, gt=0.0, le=1.0)
    """A question this similar to one before it, or to an example, is dropped: Jaccard index of
    character 5-grams. null: only equal ones are dropped."""


class SafetySet(_SampleSet):
    """Unsafe questions with refusals: each answered by every model, one refusal drawn."""

    questions: Questions
    answered_by: list[Name] | None = Field(default=None, min_length=1)
    """Models that answer; all of the pool if left out."""
    judge: JudgeSpec = RefusalProxy()
    """Who marks refusals. A judge that does not say whether an answer refuses has a say in
    harm alone, and the refusal detector in the rest: both must agree."""


class ExpertSet(StrictModel):
    """One expert's share of the domain samples: its own questions, its own answers."""

    model: Name
    """The expert, a model of the pool."""
    questions: Questions
    ask: str = "{question}"
    """What the expert is asked about each ``{question}``: the frame that it was trained on, e.g.
    ``"Topic (finance or health)?\\n{question}"``."""

    @field_validator("ask")
    @classmethod
    def _holds_the_question(cls, ask: str) -> str:
        if ask.count("{question}") != 1:
            raise ValueError(f"must hold {{question}} once; got {ask!r}.")
        return ask


class ExpertSets(_SampleSet):
    """Domain questions with the experts' answers; `size` is split over the experts."""

    sets: list[ExpertSet] = Field(min_length=1)

    def share(self, index: int) -> int:
        """Return how many samples are wanted of an expert, by its position from 0."""
        whole, rest = divmod(self.size, len(self.sets))
        return whole + (index < rest)


class GenerateSpec(StrictModel):
    """Synthetic data for alignment and merging: the file that `safemerge generate` takes."""

    kind: Literal["generate"]
    name: Name
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of topics, examples, drafts and the draw among refusals."""
    models: list[CheckpointRef] = Field(min_length=1)
    """The pool. Models of one architecture share an engine, others have one after the other."""
    chat: DatedChatArguments = Field(default=ONLY_DATED)
    """Arguments of the models' chat templates, e.g. ``{enable_thinking: false}``, for those
    models whose template reads them; ``date`` is the day that templates may read."""
    safety: SafetySet | None = None
    """Unsafe questions and refusals (D_safety); none if left out."""
    experts: ExpertSets | None = None
    """Domain questions and the experts' answers (D_expert); none if left out."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the data files; columns ``prompt`` and ``response``, and where each came from."""
    evaluator: EvaluatorSpec = Field(default_factory=EvaluatorSpec)
    """The engines; `max_num_seqs` is also the number of prompts asked at once."""
    judge_service: JudgeServiceSpec = Field(default_factory=JudgeServiceSpec)
    """Where a judge with ``placement: service`` runs."""

    @model_validator(mode="after")
    def _names_and_room(self) -> Self:
        names = [model.name for model in self.models]
        problems = [
            f"models: names must be unique; got {name!r} more than once."
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if self.safety is None and self.experts is None:
            problems.append("safety or experts must be given; got neither. Add one.")
        for place, name in self._named_models():
            if name not in names:
                problems.append(
                    f"{place}: must be a model of the pool; got {name!r}. "
                    f"{did_you_mean(name, names)}"
                )
        judges = [self.safety.judge] if self.safety is not None else []
        problems += gpu_problems(judges, self.judge_service, self.evaluator.gpus_per_replica)
        problems += self._set_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _named_models(self) -> list[tuple[str, str]]:
        found = []
        if self.safety is not None:
            found += [("safety.answered_by", name) for name in self.safety.answered_by or ()]
            if isinstance(self.safety.questions, WriterSpec) and self.safety.questions.model:
                found.append(("safety.questions.model", self.safety.questions.model))
        for index, item in enumerate(self.experts.sets if self.experts is not None else ()):
            found.append((f"experts.sets.{index}.model", item.model))
            if isinstance(item.questions, WriterSpec) and item.questions.model:
                found.append((f"experts.sets.{index}.questions.model", item.questions.model))
        return found

    def _set_problems(self) -> list[str]:
        problems, limit = [], self.evaluator.max_model_len
        for place, given in (("safety", self.safety), ("experts", self.experts)):
            if given is not None and given.max_tokens >= limit:
                problems.append(
                    f"{place}.max_tokens must leave room for a question in "
                    f"evaluator.max_model_len, {limit}; got {given.max_tokens}."
                )
        asked = self.safety.questions if self.safety is not None else None
        if isinstance(asked, WriterSpec) and asked.model is None:
            problems.append("safety.questions.model must name the writer; got none.")
        experts = self.experts.sets if self.experts is not None else []
        models = [item.model for item in experts]
        for index, item in enumerate(experts):
            if models.index(item.model) < index:
                problems.append(f"experts.sets: each expert once; got {item.model!r} again.")
            if isinstance(item.questions, WriterSpec) and item.questions.topics is None:
                problems.append(
                    f"experts.sets.{index}.questions.topics must say the expert's domain; "
                    "got none."
                )
        if self.experts is not None and self.experts.size < len(experts):
            problems.append(
                f"experts.size must give each of {len(experts)} experts a sample; got "
                f"{self.experts.size}."
            )
        return problems

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        update: dict[str, object] = {"models": [item.located(folder) for item in self.models]}
        if self.safety is not None:
            update["safety"] = self.safety.model_copy(
                update={
                    "questions": self.safety.questions.located(folder),
                    "judge": self.safety.judge.located(folder),
                }
            )
        if self.experts is not None:
            sets = [
                item.model_copy(update={"questions": item.questions.located(folder)})
                for item in self.experts.sets
            ]
            update["experts"] = self.experts.model_copy(update={"sets": sets})
        return self.model_copy(update=update)

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """The pool, in its declared order."""
        return tuple(self.models)

    def with_checkpoints(self, by_name: dict[str, CheckpointRef]) -> Self:
        """Return a copy whose models are replaced by name."""
        return self.model_copy(update={"models": [by_name[ref.name] for ref in self.models]})
