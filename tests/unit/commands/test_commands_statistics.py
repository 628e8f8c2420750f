import pytest
import yaml

from safemerge.cli import main


@pytest.fixture
def written(tmp_path):
    def written(document):
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return str(path)

    return written


RECIPE = {
    "base": {"name": "base", "path": "/base"},
    "experts": [{"name": "math", "path": "/math"}],
    "method": {"name": "linear", "weights": {"math": 1.0}},
}


def test_a_recipe_without_statistics_has_nothing_to_gather(written, capsys):
    assert main(["statistics", written(RECIPE)]) == 2
    assert "given.yaml: some model must name statistics; got none" in capsys.readouterr().err


def test_a_statistics_file_alone_names_no_model(written, capsys):
    source = {"kind": "file", "path": "rows.jsonl"}
    document = {"name": "toy", "data": [{"source": source, "response": "x"}]}
    assert main(["statistics", written({**document, "quantities": ["gram"]})]) == 2
    assert "must be a recipe or a study" in capsys.readouterr().err
    assert main(["validate", written({**document, "quantities": ["gram"]})]) == 0
    assert "ok (statistics)" in capsys.readouterr().out
