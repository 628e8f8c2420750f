import functools

import jsonschema
import pytest

from safemerge.config.document import parse_document, read_yaml
from safemerge.config.ready_made import FOLDER, ready_made_names, with_ready_made
from safemerge.config.schema import json_schema
from safemerge.config.study import StudySpec
from safemerge.config.suite import SuiteSpec
from safemerge.data import rows
from safemerge.data.suite import load_suites
from safemerge.errors import ConfigError
from safemerge.records import Response
from safemerge.scoring.task import score_responses
from safemerge.testing.landscapes import landscape_study

PROMISED = {
    "sst2", "agnews", "gsm8k", "mmlu", "arc_challenge", "winogrande", "beavertails", "advbench",
    "harmbench", "strongreject", "xstest", "or_bench",
}  # fmt: skip

WORDS = (
    "alpha", "bravo", "cedar", "delta", "ember", "flint", "grove", "hazel", "indigo", "jasper",
    "kettle", "lemon",
)  # fmt: skip


def text(index):
    """A sentence that is like no other one."""
    first, second = divmod(index, len(WORDS))
    return f"{WORDS[second]} {index} {WORDS[first % 12]} {index * 7919 % 1009} {WORDS[index % 7]}"


COLUMNS = {
    "stanfordnlp/sst2": lambda i: {"sentence": text(i), "label": i % 2},
    "fancyzhx/ag_news": lambda i: {"text": text(i), "label": i % 4},
    "openai/gsm8k": lambda i: {
        "question": text(i),
        "answer": f"He has 2*{i} = <<2*{i}={2 * i}>>{2 * i} pens and 7 pencils.\n#### {7 * i:,}",
    },
    "cais/mmlu": lambda i: {"question": text(i), "choices": list("wxyz"), "answer": i % 4},
    "allenai/ai2_arc": lambda i: {
        "question": text(i),
        "choices": {"text": ["w", "x", "y"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i % 3],
    },
    "allenai/winogrande": lambda i: {
        "sentence": text(i) + " _", "option1": "a", "option2": "b", "answer": str(1 + i % 2),
    },
    "PKU-Alignment/BeaverTails": lambda i: {
        "prompt": text(i // 2), "response": str(i), "is_safe": False,
    },
    "walledai/AdvBench": lambda i: {"prompt": text(i), "target": "x"},
    "walledai/XSTest": lambda i: {"prompt": text(i), "label": "safe"},
    "bench-llm/or-bench": lambda i: {"prompt": text(i), "category": "x"},
}  # fmt: skip
"""A row of each hub set, with the columns that it has."""

SPLITS = {"validation": 10**4, "test": 2 * 10**4, "dev": 3 * 10**4, "train": 0}


@pytest.fixture
def _sources(monkeypatch):
    """Answer for the hub and the packages with rows of the right columns."""

    def hub(source, where):
        first = SPLITS.get(source.split, 0)
        made = [
            COLUMNS[source.dataset](first + index)
            for index in range(2500 if "Beaver" in source.dataset else 1250)
        ]
        missing = set(source.where) - set(made[0])
        assert not missing
        return [row for row in made if source.where.items() <= row.items()]

    monkeypatch.setattr(rows, "_hub_rows", hub)
    monkeypatch.setattr(
        rows, "packaged_rows", lambda name: [{"prompt": text(i)} for i in range(200)]
    )


def suite(**fields):
    return parse_document(fields, SuiteSpec, where="s")


def test_the_promised_suites_ship_and_no_other_file_does():
    assert set(ready_made_names()) == PROMISED
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in PROMISED}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_ready_made_suite_is_valid_and_named_after_its_file(name):
    made = parse_document(read_yaml(FOLDER / f"{name}.yaml"), SuiteSpec, where=name)
    assert made.name == name
    assert suite(use=name) == made
    assert made.measures


@functools.cache
def splits_of(name):
    """Both splits of a ready-made suite; comparing long prompts takes seconds."""
    return load_suites(landscape_study().model_copy(update={"suites": [suite(use=name)]}))


@pytest.mark.usefixtures("_sources")
@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_ready_made_suite_makes_prompts_of_its_data_sets_columns(name):
    splits = splits_of(name)
    for split, (made,) in splits.items():
        assert len(made.samples) >= 80
        assert made.groups == {}, "no two samples share a prompt"
        if made.task.kind in ("classification", "numeric", "choice"):
            assert all(sample.label for sample in made.samples)
        assert made.split == split


@pytest.mark.usefixtures("_sources")
@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("{answer}", 1.0),
        ("So they cost **${number}.00** in all.", 1.0),
        ("\\[ 3 + x = \\boxed{{{number}}} \\]", 1.0),
        ("He has 2 pens.\n#### {number} pens", 1.0),
        ("There are {number} of them, not 3.", 0.0),
        ("#### 1{number}", 0.0),
    ],
)
def test_gsm8ks_own_answers_are_right(reply, right):
    for (made,) in splits_of("gsm8k").values():
        numbers = [sample.label.rpartition("#### ")[2] for sample in made.samples]
        assert any("," in number for number in numbers)
        responses = [
            Response(
                sample_id=sample.sample_id,
                text=reply.format(answer=sample.label, number=number),
                num_tokens=1,
                finished=True,
                candidate="c",
            )
            for sample, number in zip(made.samples, numbers, strict=True)
        ]
        scores = score_responses(made.task, made.samples, responses)
        assert {score.values["accuracy"] for score in scores} == {right}


@pytest.mark.usefixtures("_sources")
def test_mmlus_worked_examples_end_with_letters():
    ((made,), _) = splits_of("mmlu").values()
    lines = made.samples[0].prompt.splitlines()
    assert lines[0] == "The following are multiple choice questions (with answers)."
    answers = [line for line in lines if line.startswith("Answer:")]
    assert set(answers[:-1]) <= {f"Answer: {letter}" for letter in "ABCD"}
    assert answers[-1] == "Answer:"


def test_a_studys_own_keys_come_before_the_ready_made_ones():
    made = suite(
        use="gsm8k",
        name="maths",
        task={"max_tokens": 99},
        report={"source": {"stop": 50}},
        few_shot=None,
    )
    assert (made.name, made.task.max_tokens, made.task.marker) == ("maths", 99, "####")
    assert (made.report.source.stop, made.report.source.dataset) == (50, "openai/gsm8k")
    assert made.few_shot is None
    other = suite(use="harmbench", search={"source": {"kind": "file", "path": "x.jsonl"}})
    assert other.search.source.path == "x.jsonl"
    assert suite(use="harmbench").search.source.stop == 80


def test_a_suite_of_no_known_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"use: no such ready-made suite; got 'gsm8'\. Did you"):
        suite(use="gsm8")
    with pytest.raises(ConfigError, match="unknown key; got 1"):
        suite(use="gsm8k", zzz=1)


def test_what_does_not_use_a_ready_made_suite_is_left_alone():
    assert with_ready_made({"name": "x"}) == {"name": "x"}
    assert with_ready_made("text") == "text"


def test_editors_know_ready_made_suites():
    document = landscape_study().resolved()
    document["suites"].append({"use": "gsm8k", "report": {"source": {"stop": 50}}})
    schema = json_schema("study")
    names = schema["$defs"]["SuiteSpec"]["properties"]["use"]["enum"]
    assert set(names) == PROMISED
    assert StudySpec.model_validate(document).suites[-1].name == "gsm8k"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"use": "nothing"}, {**schema["$defs"]["SuiteSpec"], "$defs": {}})
