import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from safemerge.data.file import file_rows
from safemerge.data.value import as_text
from safemerge.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file_rows(path, where="suite 'x', search")

    return read


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(read, tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match=r"^suite 'x', search: no such data file; got /"):
            file_rows(path, where="suite 'x', search")
    words = r"must end in \.jsonl, \.json, \.csv, \.tsv, \.parquet; got rows\.xlsx\."
    with pytest.raises(DataError, match=words):
        read("rows.xlsx", "prompt\na\n")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_are_refused_with_their_place(read, mark):
    content = mark + "prompt\nca\ncaf\u00e9\n".encode("latin-1")
    words = rf"rows\.csv must be UTF-8; got byte 0xe9 at offset {13 + len(mark)}, line 3\."
    with pytest.raises(DataError, match=words):
        read("rows.csv", content)


def test_a_byte_order_mark_is_no_part_of_the_first_column(read):
    mark = "\ufeff"
    assert read("rows.csv", f"{mark}a,b\r\n1,2\r\n") == [{"a": "1", "b": "2"}]
    assert read("rows.jsonl", f'{mark}{{"a": "x"}}\r\n') == [{"a": "x"}]
    assert read("rows.json", f'{mark}[{{"a": "x"}}]') == [{"a": "x"}]


def test_cells_are_text_with_quotes_line_ends_and_blanks_as_written(read):
    text = 'a,b\n" x ","one\r\ntwo ""three"", four"\n\n007,\n'
    assert read("rows.CSV", text) == [
        {"a": " x ", "b": 'one\r\ntwo "three", four'},
        {"a": "007", "b": ""},
    ]
    assert read("rows.tsv", "a\tb\n1,5\ttrue\n") == [{"a": "1,5", "b": "true"}]
    assert read("long.csv", f"a\n{'x' * 200_000}\n")[0]["a"] == "x" * 200_000


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1}, {"b": 2}]', [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        ('{"a": 1}', [{"a": 1}]),
        ('{"a":\n 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('[{"a": NaN}, {"a": -Infinity}]', [{"a": None}, {"a": None}]),
        ("[]", []),
        ("", []),
    ],
)
def test_json_is_a_list_of_records_or_records_one_after_the_other(read, text, rows):
    assert read("rows.json", text) == rows


def test_a_line_of_json_may_hold_other_line_separators(read):
    assert read("rows.jsonl", '{"a": "x\u2028y"}\n\n{"a": "z"}\n') == [
        {"a": "x\u2028y"},
        {"a": "z"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("r.jsonl", '{"a": "x"}\n{"a": \n', "line 2: Expecting value at column 7"),
        ("r.jsonl", '{"a": 1, "a": 2}\n', "line 1: a key must stand once; got 'a' twice"),
        ("r.jsonl", '{"a": 1}\n[1]\n', "line 2: a row must be an object of columns; got list"),
        ("r.jsonl", '{"a": "\\ud800"}', r"line 1: text must be Unicode; got half .*\\ud800"),
        ("r.json", '[{"a": 1},\n{"a": }]', "line 2: Expecting value at column 7"),
        ("r.json", '["x"]', "row 1: a row must be an object of columns; got str"),
        ("r.json", "[" * 100_000, "nested too deeply"),
        ("r.csv", 'a,b\n"never closed,1\na,b\n', "line 3: unexpected end of data"),
        ("r.csv", 'a,b\n"x"y,1\n', r"line 2: ',' expected after '\"'"),
        (
            "r.csv",
            "a,b\n1,2\n1,2,3\n",
            "line 3: a row must have at most the .* 2 cells; got 3",
        ),
        ("r.csv", "a,a\n1,2\n", "columns must have unique names; got 'a' twice"),
        ("r.parquet", "this is no parquet", "Could not open Parquet|Parquet magic bytes"),
    ],
)
def test_what_cannot_be_parsed_is_refused_with_its_place(read, name, content, got):
    with pytest.raises(DataError, match=rf"^suite 'x', search: \S+{name} cannot be parsed; {got}"):
        read(name, content)


def test_parquet_keeps_its_types_and_float32_is_as_short_as_it_is(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table(
        {
            "short": pyarrow.array([np.float32(0.1), None]),
            "wide": pyarrow.array([0.5, 2.0]),
            "flag": pyarrow.array([True, False]),
            "day": pyarrow.array(["2023-01-05", None]).cast(pyarrow.date32()),
            "text": pyarrow.array(["007", "None"]),
        }
    )
    parquet.write_table(table, path)
    first, second = file_rows(path, where="w")
    texts = {name: as_text(value) for name, value in first.items()}
    assert texts == {
        "short": "0.1",
        "wide": "0.5",
        "flag": "true",
        "day": "2023-01-05",
        "text": "007",
    }
    assert (second["short"], second["day"], second["text"]) == (None, None, "None")
