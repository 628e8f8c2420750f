"""Data that a merge was made with, as recorded in its recipe, and read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safemerge.config.base import digest
from safemerge.config.source import PromptData, SeenData
from safemerge.data.rows import load_rows, own_words
from safemerge.data.sample import Row
from safemerge.errors import DataError


def recorded(sets: Mapping[str, PromptData]) -> list[SeenData]:
    """Return what a recipe keeps of data sets: where they are, and which rows they held.

    Args:
        sets: By place for messages, paths resolved.

    Raises:
        DataError: If a source is unreadable or empty.
    """
    return [
        SeenData(
            name=place,
            data=PromptData(source=data.source, prompt=data.prompt),
            rows=_rows_digest(load_rows(data.source, where=place)),
        )
        for place, data in sets.items()
    ]


def check_unchanged(seen: Sequence[SeenData]) -> None:
    """Refuse recorded data that hold other rows now: what was seen is not known any more.

    Raises:
        DataError: If so, or if a source is gone.
    """
    for item in seen:
        where = f"data behind the recipe, {item.name}"
        found = _rows_digest(load_rows(item.data.source, where=where))
        if found != item.rows:
            raise DataError(
                f"{where}: must hold the rows that the recipe was made with; got digest {found}, "
                f"recorded {item.rows}. Put the data back as they were."
            )


def seen_texts(sets: Mapping[str, PromptData]) -> Iterator[tuple[str, str]]:
    """Yield the id and a text of every prompt that a report must not hold.

    Generated data hold a prompt in its frame and, in the column ``question``, the question
    alone: both are yielded, the second under an id of its own.

    Args:
        sets: By place for messages.

    Raises:
        DataError: If a source is unreadable, or a template names a column that a row lacks.
    """
    for place, data in sets.items():
        for row in load_rows(data.source, where=place):
            text = own_words(data.prompt, row, where=place)
            yield row.sample_id, text
            question = row.columns.get("question")
            if isinstance(question, str) and question.strip() not in ("", text):
                yield f"{row.sample_id}/question", question


def _rows_digest(rows: Sequence[Row]) -> str:
    return digest([row.sample_id for row in rows])
