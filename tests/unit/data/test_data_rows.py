import json
import os

import datasets
import pytest

from safemerge.config.source import (
    FileSource,
    GeneratorSource,
    HubSource,
    PromptData,
    TrainingData,
)
from safemerge.data import rows as rows_module
from safemerge.data.rows import (
    fill,
    load_rows,
    load_samples,
    load_training_samples,
    source_name,
)
from safemerge.data.sample import Row
from safemerge.errors import DataError

NAMES = [f"item {index}" for index in range(12)]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def write(tmp_path):
    def write(name, text, *, folder="data"):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def jsonl(items):
    return "".join(json.dumps(item) + "\n" for item in items)


def rows(path, **fields):
    return load_rows(FileSource(kind="file", path=path, **fields), where="suite 'x', search")


@pytest.fixture
def twelve(write):
    return write("rows.jsonl", jsonl({"prompt": name} for name in NAMES))


def prompts(found):
    return [row.columns["prompt"] for row in found]


def test_order_does_not_depend_on_the_order_of_the_file(twelve, write):
    turned = write("rows.jsonl", jsonl({"prompt": n} for n in reversed(NAMES)), folder="turned")
    assert rows(turned) == rows(twelve)
    assert sorted(prompts(rows(twelve))) == sorted(NAMES)
    assert prompts(rows(twelve)) != NAMES


def test_an_order_seed_gives_another_order_of_the_same_rows(twelve):
    first, second = rows(twelve), rows(twelve, order_seed=1)
    assert first != second
    assert {row.sample_id for row in first} == {row.sample_id for row in second}


def test_disjoint_ranges_share_no_row_and_cover_all(twelve):
    head, middle, tail = rows(twelve, stop=5), rows(twelve, start=5, stop=9), rows(twelve, start=9)
    assert [len(head), len(middle), len(tail)] == [5, 4, 3]
    assert head + middle + tail == rows(twelve)
    assert len({row.sample_id for row in head + middle + tail}) == 12


def test_a_row_keeps_its_id_when_others_are_added(twelve, write):
    more = write("rows.jsonl", jsonl({"prompt": n} for n in ["new", *NAMES]), folder="more")
    assert {row.sample_id for row in rows(twelve)} < {row.sample_id for row in rows(more)}


def test_exact_duplicates_count_once(write):
    same = write("rows.jsonl", jsonl([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}]))
    assert sorted(prompts(rows(same))) == ["a", "b"]


def test_a_range_without_rows_is_refused(twelve):
    words = r"suite 'x', search: source 'rows\.jsonl' must give .* got 12 rows and the range 12 to"
    with pytest.raises(DataError, match=words):
        rows(twelve, start=12)


def test_json_lines_csv_tsv_json_and_parquet_give_the_same_texts(write, tmp_path):
    items = [{"prompt": "a, b", "n": 1}, {"prompt": 'c "d"', "n": 2}]
    table = tmp_path / "data" / "rows.parquet"
    paths = [
        write("rows.jsonl", jsonl(items)),
        write("rows.json", json.dumps(items)),
        write("rows.csv", 'prompt,n\n"a, b",1\n"c ""d""",2\n'),
        write("rows.tsv", 'prompt\tn\na, b\t1\n"c ""d"""\t2\n'),
        str(table),
    ]
    datasets.Dataset.from_list(items).to_parquet(str(table))
    for path in paths:
        found = sorted(fill("{n}: {prompt}", row, where="w") for row in rows(path))
        assert found == ["1: a, b", '2: c "d"'], path


BIG = "123456789012345678901234567890"


