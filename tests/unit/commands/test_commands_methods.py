import json
from typing import get_args

import pytest

from safemerge.cli import main
from safemerge.config.alignment import ALIGNMENT_METHODS
from safemerge.config.method import METHODS
from safemerge.config.step import STEPS
from safemerge.optimize.optimizer_table import OPTIMIZERS
from safemerge.optimize.spec import OptimizerSpec

TABLES = (METHODS, STEPS, ALIGNMENT_METHODS, OPTIMIZERS)
OPTIMIZER_SPECS = get_args(get_args(OptimizerSpec)[0])


def printed(capsys, *arguments):
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_has_every_method_and_step_with_its_source(capsys):
    text = printed(capsys)
    joined = " ".join(text.split())
    for row in [row for table in TABLES for row in table.values()]:
        assert f"\n  {row.name} " in text
    for row in METHODS.values():
        assert " ".join(row.source.citation.split(" ")[:3]) in joined
    assert "density (0, 1]" in joined
    assert "variant mergekit|peft" in joined
    assert "temperature number above 0 (5)" in joined
    assert "sigma number above 0 (0.166667)" in joined
    assert "coefficients layer | group | model (layer)" in joined
    assert max(map(len, text.splitlines())) <= 120


def test_one_method_is_told_in_full(capsys):
    text = printed(capsys, "ties")
    joined = " ".join(text.split())
    for words in (
        "ties: TIES, merge method",
        "task vectors from the base",
        "https://arxiv.org/abs/2306.01708",
        "density: number in (0, 1], layer-wise (default 0.5; usually (0, 1])",
        "weights: by name: number, layer-wise (required; usually [-2, 2])",
        'variant: mergekit | peft (default "mergekit")',
        "variant: peft elects before weighting and divides by the count",
    ):
        assert words in joined


def test_a_step_is_told_in_full(capsys):
    text = printed(capsys, "safe_lora")
    assert "safe_lora: Safe LoRA, safety operator (step)" in text
    assert "on: experts | merged" in text
    assert "threshold: number in [-1, 1], layer-wise (default 0.5)" in text


def test_an_optimiser_is_told_in_full(capsys):
    text = " ".join(printed(capsys, "entropy").split())
    for words in (
        "entropy: AdaMerging, optimiser (safemerge optimize)",
        "https://arxiv.org/abs/2310.02575",
        "'objective: entropy' with 'optimizer: {name: gradient}'",
        "steps: whole number from 1 (default 500)",
        "layer_groups: list of layer group",
        "start: number | null (default null)",
    ):
        assert words in text


def test_every_declared_optimiser_has_a_row():
    declared = {get_args(spec.model_fields["name"].annotation)[0] for spec in OPTIMIZER_SPECS}
    assert declared | {"entropy"} == set(OPTIMIZERS)
    for name, row in OPTIMIZERS.items():
        assert name == "entropy" or get_args(row.spec.model_fields["name"].annotation) == (name,)


def test_the_table_is_json_for_other_programs(capsys):
    rows = json.loads(printed(capsys, "--json"))
    by_name = {row["name"]: row for row in rows}
    assert set(by_name) == {name for table in TABLES for name in table}
    assert {row["kind"] for row in rows} == {"method", "step", "alignment", "optimizer"}
    assert not by_name["linear"]["uses_base"]
    assert by_name["ties"]["uses_base"]
    (rho,) = [item for item in by_name["vaccine"]["parameters"] if item["name"] == "vaccine.rho"]
    assert (rho["default"], rho["usual"], rho["allowed"]) == (2.0, "[2, 5]", "number from 0")
    (gamma,) = [item for item in by_name["breadcrumbs"]["parameters"] if item["name"] == "gamma"]
    assert gamma["default"] == 0.01
    assert gamma["usual"] == "[0, 0.2]"
    assert not gamma["required"]
    assert json.loads(printed(capsys, "karcher", "--json"))["title"] == "Karcher mean"


def test_every_parameter_is_described(capsys):
    for row in json.loads(printed(capsys, "--json")):
        for item in row["parameters"]:
            assert item["description"], (row["name"], item["name"])
            assert item["allowed"], (row["name"], item["name"])


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main(["methods", "tise"]) == 2
    assert "got 'tise'. Did you mean 'ties'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*METHODS, *STEPS])
def test_the_usual_range_lies_within_what_is_allowed(name, capsys):
    row = json.loads(printed(capsys, name, "--json"))
    named = {item["name"] for item in row["parameters"]}
    if name in METHODS:
        assert set(METHODS[name].usual) <= named
