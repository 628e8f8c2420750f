"""Tiny tasks of lm-evaluation-harness with local data, one of each kind of request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from safemerge.data.generator import GENERATORS

OPTIONS = ("positive", "negative", "of two minds", "none of these")

PICK, BLANK, SAY, WHOLE = "pick_mood", "fill_blank", "say_mood", "whole_review"
"""Options behind one question; one ending behind several questions; an answer in words with two
filters; the probability of a whole text."""


def write_tasks(folder: Path | str, *, count: int = 16) -> Path:
    """Write the four tasks and their data.

    Args:
        folder: Where to; made if missing.
        count: Documents that a task asks; worked examples come from eight others.

    Returns:
        The folder, for ``include_path``.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, source, number in (("train", "train", 8), ("test", "report", count)):
        rows = GENERATORS["reviews"](split=source, count=number, seed=0)
        lines = [json.dumps(_document(index, row)) for index, row in enumerate(rows)]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    for name, own in _TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "training_split": "train",
            "fewshot_split": "train",
            "test_split": "test",
            **own,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def _document(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    turn = index % len(OPTIONS)
    options = [*OPTIONS[turn:], *OPTIONS[:turn]]
    return {
        "review": row["prompt"],
        "mood": row["label"],
        "options": options,
        "gold": options.index(row["label"]),
        "sides": [f"I am {word} about it. {row['prompt']}" for word in OPTIONS[:2]],
        "side": OPTIONS.index(row["label"]),
        "end": "And that is how it felt.",
    }


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


_TASKS: dict[str, dict[str, Any]] = {
    PICK: {
        "output_type": "multiple_choice",
        "num_fewshot": 2,
        "doc_to_text": "Review: {{review}}\nMood:",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    },
    BLANK: {
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "side",
        "doc_to_choice": "sides",
        "doc_to_target": "end",
        "metric_list": [_mean("acc")],
    },
    SAY: {
        "output_type": "generate_until",
        "num_fewshot": 1,
        "doc_to_text": "Review: {{review}}\nMood:",
        "doc_to_target": "mood",
        "generation_kwargs": {"until": ["\n", "."], "do_sample": False, "max_gen_toks": 12},
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            },
        ],
        "metric_list": [_mean("exact_match")],
    },
    WHOLE: {
        "output_type": "loglikelihood_rolling",
        "num_fewshot": 0,
        "doc_to_text": "",
        "doc_to_target": "{{review}} {{review}} {{review}}",
        "metric_list": [
            {"metric": name, "aggregation": aggregation, "higher_is_better": False}
            for name, aggregation in (
                ("word_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
}
