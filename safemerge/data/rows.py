"""From a declared source to ordered rows, prompts and training pairs."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safemerge.config.few_shot import FewShot
from safemerge.config.source import (
    FileSource,
    GeneratorSource,
    HubSource,
    LmEvalSource,
    PackageSource,
    PromptData,
    Source,
    TrainingData,
)
from safemerge.data.file import file_rows
from safemerge.data.generator import GENERATORS
from safemerge.data.package import packaged_rows
from safemerge.data.sample import Row, Sample, TrainingSample, normalized_text, sample_id
from safemerge.data.value import as_text, filled, is_value
from safemerge.errors import DataError


def source_name(source: Source) -> str:
    """Return a short name of a source for messages and sample ids."""
    match source:
        case PackageSource() | GeneratorSource():
            return source.name
        case FileSource():
            return Path(source.path).name
        case HubSource():
            return f"{source.dataset}/{source.split}"
        case LmEvalSource():
            return source.kind


def load_rows(source: Source, *, where: str) -> list[Row]:
    """Read a source's rows in their stable order and cut out the declared range.

    Rows are ordered by a hash of (order_seed, sample id), so that the same range means the
    same rows on every machine. Exact duplicates count once.

    Args:
        source: The declared source.
        where: Place for messages, e.g. ``suite 'harm', search``.

    Returns:
        At least one row.

    Raises:
        DataError: If the source cannot be read or the range is empty.
    """
    name = source_name(source)
    rows: dict[str, Row] = {}
    for row in _unique(source, _raw_rows(source, where), where):
        identity = sample_id(name, json.dumps(row.columns, sort_keys=True, default=str))
        rows.setdefault(identity, Row(identity, row.columns, row.number))
    ids = taken_ids(source, list(rows), name=name, where=where)
    return [rows[identity] for identity in ids]


def repeated_rows(source: Source, *, where: str) -> int:
    """Return how many rows a source's ``unique`` leaves out, of all that it has.

    Raises:
        DataError: See `load_rows`.
    """
    if getattr(source, "unique", None) is None:
        return 0
    rows = _raw_rows(source, where)
    return len(rows) - len(_unique(source, rows, where))


def taken_ids(source: Source, ids: Sequence[str], *, name: str, where: str) -> list[str]:
    """Shuffle sample ids by a source's seed and cut out its range.

    Raises:
        DataError: If the range is empty.
    """
    ordered = sorted(ids, key=lambda identity: _rank(source.order_seed, identity))
    taken = ordered[source.start : source.stop]
    if not taken:
        raise DataError(
            f"{where}: source '{name}' must give at least one row; got {len(ordered)} rows and "
            f"the range {source.start} to {source.stop}. Widen the range or check the filter."
        )
    return taken


def load_samples(
    prompts: PromptData,
    *,
    where: str,
    group: str | None = None,
    few_shot: FewShot | None = None,
    endings: Sequence[str] | str = (),
) -> list[Sample]:
    """Turn a declared prompt set into samples; see `load_rows` for order and errors.

    Args:
        prompts: The declared prompts.
        where: Place for messages.
        group: Column whose equal values mark samples that are not independent. Samples with
            the same prompt (case and punctuation aside) are one group in any case.
        few_shot: Worked examples that come before each question.
        endings: Templates of a choice's endings, or one field that holds a list of them.

    Returns:
        At least one sample.

    Raises:
        DataError: If the template, the label or the group names a column that a row lacks, a
            prompt comes out empty, or a question is among its own worked examples.
    """
    rows = load_rows(prompts.source, where=where)
    shown = [] if few_shot is None else _example_rows(few_shot, where=where)
    opening = "" if few_shot is None else _opening(prompts, few_shot, shown, where=where)
    known = {normalized_text(fill(prompts.prompt, row, where=where)) for row in shown}
    samples = []
    for row in rows:
        question = fill(prompts.prompt, row, where=f"{where}.prompt")
        same = normalized_text(question)
        if same in known:
            raise DataError(
                f"{where}.few_shot: worked examples must not be asked; got {row.sample_id} among "
                "them. Take examples from another split."
            )
        label, apart = (
            None if column is None else _column(column, row, where=f"{where}.{key}")
            for key, column in (("label", prompts.label), ("group", group))
        )
        samples.append(
            Sample(
                row.sample_id,
                opening + question,
                label=label,
                system=prompts.system,
                content=own_words(prompts.prompt, row, where=f"{where}.prompt"),
                group=same if apart is None else apart,
                endings=_endings(endings, row, where=f"{where}.endings"),
            )
        )
    return samples


def _endings(templates: Sequence[str] | str, row: Row, *, where: str) -> tuple[str, ...]:
    if not isinstance(templates, str):
        return tuple(fill(template, row, where=where) for template in templates)
    fill(templates, row, where=where)
    parts = list(string.Formatter().parse(templates))
    if [literal for literal, *_ in parts] != [""] or parts[0][1] is None:
        raise DataError(
            f"{where}: must be a list of templates or one field that holds a list; got "
            f"{templates!r}."
        )
    found, _ = string.Formatter().get_field(parts[0][1], (), row.columns)
    listed = isinstance(found, list) and None not in found
    texts = [as_text(text).strip() for text in found] if listed else []
    if len(texts) < 2 or not all(texts):
        raise DataError(
            f"{where}: {templates} must hold a list of two or more texts; got {found!r} for "
            f"{row.sample_id}. Drop such rows."
        )
    return tuple(texts)


def _example_rows(few_shot: FewShot, *, where: str) -> list[Row]:
    if few_shot.source is not None:
        return load_rows(few_shot.source, where=f"{where}.few_shot")
    return [
        Row(f"{where}.few_shot.rows.{index}", dict(columns))
        for index, columns in enumerate(few_shot.rows or [])
    ]


def _opening(prompts: PromptData, few_shot: FewShot, rows: list[Row], *, where: str) -> str:
    """Everything that stands before the question."""
    parts = [few_shot.header] if few_shot.header else []
    for row in rows:
        question = fill(prompts.prompt, row, where=f"{where}.few_shot.prompt")
        answer = fill(few_shot.answer, row, where=f"{where}.few_shot.answer")
        parts.append(question + few_shot.before_answer + few_shot.codes.get(answer, answer))
    return "".join(part + few_shot.between for part in parts)


def _column(column: str, row: Row, *, where: str) -> str:
    if column not in row.columns:
        raise DataError(_missing_column(where, column, row))
    return fill(f"{{{column}}}", row, where=where)


def own_words(template: str, row: Row, *, where: str) -> str:
    """Return what a template takes from a row, without the template's fixed words."""
    fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
    if not fields:
        return fill(template, row, where=where)
    return fill(" ".join(f"{{{field}}}" for field in fields), row, where=where)


