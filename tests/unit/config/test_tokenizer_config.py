import pytest

from safemerge.config.document import parse_document
from safemerge.config.models import study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.tokenizer import TemplateText, TokenizerChoice
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study

NAMES = ["base", "math", "chat"]


def recipe(**changes):
    document = {
        "base": {"name": "base", "path": "/models/base"},
        "experts": [{"name": name, "path": f"/models/{name}"} for name in NAMES[1:]],
        "method": {"name": "linear", "weights": {"math": 0.5, "chat": 0.5}},
    }
    return {**document, **changes}


def parse(**changes):
    return parse_document(recipe(**changes), MergeRecipe, where="f.yaml")


def test_the_base_gives_tokenizer_and_template_if_nothing_is_said():
    plain, empty = parse(), parse(tokenizer={})
    assert plain.tokenizer == empty.tokenizer == TokenizerChoice()
    assert "tokenizer" not in plain.resolved()
    assert plain.tokenizer.owner("base") == "base"
    assert plain.vocabulary_owner is None


def test_a_choice_is_read_and_written():
    text = {"text": "{{ messages }}"}
    found = parse(tokenizer={"from": "chat", "chat_template": text})
    assert found.tokenizer.from_ == found.tokenizer.owner("base") == "chat"
    assert found.tokenizer.chat_template == TemplateText(text="{{ messages }}")
    assert found.resolved()["tokenizer"] == {"from": "chat", "chat_template": text}
    assert MergeRecipe.model_validate_json(found.model_dump_json(by_alias=True)) == found


@pytest.mark.parametrize("tokenizer", [{"from": "chat"}, {"chat_template": "math"}])
def test_files_beside_the_weights_are_no_part_of_the_candidates_digest(tokenizer):
    assert parse(tokenizer=tokenizer).digest == parse().digest


def test_an_order_of_rows_is_part_of_the_candidates_digest():
    found = [
        parse(vocabulary="tokenizer", tokenizer={"from": name})
        for name in ("math", "chat", "base")
    ]
    assert len({one.digest for one in found} | {parse(vocabulary="base").digest}) == 4
    assert [one.vocabulary_owner for one in found] == ["math", "chat", None]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"tokenizer": {"from": "cha"}},
            "tokenizer.from: names an unknown model; got 'cha'. Did you mean 'chat'?",
        ),
        (
            {"tokenizer": {"chat_template": "mth"}},
            "tokenizer.chat_template: names an unknown model; got 'mth'. Did you mean 'math'?",
        ),
        (
            {"vocabulary": "tokenizer"},
            "vocabulary: tokenizer takes the vocabulary of the model in tokenizer.from; got none. "
            "Add it, or use vocabulary: base.",
        ),
        (
            {"vocabulary": "union", "tokenizer": {"from": "chat"}},
            "tokenizer.from: must be the base with vocabulary: union, which keeps the base's ids; "
            "got 'chat'. Use vocabulary: tokenizer for its ids, or vocabulary: refuse if they are "
            "the base's.",
        ),
        ({"tokenizer": {"chat_template": {"text": ""}}}, "tokenizer.chat_template.text: "),
        ({"tokenizer": {"form": "chat"}}, 'tokenizer.form: unknown key; got "chat". Did you'),
        ({"tokenizer": "chat"}, 'tokenizer: must be a mapping; got "chat".'),
    ],
)
def test_a_choice_that_cannot_hold_is_refused(changes, line, problems):
    (found,) = problems(recipe(**changes), MergeRecipe)
    assert found.startswith(f"f.yaml: {line}")


def study(**changes):
    template = recipe()
    space = {
        "name": "linear",
        "method": template.pop("method"),
        "vary": {"method.weights.math": {"low": 0.0, "high": 1.0}},
    }
    return landscape_study(**template, spaces=[space], **changes)


def test_a_studys_choice_is_that_of_each_recipe():
    spec = study(tokenizer={"chat_template": "chat"})
    assert spec.template(spec.spaces[0])["tokenizer"] == {"from": None, "chat_template": "chat"}
    assert study_models(spec).tokenizer == spec.tokenizer
    assert "tokenizer" not in study().resolved()


def test_a_studys_wrong_choice_is_said_once():
    words = r"^[^\n]*: tokenizer.from: names an unknown model; got 'cha'. Did you mean 'chat'\?$"
    with pytest.raises(ConfigError, match=words):
        study(tokenizer={"from": "cha"})
