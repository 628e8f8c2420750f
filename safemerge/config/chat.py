"""What a chat template is given beside the messages."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import AfterValidator

DEFAULT_DATE = "2024-07-26"
"""Day that templates are given where a file names none: a fixed one, so that a prompt does not
hang on the clock; the one that Llama 3.1's template falls back to."""

RESERVED = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "strftime_now",
        "raise_exception",
    }
)
"""Arguments that safemerge or transformers sets."""

Scalar = str | bool | int | float | None
"""A value that a template argument may have."""


def _checked(arguments: dict[str, Scalar]) -> dict[str, Scalar]:
    taken = sorted(set(arguments) & RESERVED)
    if taken:
        raise ValueError(
            f"must hold arguments of the template's own; got {taken[0]!r}, which safemerge or "
            "transformers sets. Remove it."
        )
    date = arguments.get("date", DEFAULT_DATE)
    try:
        day = datetime.date.fromisoformat(date) if isinstance(date, str) else None
    except ValueError:
        day = None
    if day is None or day.isoformat() != date:
        raise ValueError(f"date: must be a day like {DEFAULT_DATE}; got {date!r}.")
    return arguments


def _dated(arguments: dict[str, Scalar]) -> dict[str, Scalar]:
    return {"date": DEFAULT_DATE, **arguments}


ChatArguments = Annotated[dict[str, Scalar], AfterValidator(_checked)]
"""Template arguments by name, e.g. ``{enable_thinking: false}``. ``date`` is the day that a
template may read, as ``strftime_now`` or ``date_string``."""

DatedChatArguments = Annotated[ChatArguments, AfterValidator(_dated)]
"""The same with `DEFAULT_DATE` filled in, so that a record says which day it was."""

ONLY_DATED: dict[str, Scalar] = {"date": DEFAULT_DATE}
"""No argument but the default day."""
