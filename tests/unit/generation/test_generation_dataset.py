import json

import pytest
import yaml

from safemerge.config.source import TrainingData
from safemerge.data.rows import load_training_samples
from safemerge.generation.dataset import COLUMNS, data_card, summary_lines, write_samples
from safemerge.generation.record import GeneratedSample, SetSummary, Tally
from safemerge.generation.spec import GenerateSpec
from safemerge.provenance import current_provenance

SAMPLES = [
    GeneratedSample(
        id=f"safety:{i}",
        prompt=f"Unsafe {i} with {{braces}}?",
        response="I can't. \N{SNOWMAN}",
        question=f"Unsafe {i} with {{braces}}?",
        set="safety",
        topic=None,
        written_by="rows.jsonl",
        answered_by="aligned",
        writer_digest=None,
        model_digest="abc",
    )
    for i in range(3)
]
SUMMARY = SetSummary(
    wanted=5,
    written=3,
    questions={"rows.jsonl": Tally(asked=9, kept=7, dropped={"duplicate": 2})},
    answers={"aligned": Tally(asked=7, kept=3, dropped={"no refusal": 4})},
    dropped={"nobody refused": 4},
    taken_from={"aligned": 3},
)


@pytest.mark.parametrize("as_parquet", [False, True])
def test_training_files_read_what_was_written(tmp_path, as_parquet):
    path = write_samples(tmp_path, "safety", SAMPLES, as_parquet=as_parquet)
    assert path.name == ("safety.parquet" if as_parquet else "safety.jsonl")
    assert list(tmp_path.iterdir()) == [path]
    data = TrainingData.model_validate(
        {"source": {"kind": "file", "path": str(path)}, "response": "{response}"}
    )
    found = load_training_samples(data, where="data.0", seed=0)
    assert {(item.prompt, item.response) for item in found} == {
        (sample.prompt, sample.response) for sample in SAMPLES
    }


def test_both_formats_hold_the_same(tmp_path):
    import datasets

    lines = write_samples(tmp_path, "a", SAMPLES, as_parquet=False).read_text("utf-8")
    parquet = datasets.Dataset.from_parquet(
        str(write_samples(tmp_path, "a", SAMPLES, as_parquet=True)), cache_dir=str(tmp_path / "c")
    )
    assert [json.loads(line) for line in lines.splitlines()] == parquet.to_list()
    assert tuple(parquet.column_names) == COLUMNS


def test_the_summary_says_what_became_of_every_question():
    assert list(summary_lines("safety", SUMMARY)) == [
        "safety: 3 of 5 samples",
        "  questions by rows.jsonl: 7 of 9 kept, duplicate 2",
        "  answers by aligned: 3 of 7 kept, no refusal 4",
        "  left out, nobody refused: 4",
        "  taken from aligned: 3",
    ]


def test_the_card_tells_models_judge_and_counts_and_no_path():
    spec = GenerateSpec.model_validate(
        {
            "kind": "generate",
            "name": "mine",
            "seed": 7,
            "models": [{"name": "aligned", "path": "/secret/place", "digest": "abc"}],
            "safety": {
                "size": 5,
                "questions": {
                    "kind": "data",
                    "source": {"kind": "file", "path": "/secret/r.jsonl"},
                },
            },
        }
    )
    card = data_card(
        spec, {"safety": SUMMARY}, files={"safety": "safety.jsonl"},
        provenance=current_provenance(),
    )  # fmt: skip
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"] == [{"config_name": "safety", "data_files": "safety.jsonl"}]
    assert "- `aligned`: abc" in card
    assert "with seed 7" in card
    assert "is no harm judge" in card
    assert "left out, nobody refused: 4" in card
    assert "/secret" not in card
