"""What a run's folder holds is valid by the schemas that are printed for it."""

import json

import jsonschema
import pytest

from safemerge.cli import build_parser
from safemerge.commands.schema import RUN_FILES, printed_schema
from safemerge.config.schema import kinds
from safemerge.records import Believed, FrontBelief, PointBelief, RungResult
from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import CRASHING, landscape_study
from tests.unit.reports.synthetic_run import write_run
from tests.unit.search.search_driving import FAST, finish


@pytest.fixture(scope="module")
def validators():
    return {name: jsonschema.Draft202012Validator(printed_schema(name)) for name in RUN_FILES}


def lines(folder):
    text = (folder / "trials.jsonl").read_text(encoding="utf-8")
    return [shortened(json.loads(line)) for line in text.splitlines()]


def document(folder, name):
    return shortened(json.loads((folder / name).read_text(encoding="utf-8")))


def shortened(value):
    """A document with few of a suite's scores, which are alike and slow to validate."""
    if isinstance(value, dict):
        return {
            key: {suite: scores[::50] for suite, scores in item.items()}
            if key == "scores"
            else shortened(item)
            for key, item in value.items()
        }
    return [shortened(item) for item in value] if isinstance(value, list) else value


def test_the_command_offers_every_kind_and_every_file_of_a_run():
    (commands,) = (item for item in build_parser()._actions if isinstance(item.choices, dict))
    (name,) = (item for item in commands.choices["schema"]._actions if item.dest == "name")
    assert set(name.choices) == {*kinds(), *RUN_FILES}
    assert len(name.choices) == len(kinds()) + len(RUN_FILES)


@pytest.mark.parametrize("name", RUN_FILES)
def test_the_schema_of_a_runs_file_is_a_schema(name):
    schema = printed_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == f"safemerge {name}"
    assert schema["additionalProperties"] is False


def test_all_that_a_published_run_holds_is_valid(validators, tmp_path):
    folder = write_run(tmp_path / "run")
    for line in lines(folder):
        validators["trial"].validate(line)
    validators["study-document"].validate(document(folder, "study.json"))
    validators["front"].validate(document(folder, "front.json"))


def test_trials_of_a_search_are_valid_in_every_state(validators, tmp_path):
    spec = landscape_study(**{**FAST, "references": True, "num_trials": 12})
    with SearchStudy(spec, RunStore(tmp_path).create(spec)) as study:
        finish(study, CRASHING)
    store = RunStore.open(tmp_path)
    last = store.trials()[-1]
    rung = RungResult(candidate=last.candidate, losses={"skill": [[0.5, 1.0]]}, rows="f" * 16)
    pruned = {"state": "PRUNED", "rung": rung, "rival": 0, "result": None, "objectives": {}}
    for changes in (pruned, {"exact_of": 0, "retried": True}):
        number = len(lines(tmp_path))
        store.append(last.model_copy(update={"number": number, **changes}))
    found = lines(tmp_path)
    assert {line["state"] for line in found} == {"COMPLETE", "FAIL", "PRUNED"}
    assert {line["role"] for line in found} == {"reference", "sampled"}
    for line in found:
        validators["trial"].validate(line)
    validators["study-document"].validate(document(tmp_path, "study.json"))


def test_a_front_with_beliefs_is_valid(validators, tmp_path):
    store = RunStore.open(write_run(tmp_path / "run", num_sampled=8))
    front = store.read_front()
    value = Believed(mean=0.5, low=0.4, high=0.6)
    belief = PointBelief(values={"skill": value}, chance=0.9)
    chosen = FrontBelief(evaluations=40, members=[1], chance=0.5, hypervolume=value)
    points = [point.model_copy(update={"belief": belief}) for point in front.points]
    update = {"points": points, "belief": chosen, "covered": True}
    store.write_front(front.model_copy(update=update))
    written = document(store.folder, "front.json")
    assert {"belief", "covered"} <= set(written)
    validators["front"].validate(written)


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        ("trial", None, {"state": "DONE"}),
        ("trial", None, {"number": -1}),
        ("trial", None, {"colour": "red"}),
        ("front", "front.json", {"points": None}),
        ("front", "front.json", {"knee": "best"}),
        ("study-document", "study.json", {"config": {}}),
        ("study-document", "study.json", {"digest": 7}),
    ],
)
def test_a_damaged_file_is_not_valid(validators, tmp_path, name, file, changes):
    folder = write_run(tmp_path / "run", num_sampled=4)
    good = lines(folder)[0] if file is None else document(folder, file)
    assert validators[name].is_valid(good)
    assert not validators[name].is_valid({**good, **changes})
