"""What a run was made with beside its declared study, by digest, and what of it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from safemerge.config.base import StrictModel

SCORING_VERSION = 3
"""Raised when the same answers get other scores, or the same prompts are asked or cut otherwise:
trials of two versions are never mixed in one run."""

ABSENT = "absent"
"""Stands for a digest where a folder holds no such file."""

AskedRows = Mapping[str, Sequence[Sequence[str]]]
"""Id and digest of the text of each row, by place, e.g. ``suites.harm.search``."""

SCORING = "another version of scoring"
_PARTS = {
    "chat_template": "chat template",
    "tokenizer": "tokenizer",
    "generation_config": "generation_config.json",
}


class StudyInputs(StrictModel):
    """Digests of what a study reads; a place that is missing was not there to be read."""

    scoring: int
    """`SCORING_VERSION` of the code."""
    files: dict[str, str] = Field(default_factory=dict)
    """Content of each data file, by place, e.g. ``suites.harm.search``."""
    models: dict[str, str] = Field(default_factory=dict)
    """Chat template, tokenizer and generation_config.json of base, experts and judges in folders,
    e.g. ``base.chat_template`` or ``judges.guard.tokenizer``."""
    rows: dict[str, str] = Field(default_factory=dict)
    """Rows as they are asked, ids and texts, by place; known once the data were loaded."""
    tasks: dict[str, str] = Field(default_factory=dict)
    """Definitions of lm_eval tasks, by suite, e.g. ``suites.arc.task``; known once loaded."""
    judges: dict[str, str] = Field(default_factory=dict)
    """Fingerprint of each judge's weights, by the judge's name; known where they are on disk."""


class InputChange(NamedTuple):
    """Something that is no longer what a run was made with."""

    kind: str
    """Field of `StudyInputs`."""
    place: str
    """E.g. ``suites.harm.search``, or a model's name."""
    found: str
    """What is there instead, e.g. ``another chat template``."""

    def __str__(self) -> str:
        return f"{self.found} ({self.place})"


def input_changes(
    before: StudyInputs,
    now: StudyInputs,
    *,
    rows_before: AskedRows | None = None,
    rows: AskedRows | None = None,
) -> list[InputChange]:
    """Find every input that changed; places that only one side knows are not compared.

    A data file counts by the rows that are asked of it where both sides know them, else by its
    content.

    Args:
        before: Of the stored run.
        now: Of the study that is given.
        rows_before: The stored run's rows, to name those that changed.
        rows: The given study's rows.
    """
    found = [
        InputChange("rows", place, _shown((rows_before or {}).get(place), (rows or {}).get(place)))
        for place in _differing(before.rows, now.rows)
    ]
    known = {*before.rows.keys() & now.rows.keys(), *before.tasks.keys() & now.tasks.keys()}
    found += [
        InputChange("files", place, "another data file")
        for place in _differing(before.files, now.files)
        if not any(place == one or place.startswith(f"{one}.") for one in known)
    ]
    for place in _differing(before.models, now.models):
        owner, _, part = place.rpartition(".")
        what = "no" if now.models[place] == ABSENT else "another"
        found.append(InputChange("models", owner, f"{what} {_PARTS[part]}"))
    found += [
        InputChange("tasks", place, "another definition of the lm_eval task, or lm_eval version")
        for place in _differing(before.tasks, now.tasks)
    ]
    found += [
        InputChange("judges", place, "other weights of the judge")
        for place in _differing(before.judges, now.judges)
    ]
    if before.scoring != now.scoring:
        found.append(InputChange("scoring", f"{now.scoring} for {before.scoring}", SCORING))
    return found


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [place for place in before if place in now and before[place] != now[place]]


def _shown(before: Sequence[Sequence[str]] | None, now: Sequence[Sequence[str]] | None) -> str:
    if before is None or now is None:
        return "other rows"
    was, given = ({one[0]: one[1] for one in rows} for rows in (before, now))
    found = {
        "gone": [identity for identity in was if identity not in given],
        "new": [identity for identity in given if identity not in was],
        "in other words": [key for key in was if key in given and was[key] != given[key]],
    }
    text = [f"{len(ids)} {what}, first {ids[0]}" for what, ids in found.items() if ids]
    return f"{len(now)} rows instead of {len(before)}: " + ("; ".join(text) or "another order")
