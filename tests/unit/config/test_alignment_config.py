from pathlib import Path

import pytest

from safemerge.config.alignment import ALIGNMENT_METHODS, AlignSpec
from safemerge.config.base import digest
from safemerge.config.document import parse_document
from safemerge.config.training import FinetuneSpec


def rows(path):
    return {"source": {"kind": "file", "path": path}, "response": "{answer}"}


ALIGN = {
    "kind": "align",
    "name": "safe",
    "base": {"name": "base", "path": "/base"},
    "data": [rows("refusals.jsonl"), rows("benign.jsonl")],
    "steps": 20,
}
PROMPTS = {"source": {"kind": "file", "path": "held-out.jsonl"}}
HARMFUL = {"data": [rows("harm.jsonl")], "test": [rows("held-out.jsonl")]}
BOOSTER = {**ALIGN, "method": "booster", "harmful": HARMFUL, "booster": {"lambda": 5}}
LISA = {
    **ALIGN, "kind": "finetune", "method": "lisa", "lisa": {"data": [rows("safe.jsonl")]},
}  # fmt: skip


def test_a_method_without_settings_has_the_papers():
    spec = parse_document(
        {**ALIGN, "method": "booster+vaccine", "harmful": HARMFUL}, AlignSpec, where="f"
    )
    told = spec.resolved()
    assert told["booster"] == {
        "lambda": 5.0, "alpha": 0.1, "backend": "in_place", "adaptive": None, "phases": [],
        "calibrate": None,
    }  # fmt: skip
    assert told["vaccine"] == {"rho": 2.0, "norm": "batch"}
    assert told["harmful"]["batch_size"] == 10
    assert "repnoise" not in told
    lisa = parse_document(LISA, FinetuneSpec, where="f").lisa
    assert (lisa.alignment_steps, lisa.user_steps, lisa.rho, lisa.warmup) == (100, 900, 1.0, 0.1)


@pytest.mark.parametrize(("document", "model"), [(BOOSTER, AlignSpec), (LISA, FinetuneSpec)])
def test_a_hardened_stage_resolves_to_itself(document, model):
    loaded = parse_document(document, model, where="f")
    assert parse_document(loaded.resolved(), model, where="f") == loaded


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("booster/lambda", -1, "booster.lambda: must be at least 0; got -1."),
        ("booster/alpha", -0.1, "booster.alpha: must be at least 0; got -0.1."),
        ("booster/lamda", 1, "booster.lamda: unknown key; got 1. Did you mean 'lambda'?"),
        ("booster/backend", "group", "booster.backend: must be 'in_place', 'three_pass' or"),
        ("booster/adaptive", {"low": 3, "high": 2}, "booster.adaptive: low must not exceed high"),
        ("booster/phases", [{"steps": 19}], "booster.phases must add up to the stage's 20 steps"),
        ("harmful/data", [], "harmful.data: must have at least 1 item; got []."),
        ("harmful", None, "method booster needs harmful; got none."),
        ("booster", None, "method booster needs booster; got none."),
        ("vaccine", {}, "vaccine belongs to method vaccine, booster+vaccine; got it with method"),
        ("lora", {"dropout": 0.1}, "lora.dropout must be 0 for booster, whose passes must see"),
        ("workers", {"num_workers": 11}, "batch_size must give each worker a row; got 8 for 11"),
        ("micro_batches", 9, "batch_size must give each of a worker's micro_batches a row; got 8"),
        ("adapter", 3, "adapter: must be text; got 3."),
        (
            "method",
            3,
            "method: must be text; got 3. Known: sft, booster, vaccine, booster+vaccine",
        ),
        ("method", None, "method: must be text; got null. Known: sft, booster"),
        ("harmful/batch_size", 0, "harmful.batch_size: must be at least 1; got 0."),
        ("booster/calibrate", {}, "booster.calibrate.penalty_nats: required key is missing."),
        ("booster/calibrate", {"penalty_nats": 0}, "penalty_nats: must be above 0; got 0."),
        (
            "booster/calibrate",
            {"penalty_nats": 0.3, "plain_steps": 20},
            "booster.calibrate.plain_steps must be fewer than the stage's 20 steps; got 20.",
        ),
        (
            "booster",
            {"lambda": 4.0, "calibrate": {"penalty_nats": 0.3}},
            "booster: calibrate sets lambda; got it beside lambda. Remove one.",
        ),
        (
            "booster",
            {"adaptive": {}, "calibrate": {"penalty_nats": 0.3}},
            "booster: calibrate sets lambda; got it beside adaptive. Remove one.",
        ),
        (
            "booster",
            {"alpha": 0.0, "calibrate": {"penalty_nats": 0.3}},
            "booster: calibrate needs a simulated step; got alpha 0.",
        ),
        ("until", {"refusal": 1.1, "prompts": [PROMPTS]}, "until.refusal: must be at most 1;"),
        ("until", {"refusal": 0.9, "prompts": []}, "until.prompts: must have at least 1 item;"),
        (
            "until",
            {"refusal": 0.9, "prompts": [PROMPTS], "min_steps": 20},
            "until.min_steps must be fewer than the stage's 20 steps; got 20.",
        ),
    ],
)
def test_a_booster_stage_that_breaks_a_rule_is_told(path, value, line, set_in, problems):
    found = problems(set_in(BOOSTER, path, value), AlignSpec)
    assert len(found) == 1
    assert line in found[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"method": "booster+vaccine", "booster": {"backend": "grouped"}},
            "booster.backend grouped computes the plain alignment loss; got it with",
        ),
        (
            {"harmful": {**HARMFUL, "batch_size": 2}, "workers": {"num_workers": 3}},
            "harmful.batch_size must give each worker a row; got 2 for 3 workers.",
        ),
        (
            {"harmful": {**HARMFUL, "batch_size": 2}, "micro_batches": 3},
            "harmful.batch_size must give each of a worker's micro_batches a row; got 2",
        ),
        (
            {"adapter": "a", "lora": {"rank": 4}},
            "lora describes a new adapter; got it beside adapter, which has its own rank",
        ),
        ({"method": "sft"}, "booster belongs to method booster, booster+vaccine; got it with"),
        (
            {"method": "repnoise", "booster": None, "micro_batches": 2},
            "repnoise compares all rows of a batch with each other, on one worker at once; got",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told(changes, line, problems):
    found = problems({**BOOSTER, **changes}, AlignSpec)
    assert len(found) == 1
    assert line in found[0]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("method", "sft", "lisa belongs to method lisa; got it with method sft. Remove it."),
        ("lisa", None, "method lisa needs lisa; got none. Add the section 'lisa'."),
        ("lisa/rho", -1, "lisa.rho: must be at least 0; got -1."),
        ("lisa/warmup", 1.5, "lisa.warmup: must be at most 1; got 1.5."),
    ],
)
def test_a_lisa_stage_that_breaks_a_rule_is_told(path, value, line, set_in, problems):
    (found,) = problems(set_in(LISA, path, value), FinetuneSpec)
    assert line in found


