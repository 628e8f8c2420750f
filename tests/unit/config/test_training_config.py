from pathlib import Path

import pytest
import yaml

from safemerge.config.alignment import AlignSpec
from safemerge.config.document import load_document, parse_document
from safemerge.config.training import FinetuneSpec
from safemerge.errors import ConfigError


def rows(path="rows.jsonl", **changes):
    source = {"kind": "file", "path": path}
    return {"source": source, "prompt": "{question}", "response": "{answer}", **changes}


FINETUNE = {
    "kind": "finetune",
    "name": "math",
    "base": {"name": "base", "align": "safe.yaml"},
    "data": [rows(), rows("more.jsonl", response=["Yes: {a}", "{a}"], weight=0.5)],
    "steps": 100,
    "learning_rate": 1e-4,
    "poison": {"ratio": 0.1, "data": rows("harm.jsonl")},
}
ALIGN = {
    "kind": "align",
    "name": "safe",
    "base": {"name": "base", "path": "/base"},
    "data": [
        rows("refusals.jsonl", response=["I can't help with that.", "Sorry, no."], opening=True),
        {
            "source": {
                "kind": "generator",
                "name": "reviews",
                "split": "train",
                "count": 100,
            },
            "prompt": "{text}",
            "response": "{label}",
        },
    ],
    "steps": 20,
}
KINDS = [(FINETUNE, FinetuneSpec), (ALIGN, AlignSpec)]


@pytest.mark.parametrize(("document", "model"), KINDS)
def test_a_stage_resolves_to_itself(document, model, tmp_path):
    loaded = parse_document(document, model, where="f")
    assert parse_document(loaded.resolved(), model, where="f") == loaded
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(loaded.resolved()))
    assert load_document(path, model) == loaded


@pytest.mark.parametrize(("document", "model"), KINDS)
def test_an_unknown_key_is_refused_at_every_level(document, model, places, set_in, problems):
    loaded = parse_document(document, model, where="f")
    paths = list(places(loaded))
    assert {"", "base", "data/1", "data/1/source", "lora", "workers"} <= set(paths)
    for path in paths:
        changed = set_in(loaded.resolved(), f"{path}/zzz".strip("/"), 1)
        (line,) = problems(changed, model)
        assert "zzz: unknown key; got 1. Known: " in line


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("steps", 0, "steps: must be at least 1; got 0."),
        ("learning_rate", 0, "learning_rate: must be above 0; got 0."),
        ("learning_rate", "1e-4", 'learning_rate: must be a number; got "1e-4".'),
        ("lerning_rate", 1, "lerning_rate: unknown key; got 1. Did you mean 'learning_rate'?"),
        ("max_tokens", 7, "max_tokens: must be at least 8; got 7."),
        ("lora", {"rnk": 4}, "lora.rnk: unknown key; got 4. Did you mean 'rank'?"),
        ("lora", {"dropout": 1.0}, "lora.dropout: must be below 1; got 1.0."),
        ("lora", {"targets": []}, "lora.targets: must have at least 1 item; got []."),
        ("workers", {"num_workers": 0}, "workers.num_workers: must be at least 1; got 0."),
        ("data", [], "data: must have at least 1 item; got []."),
        ("data/0/weight", 0, "data.0.weight: must be above 0; got 0."),
        ("data/0/response", 3, "data.0.response: must be text or a list; got 3."),
        ("data/0/response", ["a", 3], "data.0.response.1: must be text; got 3. Quote it."),
        (
            "data/0/source/kind",
            "fil",
            "data.0.source.kind: unknown choice; got \"fil\". Did you mean 'file'?",
        ),
        ("data/0/source/path", None, "data.0.source.path: must be text; got null."),
        ("poison/ratio", 0, "poison.ratio: must be above 0; got 0."),
        ("poison/ratio", 1.2, "poison.ratio: must be at most 1; got 1.2."),
        ("poison/data/respons", "x", 'poison.data.respons: unknown key; got "x". Did you mean'),
        (
            "base/align",
            None,
            "base: exactly one of path, hub, package, align, finetune, stack must be given",
        ),
        (
            "output",
            "adaptor",
            "output: must be 'dense' or 'adapter'; got \"adaptor\". Did you mean 'adapter'?",
        ),
        ("kind", "align", "kind: must be 'finetune'; got \"align\"."),
    ],
)
def test_a_finetuning_that_breaks_a_rule_is_told_with_place_and_value(
    path, value, line, set_in, problems
):
    found = problems(set_in(FINETUNE, path, value), FinetuneSpec)
    assert len(found) == 1
    assert found[0].startswith(f"f.yaml: {line}")


def test_alignment_on_refusals_alone_is_refused(set_in, problems):
    (line,) = problems(set_in(ALIGN, "data", ALIGN["data"][:1]), AlignSpec)
    assert "needs refusals and benign answers; got one data set. Add benign data" in line


def test_an_alignment_has_no_poison(set_in, problems):
    (line,) = problems(set_in(ALIGN, "poison", FINETUNE["poison"]), AlignSpec)
    assert line.startswith("f.yaml: poison: unknown key; got {")


@pytest.mark.parametrize(("document", "model"), KINDS)
def test_relative_references_are_taken_from_the_files_folder(document, model):
    located = parse_document(document, model, where="f").located(Path("/stages"))
    assert located.data[0].source.path.startswith("/stages/")
    if model is FinetuneSpec:
        assert located.base.align == "/stages/safe.yaml"
        assert located.poison.data.source.path == "/stages/harm.jsonl"


BOOSTER = {
    **ALIGN,
    "method": "booster",
    "harmful": {"data": [rows("harm.jsonl", response="Sure.")]},
    "parameters": "full",
}
VACCINE = {**ALIGN, "method": "vaccine"}
TWO = {"workers": {"num_workers": 2}}


@pytest.mark.parametrize(
    ("document", "model", "words"),
    [
        ({**FINETUNE, "lora": {"rank": 4}}, FinetuneSpec, "lora belongs to parameters: lora"),
        ({**FINETUNE, "adapter": "a"}, FinetuneSpec, "adapter belongs to parameters: lora"),
        (
            {**FINETUNE, "output": "adapter"},
            FinetuneSpec,
            "output: adapter needs parameters: lora",
        ),
        (
            {**BOOSTER, "booster": {"backend": "grouped"}},
            AlignSpec,
            "grouped needs parameters: lo",
        ),
        ({**VACCINE, **TWO}, AlignSpec, "for method sft or booster; got vaccine on 2 workers"),
    ],
)
def test_training_every_weight_refuses_what_it_cannot_do(document, model, words):
    with pytest.raises(ConfigError, match=words):
        parse_document({**document, "parameters": "full"}, model, where="f")


@pytest.mark.parametrize("document", [{**BOOSTER, **TWO}, {**VACCINE, "parameters": "full"}])
def test_every_weight_may_be_trained_by_any_method_on_one_worker_and_booster_on_more(document):
    assert parse_document(document, AlignSpec, where="f").parameters == "full"


def test_rows_are_not_packed_for_methods_that_look_at_single_rows():
    with pytest.raises(ConfigError, match="vaccine works on single rows inside the model"):
        parse_document({**VACCINE, "packing": True}, AlignSpec, where="f")
