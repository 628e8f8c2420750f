"""``safemerge judge``: a judge's errors against labels that people gave."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.declared import declared
from safemerge.config.base import StrictModel
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.judge import JudgeSpec, RefusalProxy
from safemerge.config.study import StudySpec
from safemerge.data.file import Columns, file_rows
from safemerge.data.value import as_text
from safemerge.errors import ConfigError, DataError
from safemerge.scoring.judge import Exchange
from safemerge.scoring.labelled import (
    Claim,
    LabelledAccuracy,
    LabelledVerdict,
    labelled_accuracy,
    verdict_of,
)
from safemerge.scoring.local_judge import local_judge

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

WHERE = "judge"
_BATCH = 64


class _Declared(StrictModel):
    """A judge in a file of its own."""

    judge: JudgeSpec


def run(options: argparse.Namespace) -> None:
    """Print accuracy, precision and recall of each judge against the file's labels."""
    rows = file_rows(options.file, where=WHERE)
    if not rows:
        raise DataError(f"{WHERE}: {options.file} must hold a row; got none.")
    rows, unlabelled = _labelled(rows, options.label, options.file)
    labels = _column(rows, options.label, options.file)
    positive = set(options.positive)
    missing = sorted(positive - set(labels))
    if missing:
        counts = ", ".join(f"{label!r} ({n})" for label, n in Counter(labels).most_common(10))
        raise DataError(
            f"{WHERE}: --positive must be a value of column {options.label!r}; got "
            f"{missing[0]!r}. It holds {counts}."
        )
    parts = ["all"] * len(rows) if options.by is None else _column(rows, options.by, options.file)
    answers = _column(rows, options.text, options.file)
    judges = _declared(options.judge)
    if options.prompt is None and any(not isinstance(item, RefusalProxy) for item in judges):
        raise ConfigError(
            f"{WHERE}: --prompt must name the column of the requests; got none, and "
            f"{judges[-1].name} reads them."
        )
    prompts = (
        [""] * len(rows) if options.prompt is None else _column(rows, options.prompt, options.file)
    )
    exchanges = [Exchange(*pair) for pair in zip(prompts, answers, strict=True)]
    claim: Claim = options.claim
    found = []
    for spec in judges:
        made = [label in positive for label in labels]
        verdicts = zip(parts, made, _verdicts(spec, exchanges, claim), strict=True)
        found += labelled_accuracy(
            spec.name,
            [LabelledVerdict(*item) for item in verdicts],
            by_part=options.by is not None,
        )
    if options.json:
        document = {
            "file": str(options.file),
            "claim": claim,
            "label": options.label,
            "unlabelled": unlabelled,
            "positive": sorted(positive),
            "by": options.by,
            "judges": [spec.resolved() for spec in judges],
            "results": [item.resolved() for item in found],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        if unlabelled:
            print(f"rows without a label, left out: {unlabelled}")
        print("\n".join(_table(found, options.by)))


def _labelled(rows: list[Columns], label: str, file: str) -> tuple[list[Columns], int]:
    """Leave out rows whose label is null, as where annotators did not agree; count them."""
    if label not in rows[0]:
        return rows, 0
    found = [row for row in rows if row[label] is not None]
    if not found:
        raise DataError(f"{WHERE}: {file} must have a row with a label in {label!r}; got none.")
    return found, len(rows) - len(found)


def _column(rows: Sequence[Columns], name: str, file: str) -> list[str]:
    if name not in rows[0]:
        raise DataError(
            f"{WHERE}: {file} must have column {name!r}; got {', '.join(map(repr, rows[0]))}."
        )
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(as_text(row[name]))
        except ValueError as error:
            raise DataError(
                f"{WHERE}: {file}, row {number}: column {name!r} must be text; got {error}."
            ) from None
    return found


def _declared(file: str | None) -> list[JudgeSpec]:
    """Return the refusal proxy, the judge of a file, or every judge of a study."""
    if file is None:
        return [RefusalProxy()]
    path = Path(file)
    document = read_yaml(path)
    if not isinstance(document, dict) or "suites" not in document:
        wrapped = document if isinstance(document, dict) and "judge" in document else None
        found = parse_document(wrapped or {"judge": document}, _Declared, where=file).judge
        return [found.located(path.parent)]
    judges: dict[str, JudgeSpec] = {}
    for suite in declared(path, StudySpec, kind="study").suites:
        judges |= {judge.name: judge for judge in suite.judges}
    if not judges:
        raise ConfigError(f"{WHERE}: {file} must have a suite that is judged; got none.")
    return list(judges.values())


def _verdicts(spec: JudgeSpec, exchanges: Sequence[Exchange], claim: Claim) -> list[bool | None]:
    judge = local_judge(spec)
    judgements = [
        judgement
        for start in range(0, len(exchanges), _BATCH)
        for judgement in judge.judge(exchanges[start : start + _BATCH])
    ]
    found = [verdict_of(judge, judgement, claim) for judgement in judgements]
    if found and all(verdict is None for verdict in found):
        reasons = Counter(item.unscored or f"says nothing of {claim}" for item in judgements)
        raise ConfigError(
            f"{WHERE}: {spec.name} must give a verdict on {claim}; got none for {len(found)} "
            f"answers: {reasons.most_common(1)[0][0]}. Try --claim "
            f"{'harm' if claim == 'refusal' else 'refusal'}, or another judge."
        )
    return found


def _table(found: Sequence[LabelledAccuracy], by: str | None) -> list[str]:
    heads = [
        "judge", *([by] if by else []), "n", "positive", "unscored",
        "accuracy [95 %]", "precision [95 %]", "recall [95 %]",
    ]  # fmt: skip
    rows = [
        [
            item.judge,
            *([item.part] if by else []),
            *map(str, (item.n, item.positive, item.unscored)),
            *map(str, (item.accuracy, item.precision, item.recall)),
        ]
        for item in found
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]