@pytest.mark.parametrize(
    ("name", "text", "right"),
    [
        ("date.jsonl", '{"a": "2023-01-05"}\n{"a": "2024-02-06"}', ["2023-01-05", "2024-02-06"]),
        ("zeros.csv", "a\n007\n042\n", ["007", "042"]),
        ("decimals.csv", "a\n3\n2.50\n", ["2.50", "3"]),
        ("truth.csv", "a\ntrue\nFalse\n", ["False", "true"]),
        ("none.csv", "a,b\nNone,\nNA,\nnan,\nnull,\n", ["NA", "None", "nan", "null"]),
        ("numbers.jsonl", '{"a": 5}\n{"a": 2.50}\n{"a": 1e5}', ["1e5", "2.50", "5"]),
        ("large.json", f'[{{"a": {BIG}}}, {{"a": -0}}]', ["-0", BIG]),
        ("truth.json", '[{"a": true}, {"a": false}]', ["false", "true"]),
        ("nested.jsonl", '{"a": [1.50, true, null]}', ["[1.50, true, null]"]),
    ],
)
def test_a_label_is_the_text_as_written(write, name, text, right):
    source = {"kind": "file", "path": write(name, text)}
    declared = PromptData.model_validate({"source": source, "prompt": "x {a}", "label": "a"})
    found = load_samples(declared, where="search")
    assert sorted(sample.label for sample in found) == right


def test_a_column_that_is_null_or_absent_is_refused_with_its_row(write):
    for line in ('{"a": null, "b": 1}', '{"b": 1}'):
        source = {"kind": "file", "path": write("rows.jsonl", f'{{"a": "one"}}\n{line}\n')}
        declared = PromptData.model_validate({"source": source, "prompt": "x {a}"})
        words = r"search\.prompt: column 'a' must hold text; got null or nothing for rows\.jsonl:"
        with pytest.raises(DataError, match=words + r"\w+ \(row 2\)\. Drop such rows\."):
            load_samples(declared, where="search")


