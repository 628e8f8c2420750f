import pytest

from safemerge.config.mergekit_file import MergekitModel


@pytest.mark.parametrize(
    ("given", "path", "host"),
    [
        ("org/model", "org/model", None),
        ("./models//a/", "models/a", None),
        ("org/model+lora", "lora", "org/model"),
        ({"model": "org/model"}, "org/model", None),
        ({"model": {"path": "odd@name", "revision": None}}, "odd@name", None),
        ({"model": {"path": "a+b"}, "lora": {"path": "c+d"}}, "c+d", "a+b"),
        ({"model": "a", "lora": "b", "override_architecture": None}, "b", "a"),
    ],
)
def test_a_model_is_read_in_every_notation_and_written_back(given, path, host):
    model = MergekitModel.parse(given)
    assert model[:2] == (path, host)
    assert MergekitModel.parse(model.written()) == model


def test_text_is_written_wherever_mergekit_reads_it_as_it_is_meant():
    assert MergekitModel("lora", "base").written() == "base+lora"
    assert MergekitModel("base").written() == "base"
    assert MergekitModel("a@b").written() == {"model": {"path": "a@b"}}
    assert MergekitModel("l", "b+").written() == {"model": {"path": "b+"}, "lora": {"path": "l"}}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (None, "must be a model's folder"),
        ("", "must be a model's folder"),
        ("a+", "must be a model's folder"),
        ("a+b+c", "must be a folder, or folder.adapter"),
        (["a"], "must be a model's folder"),
        ({"path": "a"}, "must be a model's folder"),
        ({"model": {"path": 3}}, "must be a model's folder"),
        ({"model": {"folder": "a"}}, "must be a model's folder"),
        ("./model@main", "a revision .after @. is one of a hub repository"),
        ({"model": {"path": "a", "revision": "main"}}, "a revision .* is one of a hub repository"),
        ({"model": "a", "override_architecture": "B"}, "override_architecture is not supported"),
    ],
)
def test_what_is_no_models_folder_is_refused(given, rule):
    with pytest.raises(ValueError, match=rule):
        MergekitModel.parse(given)


def test_a_revision_is_one_of_the_hub():
    for given in ("org/model@v1", {"model": {"path": "org/model", "revision": "v1"}}):
        model = MergekitModel.parse(given)
        assert model.source() == {"hub": "org/model", "revision": "v1"}
    assert MergekitModel.parse("org/a@v1+org/l@v2").under == ("org/a", None, "v1", None)
    assert MergekitModel.parse("org/a").source() == {"path": "org/a"}
