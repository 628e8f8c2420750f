"""The example alignment method, installed as a package of its own: validated, trained, resumed."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Annotated

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge import plugins
from safemerge.cli import main
from safemerge.config.alignment import ALIGNMENT_METHODS, AlignSpec
from safemerge.config.alignment_method import alignment_method
from safemerge.config.document import parse_document
from safemerge.config.schema import json_schema
from safemerge.config.signature import Range
from safemerge.config.stage import LoraSpec
from safemerge.errors import ConfigError
from safemerge.training.added import AlignmentStep, Gradient
from safemerge.training.batch import EncodedSample, Mixture
from safemerge.training.ingredient import ingredient_digest
from safemerge.training.lora import attach_lora
from safemerge.training.method import make_method, method_batches
from safemerge.training.sft import make_optimizer, train

ROWS = {"source": {"kind": "file", "path": "rows.jsonl"}, "response": "{answer}"}
STAGE = {
    "kind": "align",
    "name": "safe",
    "base": {"name": "base", "path": "/base"},
    "data": [ROWS, ROWS],
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 0.01,
    "lora": {"targets": ["q_proj", "down_proj"]},
}
ADDED = {
    **STAGE,
    "method": "gradient_difference",
    "harmful": {"data": [ROWS], "batch_size": 3},
    "gradient_difference": {"strength": 0.25},
}


@pytest.fixture(scope="module")
def site(install_examples):
    """A folder that pip has installed the example into."""
    return install_examples("alignment_method")


pytestmark = pytest.mark.usefixtures("examples")


def stage(document=ADDED, **changes):
    return parse_document({**document, **changes}, AlignSpec, where="stage")


def samples(count, *, seed):
    drawn = torch.randint(20, 400, (count, 6), generator=torch.Generator().manual_seed(seed))
    return tuple(EncodedSample((1, 5, *row), 3) for row in drawn.tolist())


def mixture(*, harmful=True):
    second = Mixture((samples(8, seed=3),), (1.0,), (8,)) if harmful else None
    return Mixture((samples(9, seed=1), samples(7, seed=2)), (0.5, 0.5), (9, 7), second)


@pytest.fixture
def fit(tiny_base):
    """Train a pico model on a stage from a state; return its weights, the steps and its state."""

    def fit(spec, *, stop=None, state=None, dtype=torch.float64):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)
        model = attach_lora(base, LoraSpec(rank=3, targets=["q_proj", "down_proj"]), where="toy")
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer, method = make_optimizer(model, spec), make_method(model, spec)
        first, seen = 0, []
        if state is not None:
            first, weights, moments = state
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)
            optimizer.load_state_dict(moments)
        mixed = mixture(harmful="harmful" in spec.sections)
        stream = itertools.islice(method_batches(mixed, spec), stop)
        ways = {"first_step": first, "method": method, "on_step": seen.append}
        done = train(model, optimizer, stream, spec, **ways)
        weights = [p.detach().clone() for p in parameters]
        return weights, seen, (done, weights, optimizer.state_dict())

    return fit


def test_a_stage_of_an_added_method_is_validated_like_any():
    spec = stage()
    assert spec.plugin == "safemerge-gradient-difference 1.0"
    assert spec.gradient_difference.strength == 0.25
    assert stage(gradient_difference={}).gradient_difference.strength == 0.1
    assert AlignSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    sets = spec.located(Path("/data")).training_sets
    assert {place: item.source.path for place, item in sets.items()} == dict.fromkeys(
        ("data.0", "data.1", "harmful.data.0"), "/data/rows.jsonl"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gradient_difference": {"strength": 2.0}}, "gradient_difference.strength: must be at m"),
        (
            {"gradient_difference": {"strenth": 0.1}},
            "gradient_difference.strenth: unknown key; got 0.1. Did you mean 'strength'?",
        ),
        ({"harmful": None}, "method gradient_difference needs harmful; got none."),
        (
            {"booster": {}},
            "booster belongs to method booster, booster+vaccine; got it with",
        ),
        ({"steps": 0}, "steps: must be at least 1; got 0."),
        ({"plugin": "safemerge-gradient-difference 0.9"}, "must be the version that the file was"),
        ({"method": "gradient_diference"}, "Did you mean 'gradient_difference'?"),
        ({"method": 3}, "method: must be text; got 3."),
        (
            {"method": "other", "plugin": "other-package 1.0"},
            'method: must be of a package that is installed here; got "other" of other-package',
        ),
        ({"lora": {"dropout": 0.1}}, "lora.dropout must be 0 for gradient_difference, whose"),
    ],
)
def test_a_stage_of_an_added_method_that_breaks_a_rule_is_answered(changes, line):
    with pytest.raises(ConfigError) as error:
        stage(**changes)
    (found,) = str(error.value).splitlines()
    assert found.startswith("stage: ")
    assert line in found


def test_its_gradient_is_followed_the_same_in_parts_and_after_a_resume(fit):
    plain, _, _ = fit(stage(STAGE, method="sft"))
    still, _, _ = fit(stage(gradient_difference={"strength": 0.0}))
    whole, steps, _ = fit(stage())
    _, before, state = fit(stage(), stop=4)
    resumed, after, _ = fit(stage(), state=state)
    _, parts, _ = fit(stage(micro_batches=3))
    assert before + after == steps
    assert parts[0].grad_norm == pytest.approx(steps[0].grad_norm, rel=1e-6)
    for index, weights in enumerate(whole):
        torch.testing.assert_close(still[index], plain[index], rtol=0, atol=0)
        torch.testing.assert_close(resumed[index], weights, rtol=0, atol=0)
    assert not all(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))
    _, calm, _ = fit(stage(gradient_difference={"strength": 0.0}, steps=6))
    assert steps[0].harmful_loss == calm[0].harmful_loss
    assert steps[-1].harmful_loss > calm[-1].harmful_loss, "the harmful loss was not ascended"


def test_settings_and_version_are_part_of_the_finished_stages_digest():
    def digest(spec):
        return ingredient_digest(spec, base_fingerprint="b", mixture=mixture())

    spec = stage()
    assert digest(spec) == digest(stage())
    assert digest(spec) != digest(stage(gradient_difference={"strength": 0.3}))
    assert digest(spec) != digest(spec.model_copy(update={"plugin": "other 2.0"}))


def test_the_step_shifts_weights_and_restores_them(fit):
    seen = {}

    @alignment_method("nearby")
    def nearby(step: AlignmentStep, *, length: Annotated[float, Range(0, 1)] = 0.1) -> Gradient:
        """Alignment at the weights that a step along the gradient leads to."""
        start = [parameter.detach().clone() for parameter in step.parameters]
        here = step.gradient(step.alignment)
        with step.shifted(here, length=length):
            moved = [p.detach() - s for p, s in zip(step.parameters, start, strict=True)]
            there = step.gradient(step.alignment)
        seen.setdefault("length", torch.nn.utils.get_total_norm(moved))
        seen["restored"] = all(map(torch.equal, step.parameters, start))
        seen["rise"] = float(there.loss - here.loss)
        return there

    plugins.register(plugins.ALIGNMENT_METHODS, "nearby", nearby)
    fit(stage(STAGE, method="nearby", steps=1))
    assert float(seen["length"]) == pytest.approx(0.1, rel=1e-5)
    assert seen["restored"]
    assert seen["rise"] > 0


def test_what_is_no_gradient_is_refused_with_the_step_and_the_method(fit):
    @alignment_method("wrong")
    def wrong(step):
        return step.gradient(step.alignment).loss

    plugins.register(plugins.ALIGNMENT_METHODS, "wrong", wrong)
    with pytest.raises(ConfigError, match=r"safe, step 1: alignment method 'wrong' must return a"):
        fit(stage(STAGE, method="wrong"))


def out_of_range(step, *, rho: Annotated[float, Range(0.0, 1.0)] = 2.0):
    """Have a default that its files could not say."""


def none_at_all(step, *, rho: float = None):  # noqa: RUF013 - what is refused
    """Have a default of another type."""


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        (
            "Bad",
            lambda step: step,
            "must be lower-case letters, digits and underscores; got",
        ),
        ("booster", lambda step: step, "must be no key of a stage's file; got booster"),
        ("steps", lambda step: step, "must be no key of a stage's file; got steps"),
        ("two", lambda step, rho: step, "must take one AlignmentStep; got step, rho"),
        ("odd", lambda step, *, rho: step, "parameter 'rho': must be float, int, bool or Literal"),
        ("far", out_of_range, "parameter 'rho': the default must be an allowed value; got 2.0"),
        ("none", none_at_all, "parameter 'rho': the default must be an allowed value; got None"),
    ],
)
def test_a_function_of_another_form_is_refused(name, function, words):
    with pytest.raises(ConfigError, match=words):
        alignment_method(name)(function)


def test_an_entry_point_that_names_something_else_is_refused():
    plugins.register(plugins.ALIGNMENT_METHODS, "odd", len)
    with pytest.raises(ConfigError, match="must name a function decorated with @alignment_method"):
        stage(STAGE, method="odd")


def test_schema_methods_and_validate_know_it(capsys, tmp_path):
    assert "gradient_difference" in json.dumps(json_schema("align"))
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in (*ALIGNMENT_METHODS, "gradient_difference"))
    assert main(["methods", "gradient_difference"]) == 0
    assert "gradient_difference.strength: number in [0, 1]" in capsys.readouterr().out
    path = tmp_path / "stage.json"
    path.write_text(json.dumps(ADDED))
    assert main(["validate", str(path)]) == 0
