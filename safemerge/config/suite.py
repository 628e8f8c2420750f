"""What a candidate is asked, and how its answers are scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator

from safemerge.config.added_metric import AddedMetricRef
from safemerge.config.base import FREE, StrictModel
from safemerge.config.chat import ChatArguments
from safemerge.config.checkpoint import Name
from safemerge.config.few_shot import FewShot
from safemerge.config.judge import JudgeSpec, RefusalProxy
from safemerge.config.location import located_path
from safemerge.config.metric import TASK_METRICS, Direction, Metric, harness_metric
from safemerge.config.ready_made import ready_made_names, with_ready_made
from safemerge.config.source import PromptData

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class Classification(StrictModel):
    """The most probable of the labels must be the gold one; metric ``accuracy``.

    The answer is one token, chosen greedily among the labels' first tokens, so that a merge is
    never marked down for its format. Labels must differ in their first token.
    """

    kind: Literal["classification"]
    labels: list[str] = Field(min_length=2)
    codes: dict[str, str] = Field(default_factory=dict)
    """Label by value of the gold column, where the data hold numbers or letters for labels,
    e.g. ``{"0": negative, "1": positive}``; a value that is not in it is a label itself."""

    @property
    def max_tokens(self) -> int:
        """Tokens generated for an answer: the label's first one."""
        return 1

    @model_validator(mode="after")
    def _codes_are_labels(self) -> Self:
        for code, label in self.codes.items():
            if label not in self.labels:
                raise ValueError(
                    f"codes.{code}: must be one of the labels; got {label!r}. "
                    f"Labels: {', '.join(self.labels)}."
                )
        return self


class ExactMatch(StrictModel):
    """A pattern's last match in the answer must equal the gold answer; metric ``accuracy``."""

    kind: Literal["exact_match"]
    pattern: str = r"(.+)"
    """Regular expression with one group; its last match, stripped, is compared."""
    max_tokens: int = Field(default=256, gt=0, le=4096)

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"must be a regular expression; got {pattern!r} ({error}).") from None
        if groups != 1:
            raise ValueError(f"must have one group; got {groups} in {pattern!r}.")
        return pattern


class NumericAnswer(StrictModel):
    """A number in the answer must equal the gold one; metric ``accuracy``.

    The number behind the marker, else the boxed or last one, as `safemerge.scoring.number` reads
    it. The gold column is read alike, so it may hold the whole derivation.
    """

    kind: Literal["numeric"]
    marker: str = "####"
    """Text before the final number; empty to take the last number always."""
    max_tokens: int = Field(default=256, gt=0, le=4096)


class Choice(StrictModel):
    """The most probable of several endings must be the gold one, by log-probability.

    Metrics ``accuracy`` and ``gold_probability``. Nothing is generated. For questions whose
    options are letters in the prompt, `Classification` over the letters is the same at one
    token a question.
    """

    kind: Literal["choice"]
    endings: Annotated[list[str], Field(min_length=2)] | str
    """Templates of the endings, with columns in braces, e.g. ``"{option1}"``; or one field that
    holds a list, e.g. ``"{choices[text]}"``, for questions with different numbers of options. An
    ending is the assistant's answer, so blanks around it are cut."""
    gold: dict[str, int] | None = None
    """Position of the right ending by value of the gold column, from 0; left out: the column
    holds the position."""
    normalize: Literal["none", "characters"] = "none"
    """``characters`` divides an ending's log-probability by its length (lm-eval's acc_norm)."""

    @property
    def max_tokens(self) -> int:
        """Tokens generated for an answer."""
        return 0

    @model_validator(mode="after")
    def _gold_is_an_ending(self) -> Self:
        if isinstance(self.endings, str):
            return self
        for value, position in (self.gold or {}).items():
            if not 0 <= position < len(self.endings):
                raise ValueError(
                    f"gold.{value}: must be a position of an ending; got {position}, endings "
                    f"are 0 to {len(self.endings) - 1}."
                )
        return self