def test_data_of_a_method_are_taken_from_the_files_folder():
    located = parse_document(BOOSTER, AlignSpec, where="f").located(Path("/stages"))
    assert located.harmful.data[0].source.path == "/stages/harm.jsonl"
    assert located.harmful.test[0].source.path == "/stages/held-out.jsonl"
    located = parse_document({**LISA, "adapter": "a"}, FinetuneSpec, where="f")
    located = located.located(Path("/stages"))
    assert located.adapter == "/stages/a"
    assert located.lisa.data[0].source.path == "/stages/safe.jsonl"


def test_a_stage_that_ends_by_its_answers_takes_one_worker(problems):
    until = {"refusal": 0.9, "prompts": [PROMPTS]}
    assert parse_document({**ALIGN, "until": until}, AlignSpec, where="f").until is not None
    found = problems({**ALIGN, "until": until, "workers": {"num_workers": 2}}, AlignSpec)
    assert found == [
        "f.yaml: until generates answers on one worker; got it with 2 workers. Take one, or "
        "remove it."
    ]


def test_held_out_prompts_are_located_seen_and_only_counted_where_they_are():
    plain = parse_document(ALIGN, AlignSpec, where="f")
    until = {"refusal": 0.9, "prompts": [PROMPTS]}
    gated = parse_document({**ALIGN, "until": until}, AlignSpec, where="f")
    assert "until" not in plain.counted()
    assert gated.counted()["until"] == {
        "refusal": 0.9, "every": 20, "min_steps": 0, "max_tokens": 16,
    }  # fmt: skip
    there = gated.located(Path("/data"))
    assert there.training_sets["until.prompts.0"].source.path == "/data/held-out.jsonl"


def test_a_record_of_a_finished_stage_with_the_other_methods_as_null_is_read_the_same():
    spec = parse_document(BOOSTER, AlignSpec, where="f")
    stored = {**spec.resolved(), "vaccine": None, "repnoise": None}
    assert parse_document(stored, AlignSpec, where="f") == spec


def test_a_document_gives_the_declaration_of_its_method():
    for name, row in ALIGNMENT_METHODS.items():
        harmful = {"harmful": HARMFUL} if "harmful" in row.spec.sections else {}
        spec = parse_document({**ALIGN, **harmful, "method": name}, AlignSpec, where="f")
        assert type(spec) is row.spec
        assert spec.counted()["method"] == name


HARM = {"data": [rows("a.jsonl")]}


@pytest.mark.parametrize(
    ("changes", "identity"),
    [
        ({}, "7bcfa2a030a4cd88"),
        ({"method": "booster", "harmful": HARM}, "751deb1034973d79"),
        ({"method": "vaccine"}, "0b1c00bd00a225e5"),
        ({"method": "vaccine", "vaccine": {"rho": 3, "norm": "sample"}}, "8702a36d25bc56e0"),
        (
            {"method": "booster+vaccine", "harmful": HARM},
            "fa80d6c8bff29898",
        ),
        (
            {
                "method": "repnoise",
                "harmful": HARM,
                "repnoise": {"alpha": 0.5},
            },
            "f191f30a67b4a85d",
        ),
    ],
)
def test_what_counts_of_a_stage_is_what_it_was_when_ingredients_were_trained(changes, identity):
    # Digests of safemerge 0.2, before alignment became a union: caches stay valid.
    spec = parse_document({**ALIGN, **changes}, AlignSpec, where="f")
    assert digest(spec.counted()) == identity


def test_an_older_boosters_identity_has_no_calibration():
    spec = parse_document(BOOSTER, AlignSpec, where="f")
    assert "calibrate" not in spec.counted()["booster"]
