import json

import pytest

from safemerge.cli import main
from safemerge.commands.schema import RUN_FILES
from safemerge.config.schema import kinds

RECIPE = """\
base: {name: base, path: base}
experts: [{name: math, path: math}]
method: {name: task_arithmetic, weights: {math: 0.5}}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_good_files_are_named_with_their_kind(write, capsys):
    one, two = write("one.yaml", RECIPE), write("two.yaml", RECIPE + "seed: 3\n")
    assert main(["validate", one, two]) == 0
    assert capsys.readouterr() == (f"{one}: ok (recipe)\n{two}: ok (recipe)\n", "")


def test_every_problem_of_every_file_is_told_at_once(write, capsys):
    good = write("good.yaml", RECIPE)
    bad = write("bad.yaml", RECIPE.replace("weights", "weigths") + "sed: 1\nseed: -1\n")
    odd = write("odd.yaml", "colour: blue\n")
    absent = good.replace("good", "absent")
    assert main(["validate", bad, good, odd, absent]) == 2
    out, err = capsys.readouterr()
    assert out == f"{good}: ok (recipe)\n"
    lines = err.removeprefix("safemerge: ").splitlines()
    assert [line.split(": ")[0] for line in lines] == [bad] * 4 + [odd, absent]
    told = "\n".join(lines[:4])
    for place in ("method.weigths", "method.weights", "sed", "seed"):
        assert f"{bad}: {place}: " in told
    assert "cannot tell what kind of file this is; got keys colour" in lines[4]
    assert "no such file" in lines[5]


@pytest.mark.parametrize("name", [*kinds(), *RUN_FILES])
def test_a_schema_is_printed_as_json_for_every_kind(name, capsys):
    assert main(["schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == f"safemerge {name}"
    members = [
        schema["$defs"][item["$ref"].rpartition("/")[2]] for item in schema.get("oneOf", [])
    ]
    for member in members or [schema]:
        assert set(member["required"]) <= set(member["properties"])
        assert member["additionalProperties"] is False