class Harm(StrictModel):
    """Unsafe requests.

    Metrics ``harmful_score``, ``refusal_rate``, ``complied_rate``, ``other_rate`` and
    ``incoherent_rate``.
    """

    kind: Literal["harm"]
    judge: JudgeSpec = RefusalProxy()
    """The search's judge."""
    report_judges: list[JudgeSpec] = Field(default_factory=list)
    """Judges of the report split; the first one gives the metrics, all of them the table of
    agreement. Left out: the search's judge, which a model judge needs `same_judge` for."""
    same_judge: bool = False
    """Say that the search's judge is the report's only one. A search may learn what its judge
    is blind to, so the report tells it."""
    measure: Literal["share", "grade"] = "share"
    """``share``: ``harmful_score`` is the share of answers flagged; ``grade``: the mean of the
    judge's harm in [0, 1], as StrongREJECT reports it."""
    max_tokens: int = Field(default=32, gt=0, le=4096)

    @model_validator(mode="after")
    def _fresh_report_judge(self) -> Self:
        names = [judge.name for judge in self.report_judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"report_judges: names must be unique; got {name!r} twice.")
        for judge in self.report_judges:
            if judge.name == self.judge.name and judge != self.judge:
                raise ValueError(
                    f"report_judges: one name must mean one judge; got two called {judge.name!r}."
                )
        is_same = all(judge.identity == self.judge.identity for judge in self.report_judges)
        offline = self.judge.kind == "refusal_proxy"
        if is_same and not self.same_judge and not offline:
            raise ValueError(
                "report_judges: must name a judge other than the search's; got "
                f"{', '.join(names) or 'none'}. Add one, or say same_judge: true."
            )
        if self.same_judge and not is_same:
            raise ValueError(
                f"same_judge: must not be true with other report judges; got {', '.join(names)}. "
                "Drop it."
            )
        return self

    def judges(self, split: Literal["search", "report"]) -> list[JudgeSpec]:
        """Return the judges of a split; the first one gives the metrics."""
        if split == "search":
            return [self.judge]
        return list(self.report_judges) or [self.judge]

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        report = [judge.located(folder) for judge in self.report_judges]
        return self.model_copy(
            update={"judge": self.judge.located(folder), "report_judges": report}
        )


class OverRefusal(StrictModel):
    """Benign requests that look edgy; metrics ``over_refusal_rate``, ``incoherent_rate``."""

    kind: Literal["over_refusal"]
    max_tokens: int = Field(default=32, gt=0, le=4096)


class LmEval(StrictModel):
    """A task of lm-evaluation-harness, with its own prompts, answer extraction and metrics.

    In a suite ``lm_eval: {task: gsm8k, ...}`` says the same. Both splits have the source
    ``{kind: lm_eval, start: ..., stop: ...}``: ranges of the task's own documents.
    """

    kind: Literal["lm_eval"]
    task: str = Field(min_length=1)
    """Name of one task, not of a group or tag."""
    metrics: dict[str, Direction] = Field(min_length=1)
    """The task's metrics that are read, each with its better direction."""
    filter: str | None = None
    """Name of the task's filter, e.g. ``strict-match``; may be left out if it has one only."""
    include_path: str | None = None
    """Folder of task files that are looked through before the harness's own."""
    allow_code: Annotated[bool, FREE] = False
    """Whether a task file that is none of the harness's own may name Python functions
    (``!function``), which then run with your rights. Read them first."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples; the task's own number if left out."""
    chat_template: bool = False
    """Ask in the model's chat format, worked examples as turns of the chat."""
    system: str | None = None
    """System message, or text before everything else where no chat template is applied."""
    max_tokens: int = Field(default=256, gt=0, le=4096)
    """Tokens generated for an answer, if the task does not say."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        if self.include_path is None:
            return self
        path = located_path(self.include_path, folder)
        return self.model_copy(update={"include_path": path})


Task = Annotated[
    Classification | ExactMatch | NumericAnswer | Choice | Harm | OverRefusal | LmEval,
    Field(discriminator="kind"),
]


def task_metrics(task: Task) -> tuple[Metric, ...]:
    """Return a task's metrics, named within the suite, in the order of results."""
    if isinstance(task, LmEval):
        return tuple(harness_metric(name, way) for name, way in task.metrics.items())
    return TASK_METRICS[task.kind]


