from pathlib import Path

import pytest

from safemerge.config.document import parse_document
from safemerge.config.schema import detect_kind
from safemerge.optimize.spec import OptimizeSpec


def rows(path):
    return {"source": {"kind": "file", "path": path}, "prompt": "{q}", "response": "{a}"}


GROUP = {"name": "mlp", "kind": "mlp"}
OPTIMIZE = {
    "kind": "optimize",
    "name": "mix",
    "base": {"name": "base", "align": "safe.yaml"},
    "experts": [{"name": "math", "finetune": "math.yaml"}, {"name": "law", "path": "law"}],
    "safety": [rows("refusals.jsonl")],
    "expert": [rows("math.jsonl"), rows("law.jsonl")],
    "optimizer": {"name": "gradient", "coefficients": "group", "layer_groups": [GROUP]},
}
CMA = {"name": "cma_es"}


def with_optimizer(**settings):
    return {**OPTIMIZE, "optimizer": settings}


@pytest.mark.parametrize(
    "optimizer", [OPTIMIZE["optimizer"], CMA, {"name": "lm_cocktail", "include_base": True}]
)
def test_an_optimisation_resolves_to_itself(optimizer):
    loaded = parse_document(with_optimizer(**optimizer), OptimizeSpec, where="f")
    assert parse_document(loaded.resolved(), OptimizeSpec, where="f") == loaded


def test_an_unknown_key_is_refused_at_every_level(places, set_in, problems):
    loaded = parse_document(OPTIMIZE, OptimizeSpec, where="f")
    paths = list(places(loaded))
    assert {"", "optimizer", "optimizer/layer_groups/0", "safety/0", "workers"} <= set(paths)
    for path in paths:
        changed = set_in(loaded.resolved(), f"{path}/zzz".strip("/"), 1)
        (line,) = problems(changed, OptimizeSpec)
        assert "zzz: unknown key; got 1. Known: " in line


def test_defaults_are_the_papers():
    spec = parse_document(with_optimizer(**CMA), OptimizeSpec, where="f")
    assert (spec.alpha, spec.optimizer.evaluations) == (0.3, 100)
    assert spec.optimizer.sigma == pytest.approx(1 / 6)
    assert spec.optimizer.first_value(3) == pytest.approx(1 / 3)
    gradient = parse_document(with_optimizer(name="gradient"), OptimizeSpec, where="f").optimizer
    assert (gradient.learning_rate, gradient.beta1, gradient.beta2) == (1e-3, 0.9, 0.999)
    assert (gradient.low, gradient.high, gradient.coefficients) == (0.0, 1.0, "layer")
    cocktail = parse_document(with_optimizer(name="lm_cocktail"), OptimizeSpec, where="f")
    assert cocktail.optimizer.temperature == 5.0


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("alpha", -0.1, "alpha: must be at least 0; got -0.1."),
        ("alpha", 1.5, "alpha: must be at most 1; got 1.5."),
        ("safety", [], "safety: must have a data set; got none. Without safety data a merge"),
        ("expert", [], "expert: must have a data set; got none. Add pairs"),
        ("experts", [], "experts: must have at least 1 item; got []."),
        ("experts/1/name", "math", "names of base and experts must be unique; got ['base', 'ma"),
        ("objective", "safety", "objective: must be "),
        ("optimizer/name", "adam", 'optimizer.name: unknown choice; got "adam".'),
        ("optimizer/steps", 0, "optimizer.steps: must be at least 1; got 0."),
        ("optimizer/start", 2.0, "optimizer: start must be within [low, high]; got 2.0 outside"),
        ("optimizer/low", 1.0, "optimizer: low must be below high; got low=1.0, high=1.0."),
        ("optimizer/layer_groups", [], "optimizer: layer_groups and 'coefficients: group' need"),
        ("optimizer/coefficients", "layer", "optimizer: layer_groups and 'coefficients: group'"),
        ("optimizer/layer_groups", [GROUP, GROUP], "optimizer: names of layer_groups must be uni"),
        ("optimizer/batch_size", 1, "optimizer.batch_size must give each worker's micro_batches"),
        ("optimizer/temperature", 1.0, "optimizer.temperature: unknown key; got 1.0."),
    ],
)
def test_an_optimisation_that_breaks_a_rule_is_told_with_place_and_value(
    path, value, line, set_in, problems
):
    document = set_in(OPTIMIZE, "workers", {"num_workers": 2})
    (found,) = problems(set_in(document, path, value), OptimizeSpec)
    assert found.startswith(f"f.yaml: {line}")


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ({**CMA, "density": 0.2}, "optimizer: density belongs to methods that sparsify"),
        ({**CMA, "search_density": True}, "optimizer: density belongs to methods that sparsify"),
        ({**CMA, "population": 2}, "optimizer.population: must be at least 3; got 2."),
        ({**CMA, "evaluations": 1}, "optimizer.evaluations: must be at least 2; got 1."),
        ({"name": "lm_cocktail", "temperature": 0}, "optimizer.temperature: must be above 0; got"),
        ({"name": "lm_cocktail", "low": 0}, "optimizer.low: unknown key; got 0."),
    ],
)
def test_each_optimiser_has_its_own_settings(optimizer, line, problems):
    (found,) = problems(with_optimizer(**optimizer), OptimizeSpec)
    assert found.startswith(f"f.yaml: {line}")


@pytest.mark.parametrize("name", ["cma_es", "lm_cocktail"])
def test_entropy_is_for_the_gradient_alone(name, problems):
    (line,) = problems({**with_optimizer(name=name), "objective": "entropy"}, OptimizeSpec)
    assert f"objective: entropy is AdaMerging's, by gradient; got it with {name}." in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optimizer": {"name": "gradient"}}, "evaluator: an engine has no gradient; got it with"),
        ({"workers": {"num_workers": 2}}, "workers and evaluator exclude each other; got both."),
        ({"max_tokens": 1024}, "evaluator.max_model_len must exceed max_tokens; got 1024 and"),
    ],
)
def test_an_evaluator_is_for_losses_alone(changes, line, problems):
    document = {**with_optimizer(**CMA), "evaluator": {"engine": "transformers"}, **changes}
    (found,) = problems(document, OptimizeSpec)
    assert found.startswith(f"f.yaml: {line}")


def test_relative_references_are_taken_from_the_files_folder():
    spec = parse_document(OPTIMIZE, OptimizeSpec, where="f").located(Path("/runs"))
    assert [ref.align or ref.finetune or ref.path for ref in spec.checkpoints] == [
        "/runs/safe.yaml",
        "/runs/math.yaml",
        "/runs/law",
    ]
    assert spec.safety[0].source.path == "/runs/refusals.jsonl"
    assert spec.expert[1].source.path == "/runs/law.jsonl"


def test_a_file_is_recognised_by_its_kind_or_its_optimiser():
    assert detect_kind(OPTIMIZE) == "optimize"
    assert detect_kind({key: OPTIMIZE[key] for key in ("optimizer", "base")}) == "optimize"
