"""Local data files as rows, every value as it is written: no type is guessed.

Files are read anew each time; nothing is cached, so that what stands in a file is what is asked.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safemerge.data.value import WrittenNumber
from safemerge.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""What a data file may end in; case does not matter."""

Columns = dict[str, Any]
"""Values by column: text, numbers, true and false, None for what is absent, nested JSON."""


def file_rows(path: str | Path, *, where: str) -> list[Columns]:
    """Read a data file, its format by its suffix.

    Args:
        path: JSON Lines; JSON (a list of objects, one object, or objects one after the other);
            CSV or TSV with a header line, cells quoted by ``"``, a quote in them doubled; or
            parquet. Text is UTF-8, a byte order mark is skipped.
        where: Place for messages.

    Returns:
        A row for each record, in the file's order, all with the same columns: None where a
        record lacks one or says null. Cells of CSV and TSV are text, an empty one is the empty
        text. Numbers of JSON keep how they are written; NaN and infinities, which JSON does not
        have, are None.

    Raises:
        DataError: If there is no such file, it is not UTF-8, or it cannot be parsed; names the
            line, or the row.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{where}: no such data file; got {path}. Check the path.")
    suffix = path.suffix.casefold()
    if suffix not in SUFFIXES:
        raise DataError(f"{where}: data files must end in {', '.join(SUFFIXES)}; got {path.name}.")
    try:
        if suffix == ".parquet":
            return _parquet_rows(path)
        text = _text(path, where)
        if suffix in (".csv", ".tsv"):
            return _table_rows(text, delimiter="," if suffix == ".csv" else "\t")
        return _same_columns(_json_lines(text) if suffix == ".jsonl" else _json_records(text))
    except DataError:
        raise
    except RecursionError:
        problem = "nested too deeply"
    except (ValueError, OSError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    raise DataError(f"{where}: {path} cannot be parsed; {problem}. Correct the file.")


def _text(path: Path, where: str) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (len(content) - len(error.object))
        line = content.count(b"\n", 0, start) + 1
        raise DataError(
            f"{where}: {path} must be UTF-8; got byte {content[start]:#04x} at offset {start}, "
            f"line {line}. Save it as UTF-8."
        ) from None


# --- JSON -------------------------------------------------------------------------------


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> Columns:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a key must stand once; got {twice!r} twice")
    return found


def _integer(text: str) -> int | WrittenNumber:
    # NOTE: Python drops the sign of -0, and reads no more than a few thousand digits.
    return WrittenNumber(text) if text == "-0" or len(text) > 1000 else int(text)


_DECODER = json.JSONDecoder(
    parse_float=WrittenNumber,
    parse_int=_integer,
    parse_constant=lambda _: None,
    object_pairs_hook=_unique_keys,
)


_NOT_BLANK = re.compile(r"\S")


def _json_lines(text: str) -> Iterator[Columns]:
    # NOTE: splitlines would also split at line separators that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _record(_DECODER.decode(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {_reason(error)}") from None


def _json_records(text: str) -> Iterator[Columns]:
    """One list of records, or records one after the other."""
    at, found = 0, []
    while (begun := _NOT_BLANK.search(text, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(text, begun.start())
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: {_reason(error)}") from None
        found.append(value)
    records = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    for number, record in enumerate(records, start=1):
        try:
            yield _record(record)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _record(value: Any) -> Columns:
    if not isinstance(value, dict):
        raise ValueError(f"a row must be an object of columns; got {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise ValueError(f"text must be Unicode; got half a character, {half}") from None
    return value


def _same_columns(records: Iterator[Columns]) -> list[Columns]:
    rows = list(records)
    names = dict.fromkeys(name for row in rows for name in row)
    return [{**dict.fromkeys(names), **row} for row in rows]


# --- CSV, TSV, parquet ------------------------------------------------------------------


def _table_rows(text: str, *, delimiter: str) -> list[Columns]:
    rows: list[Columns] = []
    header: list[str] | None = None
    limit = csv.field_size_limit(sys.maxsize)
    # Line ends are left alone: inside a quoted cell they are part of it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if not cells:
                continue  # an empty line
            if header is None:
                header = _header(cells)
            elif len(cells) > len(header):
                raise ValueError(
                    f"line {reader.line_num}: a row must have at most the header's {len(header)} "
                    f"cells; got {len(cells)}"
                )
            else:
                rows.append({**dict.fromkeys(header), **dict(zip(header, cells, strict=False))})
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _header(cells: Sequence[str]) -> list[str]:
    twice = [name for index, name in enumerate(cells) if name in cells[:index]]
    if twice:
        raise ValueError(f"columns must have unique names; got {twice[0]!r} twice")
    return list(cells)


def _parquet_rows(path: Path) -> list[Columns]:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    # NOTE: opened here, as pyarrow would take a path like "a=1" for a partition.
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    _header(table.column_names)
    short = [
        field.name
        for field in table.schema
        if pyarrow.types.is_float32(field.type) or pyarrow.types.is_float16(field.type)
    ]
    rows: list[Columns] = table.to_pylist()
    for row in rows:
        # As its own type writes it: 0.1, not the 0.10000000149011612 of a double.
        row |= {
            name: WrittenNumber(str(np.float32(row[name])))
            for name in short
            if row[name] is not None
        }
    return rows
