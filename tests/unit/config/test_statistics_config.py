from pathlib import Path

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import parse_document
from safemerge.config.recipe import MergeRecipe
from safemerge.config.schema import detect_kind
from safemerge.config.statistics import StatisticsSpec
from safemerge.errors import ConfigError

SET = {"source": {"kind": "file", "path": "rows.jsonl"}, "response": "{answer}"}
GIVEN = {"kind": "statistics", "name": "toy", "data": [SET], "quantities": ["fisher"]}


def parsed(**fields):
    return parse_document({**GIVEN, **fields}, StatisticsSpec, where="s.yaml")


def test_a_statistics_file_is_recognised_and_located():
    assert (
        detect_kind({key: value for key, value in GIVEN.items() if key != "kind"}) == "statistics"
    )
    assert parsed().located(Path("/folder")).data[0].source.path == "/folder/rows.jsonl"
    assert list(parsed().training_sets) == ["data.0"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantities": []}, "quantities"),
        ({"quantities": ["fischer"]}, r"quantities.*fischer"),
        ({"quantities": ["gram", "gram"]}, r"quantities must be unique"),
        ({"num_samples": 1, "workers": {"num_workers": 2}}, r"each worker a row; got 1 for 2"),
        ({"num_draws": 3}, r"num_draws belongs to fisher sampled; got 3 with empirical"),
        ({"fisher": "true"}, r"fisher.*true"),
    ],
)
def test_a_statistics_file_that_cannot_be_gathered_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        parsed(**fields)


# --- models that name statistics --------------------------------------------------------


def recipe(method=None, steps=(), **statistics):
    experts = [
        {"name": name, "path": f"/{name}", "statistics": statistics.get(name)} for name in "ab"
    ]
    base = {"name": "base", "path": "/base", "statistics": statistics.get("base")}
    method = method or {"name": "fisher", "weights": {"a": 1.0, "b": 0.5}}
    document = {"base": base, "experts": experts, "method": method, "steps": list(steps)}
    return parse_document(document, MergeRecipe, where="r.yaml")


GATHER = {"gather": "x.yaml"}


@pytest.mark.parametrize("given", [{}, {"gather": "x", "path": "y"}])
def test_statistics_come_from_a_file_or_a_folder(given):
    with pytest.raises(ConfigError, match="exactly one of gather, path must be given"):
        recipe(a=given, b=GATHER)


def test_statistics_are_taken_from_the_declaring_files_folder():
    ref = CheckpointRef(name="a", path="m", statistics=GATHER).located(Path("/here"))
    assert ref.statistics is not None
    assert ref.statistics.gather == "/here/x.yaml"


def test_a_merged_model_without_statistics_is_refused():
    with pytest.raises(ConfigError, match=r"need fisher of every model .* got none of 'b'"):
        recipe(a=GATHER)
    with pytest.raises(ConfigError, match=r"need fisher of every model .* got none of 'base'"):
        recipe({"name": "fisher", "weights": {"base": 1.0, "a": 1.0}}, a=GATHER)
    task = {"name": "task_arithmetic", "weights": {"a": 1.0}}
    with pytest.raises(ConfigError, match=r"need importance of every model .* got none of 'a'"):
        recipe(task, steps=[{"name": "led"}])
    assert recipe(task).statistics_read() == {}


def test_led_takes_a_density_for_every_expert_and_works_on_experts_only():
    task = {"name": "task_arithmetic", "weights": {"a": 1.0, "b": 1.0}}
    with pytest.raises(
        ConfigError, match=r"steps\.led\.density: must name the experts .* \['a'\]"
    ):
        recipe(task, steps=[{"name": "led", "density": {"a": 0.1}}], a=GATHER, b=GATHER)
    with pytest.raises(ConfigError, match=r"steps\.led\.on"):
        recipe(task, steps=[{"name": "led", "on": "merged"}], a=GATHER, b=GATHER)
    led = {"name": "led", "density": {"a": 0.1, "b": [0.2, 0.4]}}
    asked = recipe(task, steps=[led], a=GATHER, b=GATHER)
    assert dict(asked.coefficients())["steps.led.density.b"] == [0.2, 0.4]


@pytest.mark.parametrize("fields", [{"weights": {"a": -0.1, "b": 1.0}}, {"floor": -1.0}])
def test_a_fisher_recipe_out_of_range_is_refused(fields):
    method = {"name": "fisher", "weights": {"a": 1.0, "b": 0.5}, **fields}
    with pytest.raises(ConfigError, match=r"method\.\w+"):
        recipe(method, a=GATHER, b=GATHER)


def test_a_target_must_be_merged():
    method = {"name": "fisher", "weights": {"a": 1.0, "b": 0.5}, "target": "c"}
    with pytest.raises(ConfigError, match="target must be one of the merged models; got 'c'"):
        recipe(method, a=GATHER, b=GATHER)


def test_the_candidates_digest_counts_statistics_that_are_read_by_what_they_hold():
    def digest(path, held, **fields):
        return recipe(a={"path": path, "digest": held}, b=GATHER, **fields).digest

    assert digest("/x", "1") == digest("/y", "1")
    assert digest("/x", "1") != digest("/x", "2")
    linear = {"name": "linear", "weights": {"a": 1.0}}
    assert digest("/x", "1", method=linear) == digest("/x", "2", method=linear)
    assert digest("/x", "1", method=linear) == recipe(linear).digest


@pytest.mark.parametrize("vocabulary", ["base", "union"])
def test_statistics_of_models_with_other_tokens_are_refused(vocabulary):
    document = recipe(a=GATHER, b=GATHER).resolved() | {"vocabulary": vocabulary}
    words = rf"vocabulary: must be refuse where statistics are read.*got {vocabulary}\."
    with pytest.raises(ConfigError, match=words):
        parse_document(document, MergeRecipe, where="r.yaml")
    task = {"name": "task_arithmetic", "weights": {"a": 1.0, "b": 1.0}}
    assert parse_document(document | {"method": task}, MergeRecipe, where="r.yaml")
