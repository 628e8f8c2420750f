"""Questions and examples that declared sources hold."""

from __future__ import annotations

from safemerge.data.rows import fill, load_rows
from safemerge.data.sample import Row
from safemerge.generation.spec import GenerateSpec, QuestionData, QuestionSource, WriterSpec


def check_questions(spec: GenerateSpec) -> None:
    """Read every declared source of questions and examples, before a model is started.

    Raises:
        DataError: If a source cannot be read, is empty, or lacks a column.
    """
    if spec.safety is not None:
        _check_source(spec.safety.questions, "safety.questions")
    for index, item in enumerate(spec.experts.sets if spec.experts is not None else ()):
        _check_source(item.questions, f"experts.sets.{index}.questions")


def _check_source(questions: WriterSpec | QuestionData, where: str) -> None:
    if isinstance(questions, QuestionData):
        data_questions(questions, where)
    elif questions.examples is not None:
        question_texts(questions.examples, f"{where}.examples")


def question_texts(declared: QuestionSource, where: str) -> list[str]:
    """Return a source's questions in their stable order; see `load_rows` for the errors."""
    return [
        fill(declared.prompt, row, where=f"{where}.prompt")
        for row in load_rows(declared.source, where=where)
    ]


def data_questions(declared: QuestionData, where: str) -> list[tuple[str, str | None]]:
    """Return a source's questions with their topics; see `load_rows` for order and errors."""

    def topic(row: Row) -> str | None:
        column = declared.topic
        return None if column is None else fill(f"{{{column}}}", row, where=f"{where}.topic")

    return [
        (fill(declared.prompt, row, where=f"{where}.prompt"), topic(row))
        for row in load_rows(declared.source, where=where)
    ]