def load_training_samples(data: TrainingData, *, where: str, seed: int) -> list[TrainingSample]:
    """Turn a declared training set into prompt and target pairs.

    Where several responses are declared, each row gets one of them, drawn by (seed, sample id).
    """
    options = [data.response] if isinstance(data.response, str) else data.response
    samples = []
    for row in load_rows(data.source, where=where):
        template = random.Random(f"{seed}/{row.sample_id}").choice(options)
        samples.append(
            TrainingSample(
                row.sample_id,
                prompt=fill(data.prompt, row, where=f"{where}.prompt"),
                response=fill(template, row, where=f"{where}.response"),
                opening=data.opening,
                system=data.system,
            )
        )
    return samples


def fill(template: str, row: Row, *, where: str) -> str:
    """Fill a template's ``{column}`` fields from a row, each as its file writes it.

    Raises:
        DataError: If a field names a column that the row lacks or that is null, or the text
            comes out empty.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise DataError(
            f"{where}: must be a template with {{column}} fields; got {template!r} ({error}). "
            "Write {{ and }} for braces."
        ) from None
    for field in fields:
        if field is None:
            continue
        # NOTE: attributes are refused: a template reads columns, not Python objects.
        column, _, rest = field.partition("[")
        if column not in row.columns or "." in rest:
            raise DataError(_missing_column(where, field, row))
        _check_present(column, row, where)
    try:
        text = filled(template, row.columns).strip()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: must fit the row's columns; got {error} for {row.place} and "
            f"{template!r}. Check the names and positions in brackets."
        ) from None
    if not text:
        raise DataError(f"{where}: text must not be empty; got an empty one for {row.place}.")
    return text


def _check_present(column: str, row: Row, where: str) -> None:
    if row.columns[column] is None:
        raise DataError(
            f"{where}: column {column!r} must hold text; got null or nothing for {row.place}. "
            "Drop such rows."
        )


def _missing_column(where: str, column: str, row: Row) -> str:
    return (
        f"{where}: the data must have the named column; got {column!r}. "
        f"Columns: {', '.join(sorted(row.columns))}."
    )


def _unique(source: Source, rows: list[Row], where: str) -> list[Row]:
    """Keep the first of the rows that share the declared column's value, in the source's order."""
    column = getattr(source, "unique", None)
    if column is None or not rows:
        return rows
    place = f"{where}.source.unique"
    if column not in rows[0].columns:
        raise DataError(_missing_column(place, column, rows[0]))
    first: dict[str, Row] = {}
    for row in rows:
        _check_present(column, row, place)
        first.setdefault(normalized_text(as_text(row.columns[column])), row)
    return list(first.values())


def _rank(order_seed: int, identity: str) -> bytes:
    return hashlib.sha256(f"{order_seed}/{identity}".encode()).digest()


def _raw_rows(source: Source, where: str) -> list[Row]:
    """Rows before they are named, with their places in the source."""
    return [
        Row(source_name(source), columns, number)
        for number, columns in enumerate(_columns(source, where), start=1)
        if not isinstance(source, FileSource | HubSource) or _is_wanted(source, columns, where)
    ]


def _columns(source: Source, where: str) -> Iterable[dict[str, Any]]:
    match source:
        case PackageSource():
            return packaged_rows(source.name)
        case GeneratorSource():
            generate = GENERATORS[source.name]
            return generate(split=source.split, count=source.count, seed=source.seed)
        case FileSource():
            return file_rows(source.path, where=where)
        case HubSource():
            return map(dict, _hub_rows(source, where))
        case LmEvalSource():
            raise DataError(
                f"{where}: an lm_eval source belongs to a suite's lm_eval task; got it elsewhere. "
                "Name another source."
            )


def _hub_rows(source: HubSource, where: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.dataset, source.config, split=source.split)
    except (
        OSError,
        ValueError,
        # NOTE: of data sets that are a script, which `datasets` runs no more.
        RuntimeError,
        datasets.exceptions.DatasetNotFoundError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"{where}: hub data set '{source.dataset}' cannot be loaded; {reason}. Check the id, "
            "split and network, or save its rows as a file and take a file source."
        ) from None


def _is_wanted(source: FileSource | HubSource, columns: dict[str, Any], where: str) -> bool:
    missing = sorted(set(source.where) - set(columns))
    if missing:
        raise DataError(
            f"{where}: the data must have the filtered column; got {missing[0]!r}. "
            f"Columns: {', '.join(columns)}."
        )
    return all(is_value(columns[key], wanted) for key, wanted in source.where.items())
