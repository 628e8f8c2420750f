"""``safemerge schema``: the JSON schema of a declared file, or of a run's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safemerge.config.schema import json_schema, schema_of
from safemerge.records import Front, TrialRecord
from safemerge.study_document import StudyDocument

if TYPE_CHECKING:
    import argparse

    from safemerge.config.base import StrictModel

RUN_FILES: dict[str, type[StrictModel]] = {
    "front": Front,
    "trial": TrialRecord,
    "study-document": StudyDocument,
}
"""What a run's folder holds: ``front.json``, a line of ``trials.jsonl``, ``study.json``."""


def run(options: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(printed_schema(options.name), indent=2))


def printed_schema(name: str) -> dict[str, Any]:
    """Return the schema of a kind of file, or of one of `RUN_FILES`."""
    model = RUN_FILES.get(name)
    return json_schema(name) if model is None else schema_of(name, model)