class SuiteSpec(StrictModel):
    """One named set of prompts with its scoring, on two disjoint splits."""

    name: Name
    task: Task
    search: PromptData
    """Prompts used during the search."""
    report: PromptData
    """Prompts used once, for the front: disjoint from `search` by id and by text."""
    few_shot: FewShot | None = None
    """Worked examples before each question; none if left out."""
    chat: ChatArguments = Field(default_factory=dict, exclude_if=lambda given: not given)
    """Arguments of the chat template for this suite, which come before the study's."""
    strip_thinking: bool = Field(default=False, exclude_if=lambda given: not given)
    """Score what stands behind ``<think>...</think>`` alone. An answer that ends in its thoughts
    is an empty one; one that is cut in them at `max_tokens` is unscored."""
    metrics: list[AddedMetricRef] = Field(default_factory=list, exclude_if=lambda named: not named)
    """Metrics of installed packages, by name, beside the task's own; see `safemerge methods`."""
    group: str | None = None
    """Column whose equal values mark samples that are not independent (paraphrases of one
    request, say): intervals widen for it. Samples with the same prompt always are a group."""
    max_similarity: float | None = Field(default=0.8, gt=0.0, le=1.0)
    """A report prompt this similar to a prompt of the search, or to a training prompt of the
    study's own stages, and a prompt of either split this similar to one of the study's low rung,
    is refused: Jaccard index of character 5-grams, the template's fixed
    words aside. 0.8 catches the same request in slightly other words. null: only equal prompts
    are refused (for data that are alike by nature, e.g. sums that differ in a number)."""
    near_duplicates: Literal["refuse", "drop"] = "refuse"
    """``drop``: search prompts of this suite that are too similar to one of its report prompts
    are left out of the search instead, for data sets that hold paraphrases."""

    @model_validator(mode="before")
    @classmethod
    def _from_ready_made(cls, document: Any) -> Any:
        """Fill in what ``use: NAME`` stands for; the file's own keys come before it."""
        if isinstance(document, dict) and "lm_eval" in document and "task" not in document:
            text = document["lm_eval"]
            if not isinstance(text, dict):
                raise ValueError(
                    f"lm_eval: must name a task and its metrics; got {text!r}. "
                    "Write e.g. {task: gsm8k, metrics: {exact_match: maximize}}."
                )
            task = {"kind": "lm_eval", **text}
            rest = {key: value for key, value in document.items() if key != "lm_eval"}
            return {**rest, "task": task}
        return with_ready_made(document)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.pop("required", [])
        schema["properties"]["use"] = {
            "description": "A ready-made suite; the other keys change parts of it.",
            "enum": ready_made_names(),
            "type": "string",
        }
        schema["properties"]["lm_eval"] = {
            "description": "A task of lm-evaluation-harness; stands for `task` of that kind.",
            "type": "object",
        }
        named = [key if key != "task" else "lm_eval" for key in required]
        schema["anyOf"] = [{"required": keys} for keys in (required, ["use"], named)]
        return schema

    @model_validator(mode="after")
    def _added_metrics(self) -> Self:
        if self.metrics and isinstance(self.task, LmEval):
            raise ValueError("metrics: an lm_eval task has its own; name those in task.metrics.")
        names = [row.name for row in self.measures]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"metrics: names must be unique in a suite; got {name!r} twice.")
        return self

    @model_validator(mode="after")
    def _labels(self) -> Self:
        if isinstance(self.task, Classification | ExactMatch | NumericAnswer | Choice):
            for split in ("search", "report"):
                if getattr(self, split).label is None:
                    raise ValueError(
                        f"{split}.label must name the gold column for a {self.task.kind} task."
                    )
        return self

    @model_validator(mode="after")
    def _answers_are_texts(self) -> Self:
        if self.strip_thinking and isinstance(self.task, Classification | Choice):
            raise ValueError(
                f"strip_thinking must be for answers that are generated; got it with a "
                f"{self.task.kind} task. Remove it, or take exact_match or numeric."
            )
        if self.chat and isinstance(self.task, LmEval) and not self.task.chat_template:
            raise ValueError(
                "chat must be for prompts in the chat format; got it with an lm_eval task "
                "without it. Set task.chat_template: true, or remove it."
            )
        return self

    @model_validator(mode="after")
    def _harness(self) -> Self:
        is_harness = isinstance(self.task, LmEval)
        for split in ("search", "report"):
            kind = getattr(self, split).source.kind
            if (kind == "lm_eval") != is_harness:
                raise ValueError(
                    f"{split}.source.kind must be lm_eval for an lm_eval task, and for no other; "
                    f"got {kind} for a {self.task.kind} task."
                )
        # NOTE: by value: a study that was written out has every key.
        own = {
            key
            for key in ("prompt", "label", "system")
            for data in (self.search, self.report)
            if getattr(data, key) != PromptData.model_fields[key].default
        }
        own |= {key for key in ("few_shot", "group") if getattr(self, key) is not None}
        if is_harness and own:
            raise ValueError(
                f"an lm_eval task has prompts of its own; got {', '.join(sorted(own))}. Drop it."
            )
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        task = self.task.located(folder) if isinstance(self.task, Harm | LmEval) else self.task
        return self.model_copy(
            update={
                "task": task,
                "search": self.search.located(folder),
                "report": self.report.located(folder),
                "few_shot": self.few_shot and self.few_shot.located(folder),
            }
        )

    @property
    def judges(self) -> list[JudgeSpec]:
        """Judges of both splits, each once; none unless the task is harm."""
        if not isinstance(self.task, Harm):
            return []
        found: list[JudgeSpec] = []
        for judge in (*self.task.judges("search"), *self.task.judges("report")):
            found += [judge] if judge not in found else []
        return found

    @property
    def measures(self) -> tuple[Metric, ...]:
        """What is measured, named within the suite."""
        return (*task_metrics(self.task), *(item.loaded().row for item in self.metrics))
