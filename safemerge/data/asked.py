"""The rows that a study asks, as digests: what is compared when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from safemerge.config.base import digest
from safemerge.config.inputs import AskedRows
from safemerge.config.rung import RungSpec
from safemerge.data.rows import load_rows
from safemerge.data.sample import Sample
from safemerge.errors import DataError
from safemerge.records import Split

if TYPE_CHECKING:
    from safemerge.data.suite import LoadedSuite


def asked_rows(suites: Mapping[Split, Sequence[LoadedSuite]]) -> AskedRows:
    """Return id and digest of each row of a study's suites, in the order they are asked.

    Args:
        suites: Loaded suites by split.

    Returns:
        Rows by place, e.g. ``suites.harm.search``. A digest is over prompt, system message, gold
        answer, endings and group, worked examples included.
    """
    return {
        f"suites.{suite.name}.{split}": [(one.sample_id, _content(one)) for one in suite.samples]
        for split, loaded in suites.items()
        for suite in loaded
    }


def rung_rows(rung: RungSpec) -> AskedRows:
    """Return the rows of a low rung by place, e.g. ``rung.safety.0``; an id is by content.

    Raises:
        DataError: If a source cannot be read.
    """
    return {
        place: [(row.sample_id, "") for row in load_rows(data.source, where=place)]
        for place, data in rung.prompt_sets.items()
    }


def rows_digests(rows: AskedRows) -> dict[str, str]:
    """Return one digest of each place's rows."""
    return {place: digest([list(row) for row in asked]) for place, asked in rows.items()}


def task_definitions(suites: Mapping[Split, Sequence[LoadedSuite]]) -> dict[str, str]:
    """Return the digest of each lm_eval task's definition, e.g. at ``suites.arc.task``."""
    return {
        f"suites.{suite.name}.task": suite.harness.definition
        for loaded in suites.values()
        for suite in loaded
        if suite.harness is not None
    }


def check_asked(
    expected: Mapping[str, str], suites: Mapping[Split, Sequence[LoadedSuite]]
) -> None:
    """Refuse suites whose rows are not those that the run began with.

    For a process that loads them in the middle of a run.

    Args:
        expected: See `StudyInputs.rows`.
        suites: Loaded suites by split.

    Raises:
        DataError: If so; names the first suite and split.
    """
    for place, found in rows_digests(asked_rows(suites)).items():
        if expected.get(place, found) != found:
            raise DataError(
                f"{place}: the rows that are asked must be those that the run began with; got "
                "others. Put the data back as they were, then resume."
            )


def _content(sample: Sample) -> str:
    return digest([sample.prompt, sample.system, sample.label, list(sample.endings), sample.group])