def test_rows_replaced_under_the_same_time_are_read_anew(write):
    path = write("rows.jsonl", jsonl([{"prompt": "one"}]))
    before = os.stat(path)
    assert prompts(rows(path)) == ["one"]
    write("rows.jsonl", jsonl([{"prompt": "two"}]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prompts(rows(path)) == ["two"]


def test_an_empty_cell_is_empty_text_and_a_missing_one_is_refused_with_its_row(write):
    path = write("rows.csv", "prompt,more\nDo it.,\nWhere?,here\nAnd\n")
    found = rows(path)
    short = next(row for row in found if row.columns["prompt"] == "And")
    told = [fill("{prompt} {more}", row, where="w") for row in found if row is not short]
    assert sorted(told) == ["Do it.", "Where? here"]
    with pytest.raises(DataError, match=r"column 'more' must hold .* for rows\.csv:\w+ \(row 3\)"):
        fill("{prompt} {more}", short, where="w")


@pytest.mark.parametrize(
    ("where", "kept"),
    [({"flag": True}, ["a"]), ({"n": 7}, ["b"]), ({"n": "007"}, ["b"]), ({"flag": "true"}, [])],
)
def test_a_filter_on_text_compares_what_is_said(write, where, kept):
    path = write("rows.csv", "prompt,flag,n\na,True,1.5\nb,no,007\n")
    if kept:
        assert prompts(rows(path, where=where)) == kept
        return
    with pytest.raises(DataError, match="must give at least one row"):
        rows(path, where=where)


def test_a_null_in_the_column_that_makes_rows_unique_is_refused(write):
    path = write("rows.jsonl", '{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(DataError, match=r"unique: column 'prompt' must .* rows\.jsonl \(row 2\)"):
        rows(path, unique="prompt")


def test_a_generator_gives_as_many_rows_as_declared():
    source = GeneratorSource(kind="generator", name="reviews", split="search", count=30, seed=2)
    found = load_rows(source, where="x")
    assert len(found) == 30
    assert all(row.sample_id.startswith("reviews:") for row in found)


def test_a_package_source_reads_the_packaged_rows(monkeypatch):
    from safemerge.config.source import PackageSource

    monkeypatch.setattr(rows_module, "packaged_rows", lambda name: [{"prompt": f"of {name}"}])
    (row,) = load_rows(PackageSource(kind="package", name="toy"), where="x")
    assert row.columns == {"prompt": "of toy"}
    assert source_name(PackageSource(kind="package", name="toy")) == "toy"


@pytest.fixture
def hub(monkeypatch):
    table = datasets.Dataset.from_list(
        [{"prompt": f"p{i}", "safe": i % 2 == 0, "level": i % 3} for i in range(6)]
    )
    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        if name == "a/absent":
            raise datasets.exceptions.DatasetNotFoundError("no such set\nsecond line")
        if name == "a/script":
            raise RuntimeError("Dataset scripts are no longer supported, but found set.py")
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def hub_rows(name="a/b", **fields):
    source = HubSource(kind="hub", dataset=name, split="train", **fields)
    assert source_name(source) == f"{name}/train"
    return load_rows(source, where="suite 'x', search")


def test_hub_rows_are_filtered_by_all_columns(hub):
    found = hub_rows(config="small", where={"safe": True, "level": 1})
    assert prompts(found) == ["p4"]
    assert hub == [("a/b", "small", "train")]
    assert len(hub_rows()) == 6


def test_a_filter_on_a_missing_column_is_refused(hub):
    words = r"must have the filtered column; got 'harm'\. Columns: prompt, safe, level\."
    with pytest.raises(DataError, match=words):
        hub_rows(where={"harm": 1})


def test_a_hub_set_that_is_a_script_is_refused_in_one_line(hub):
    words = (
        r"'a/script' cannot be loaded; Dataset scripts are no longer supported, "
        r"but found set\.py\. Check .* take a file source\."
    )
    with pytest.raises(DataError, match=words):
        hub_rows("a/script")


def test_file_rows_are_filtered_before_they_are_made_unique(tmp_path):
    path = tmp_path / "rows.jsonl"
    told = [("a", True), ("A!", False), ("b", False), ("c", True)]
    lines = [json.dumps({"prompt": prompt, "is_safe": safe}) + "\n" for prompt, safe in told]
    path.write_text("".join(lines), encoding="utf-8")

    def read(**fields):
        source = FileSource(kind="file", path=str(path), unique="prompt", **fields)
        return load_rows(source, where="suite 'x', search")

    assert sorted(prompts(read(where={"is_safe": False}))) == ["A!", "b"]
    assert sorted(prompts(read())) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"must have the filtered column; got 'safe'\. Columns:"):
        read(where={"safe": False})


def test_a_filter_counts_in_a_source_only_where_there_is_one():
    plain = FileSource(kind="file", path="rows.jsonl")
    assert "where" not in plain.resolved(), "caches keep their digests"
    assert plain.model_copy(update={"where": {"a": 1}}).resolved()["where"] == {"a": 1}


def test_a_hub_set_that_cannot_be_loaded_is_refused_in_one_line(hub):
    with pytest.raises(
        DataError, match=r"hub data set 'a/absent' cannot be loaded; no such set\. "
    ):
        hub_rows("a/absent")


ROW = Row("set:1", {"prompt": "  two ", "n": 3})


def test_templates_are_filled_from_columns_and_stripped():
    assert fill(" {n} x{prompt}{{kept}} ", ROW, where="w") == "3 x  two {kept}"


@pytest.mark.parametrize(
    ("template", "got"), [("{n} {target}", "target"), ("{prompt.x}", "prompt.x"), ("{}", "")]
)
def test_a_field_that_is_no_column_is_refused(template, got):
    with pytest.raises(DataError, match=rf"w: the data .*; got '{got}'\. Columns: n, prompt\."):
        fill(template, ROW, where="w")


def test_an_empty_text_is_refused():
    with pytest.raises(DataError, match="w: text must not be empty; got an empty one for set:1"):
        fill("{prompt}", Row("set:1", {"prompt": "  "}), where="w")


def test_a_template_that_is_malformed_is_refused():
    with pytest.raises(DataError, match="w: "):
        fill("{prompt} {", ROW, where="w")


def test_a_null_value_is_not_text():
    with pytest.raises(DataError, match="w: "):
        fill("{prompt}", Row("set:1", {"prompt": None}), where="w")


def test_samples_carry_prompt_label_and_system(write):
    path = write("rows.jsonl", jsonl([{"q": "How?", "gold": 7}]))
    declared = PromptData.model_validate(
        {
            "source": {"kind": "file", "path": path},
            "prompt": "Q: {q}",
            "label": "gold",
            "system": "Be brief.",
        }
    )
    (sample,) = load_samples(declared, where="suite 'x', search")
    assert (sample.prompt, sample.label, sample.system) == ("Q: How?", "7", "Be brief.")


def test_a_missing_label_column_is_refused(twelve):
    source = {"kind": "file", "path": twelve}
    declared = PromptData.model_validate({"source": source, "label": "gold"})
    words = (
        r"suite 'x', search\.label: the data must have the named column; got 'gold'\. Columns: p"
    )
    with pytest.raises(DataError, match=words):
        load_samples(declared, where="suite 'x', search")


def training(path, **fields):
    declared = {"source": {"kind": "file", "path": path}, "response": "Yes.", **fields}
    return TrainingData.model_validate(declared)


def test_one_of_several_responses_is_drawn_by_seed_and_sample(twelve):
    data = training(twelve, response=["one {prompt}", "two", "three"])
    first = load_training_samples(data, where="w", seed=0)
    assert load_training_samples(data, where="w", seed=0) == first
    assert {sample.response.split()[0] for sample in first} == {"one", "two", "three"}
    other = load_training_samples(data, where="w", seed=1)
    assert [sample.response for sample in other] != [sample.response for sample in first]
    tail = load_training_samples(training(twelve, response=data.response), where="w", seed=0)[6:]
    assert tail == first[6:]


def test_training_samples_say_whether_their_target_is_an_opening(twelve):
    for opening in (True, False):
        data = training(twelve, opening=opening, system="s")
        for sample in load_training_samples(data, where="w", seed=0):
            assert (sample.opening, sample.system, sample.response) == (opening, "s", "Yes.")


def test_a_response_that_names_a_missing_column_is_refused(twelve):
    data = training(twelve, response="{answer}")
    words = r"data\.0\.response: the data must have the named column; got 'answer'"
    with pytest.raises(DataError, match=words):
        load_training_samples(data, where="data.0", seed=0)


# --- nested columns, unique rows --------------------------------------------------------

NESTED = Row("set:9", {"choices": {"text": ["red", "blue"]}, "list": ["x", "y"], "n": 1})


def test_a_field_reaches_into_lists_and_mappings():
    assert fill("{choices[text][1]} {list[0]} {n}", NESTED, where="w") == "blue x 1"


@pytest.mark.parametrize(
    "template",
    ["{list[7]}", "{choices[label]}", "{n[0]}", "{list.append}", "{list[0].upper}", "{n!x}"],
)
def test_a_field_that_reaches_nowhere_is_refused(template):
    with pytest.raises(DataError, match=r"^w: "):
        fill(template, NESTED, where="w")


def test_rows_are_made_unique_before_the_range_is_cut(write):
    path = write("rows.jsonl", jsonl({"prompt": f"Q{i % 3}?", "reply": i} for i in range(9)))
    found = rows(path, unique="prompt")
    assert sorted(row.columns["reply"] for row in found) == [0, 1, 2]
    head, tail = rows(path, unique="prompt", stop=2), rows(path, unique="prompt", start=2)
    assert {*prompts(head)}.isdisjoint(prompts(tail))


def test_a_column_to_be_unique_by_must_exist(twelve):
    with pytest.raises(DataError, match=r"search\.source\.unique: .* got 'promt'"):
        rows(twelve, unique="promt")
