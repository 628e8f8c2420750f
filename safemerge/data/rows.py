"""From a declared source to ordered rows, prompts and training pairs."""

from __future__ import annotations

import hashlib
import json
import random
import string
from pathlib import Path
from typing import Any

from safemerge.config.source import (
    FileSource,
    GeneratorSource,
    HubSource,
    PackageSource,
    PromptData,
    Source,
    TrainingData,
)
from safemerge.data.generator import GENERATORS
from safemerge.data.package import packaged_rows
from safemerge.data.sample import Row, Sample, TrainingSample, sample_id
from safemerge.errors import DataError

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def source_name(source: Source) -> str:
    """Return a short name of a source for messages and sample ids."""
    match source:
        case PackageSource() | GeneratorSource():
            return source.name
        case FileSource():
            return Path(source.path).name
        case HubSource():
            return f"{source.dataset}/{source.split}"


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
    for columns in _raw_rows(source, where):
        identity = sample_id(name, json.dumps(columns, sort_keys=True, default=str))
        rows.setdefault(identity, Row(identity, columns))
    ordered = sorted(rows.values(), key=lambda row: _rank(source.order_seed, row.sample_id))
    taken = ordered[source.start : source.stop]
    if not taken:
        raise DataError(
            f"{where}: source '{name}' must give at least one row; got {len(ordered)} rows and "
            f"the range {source.start} to {source.stop}. Widen the range or check the filter."
        )
    return taken


def load_samples(prompts: PromptData, *, where: str) -> list[Sample]:
    """Turn a declared prompt set into samples; see `load_rows` for order and errors.

    Raises:
        DataError: If the template or the label names a column that a row lacks, or a prompt
            comes out empty.
    """
    samples = []
    for row in load_rows(prompts.source, where=where):
        text = fill(prompts.prompt, row, where=f"{where}.prompt")
        label = None
        if prompts.label is not None:
            if prompts.label not in row.columns:
                raise DataError(_missing_column(f"{where}.label", prompts.label, row))
            label = fill(f"{{{prompts.label}}}", row, where=f"{where}.label")
        samples.append(Sample(row.sample_id, text, label=label, system=prompts.system))
    return samples


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
    """Fill a template's ``{column}`` fields from a row.

    Raises:
        DataError: If a field names a column that the row lacks, or the text comes out empty.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise DataError(
            f"{where}: must be a template with {{column}} fields; got {template!r} ({error}). "
            "Write {{ and }} for braces."
        ) from None
    for field in fields:
        if field is not None and field not in row.columns:
            raise DataError(_missing_column(where, field, row))
        if field is not None and row.columns[field] is None:
            raise DataError(
                f"{where}: column {field!r} must hold text; got null for {row.sample_id}. "
                "Drop such rows."
            )
    text = template.format_map(row.columns).strip()
    if not text:
        raise DataError(f"{where}: text must not be empty; got an empty one for {row.sample_id}.")
    return text


def _missing_column(where: str, column: str, row: Row) -> str:
    return (
        f"{where}: the data must have the named column; got {column!r}. "
        f"Columns: {', '.join(sorted(row.columns))}."
    )


def _rank(order_seed: int, identity: str) -> bytes:
    return hashlib.sha256(f"{order_seed}/{identity}".encode()).digest()


def _raw_rows(source: Source, where: str) -> list[dict[str, Any]]:
    match source:
        case PackageSource():
            return packaged_rows(source.name)
        case GeneratorSource():
            generate = GENERATORS[source.name]
            return generate(split=source.split, count=source.count, seed=source.seed)
        case FileSource():
            return _file_rows(source, where)
        case HubSource():
            return _hub_rows(source, where)


def _file_rows(source: FileSource, where: str) -> list[dict[str, Any]]:
    path = Path(source.path)
    if not path.is_file():
        raise DataError(f"{where}: no such data file; got {path}. Check the path.")
    if path.suffix not in _FILE_FORMATS:
        raise DataError(
            f"{where}: data files must end in {', '.join(_FILE_FORMATS)}; got {path.name}."
        )
    if path.suffix != ".parquet":
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: {path} must be UTF-8; got byte {error.object[error.start]:#04x} at "
                f"offset {error.start}. Save it as UTF-8."
            ) from None
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # of a local file they are over before they are read
    try:
        loaded = datasets.load_dataset(
            _FILE_FORMATS[path.suffix], data_files=str(path), split="train"
        )
    except StopIteration:
        return []  # how `datasets` takes a file without a row
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        raise DataError(f"{where}: {path} cannot be parsed; {cause}. Mend the file.") from None
    finally:
        if bars:
            datasets.enable_progress_bars()
    return [dict(row) for row in loaded]


def _hub_rows(source: HubSource, where: str) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(source.dataset, source.config, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"{where}: hub data set '{source.dataset}' cannot be loaded; "
            f"{str(error).splitlines()[0]}. Check the id, split and network."
        ) from None
    missing = sorted(set(source.where) - set(loaded.column_names))
    if missing:
        raise DataError(
            f"{where}: the data must have the filtered column; got {missing[0]!r}. "
            f"Columns: {', '.join(loaded.column_names)}."
        )
    return [
        dict(row)
        for row in loaded
        if all(row[key] == value for key, value in source.where.items())
    ]
