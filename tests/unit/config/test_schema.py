import json

import jsonschema
import pytest

from safemerge.config.recipe import MergeRecipe
from safemerge.config.schema import detect_kind, json_schema, kinds, model_of
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study

STUDY = landscape_study()
RECIPE = STUDY.template(STUDY.spaces[0])
TRAINING = {"name": "math", "base": {}, "data": [], "steps": 3}


@pytest.mark.parametrize("name", kinds())
def test_every_kind_has_a_valid_schema_that_refuses_unknown_keys(name):
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    assert schema["title"] == f"safemerge {name}"
    members = [
        schema["$defs"][item["$ref"].rpartition("/")[2]] for item in schema.get("oneOf", ())
    ]
    assert all(member["additionalProperties"] is False for member in members or [schema])


def test_schemas_use_yamls_keys_and_accept_what_the_models_accept():
    assert model_of("recipe") is MergeRecipe
    validator = jsonschema.Draft202012Validator(json_schema("recipe"))
    assert "lambda" in RECIPE["method"]
    validator.validate(RECIPE)
    assert not validator.is_valid({**RECIPE, "densty": 1})
    jsonschema.Draft202012Validator(json_schema("study")).validate(STUDY.resolved())


def test_the_schema_of_an_alignment_knows_which_sections_each_method_takes():
    data = {"source": {"kind": "file", "path": "rows.jsonl"}, "response": "{answer}"}
    stage = {
        **TRAINING,
        "kind": "align",
        "base": {"name": "b", "path": "/b"},
        "data": [data, data],
    }
    validator = jsonschema.Draft202012Validator(json_schema("align"))
    validator.validate(stage)
    booster = {**stage, "method": "booster", "harmful": {"data": [data]}, "booster": {"lambda": 2}}
    validator.validate(booster)
    assert not validator.is_valid({**booster, "method": "sft"})
    assert not validator.is_valid({**booster, "vaccine": {}})
    assert not validator.is_valid({**stage, "method": "booster"})
    assert not validator.is_valid({**stage, "method": "boster"})


@pytest.mark.parametrize("function", [json_schema, model_of])
def test_an_unknown_kind_is_answered_with_the_nearest(function):
    with pytest.raises(
        ConfigError, match=r"no such kind of file; got 'studdy'\. Did you mean 'study'"
    ):
        function("studdy")


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (STUDY.resolved(), "study"),
        ({"objectives": []}, "study"),
        (RECIPE, "recipe"),
        ({**TRAINING, "kind": "finetune"}, "finetune"),
        ({**TRAINING, "kind": "align", "method": "sft"}, "align"),
        ({**TRAINING, "poison": {}}, "finetune"),
        ({"kind": "robustness"}, "robustness"),
        ({"methods": [], "attacks": []}, "robustness"),
    ],
)
def test_a_file_is_recognised_by_its_own_keys(document, kind):
    assert detect_kind(document) == kind


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            TRAINING,
            r"f\.yaml: kind: required key is missing\. Add 'kind: finetune' or 'kind: align'",
        ),
        ({"kind": "aling"}, r"f\.yaml: kind: unknown choice; got 'aling'\. Did you mean 'align'"),
        ({"kind": ["align"]}, r"f\.yaml: kind: unknown choice; got \['align'\]"),
        ({"foo": 1, "bar": 2}, r"f\.yaml: cannot tell what kind.*got keys bar, foo\."),
        ({}, r"cannot tell what kind.*got keys none\."),
        ([1], r"f\.yaml: must be a mapping; got list\."),
    ],
)
def test_a_file_of_no_clear_kind_is_refused(document, message):
    with pytest.raises(ConfigError, match=message):
        detect_kind(document, where="f.yaml")
