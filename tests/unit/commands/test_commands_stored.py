"""A stored run is not drawn, exported or asked again as if data and models had not changed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from safemerge.api.declared import load_study
from safemerge.api.search import run_study
from safemerge.api.stored import check_recipe, check_stored, stored_study
from safemerge.cli import main
from safemerge.commands.console import Console
from safemerge.data.suite import load_suites
from safemerge.distributed.inputs import judge_digest, with_inputs
from safemerge.errors import ChangedRunError, DataError
from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import SMOOTH, landscape_study
from safemerge.weights.fingerprint import fingerprint


def write_rows(folder, name, count=6, words="question"):
    rows = [
        {"prompt": f"{name} {words} {at}", "answer": ("yes", "no")[at % 2]} for at in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, tiny_base, tiny_expert):
    for name in ("search", "report"):
        write_rows(tmp_path, name)
    for name, source in (("base", tiny_base), ("one", tiny_expert)):
        shutil.copytree(source, tmp_path / name)

    def asked(name):
        return {"source": {"kind": "file", "path": f"{name}.jsonl"}, "label": "answer"}

    document = {
        "name": "toy",
        "base": {"name": "base", "path": "base"},
        "experts": [{"name": "one", "path": "one"}],
        "spaces": [
            {
                "name": "ta",
                "method": {"name": "task_arithmetic", "weights": {"one": 0.5}},
                "vary": {"method.weights.one": {"low": 0.0, "high": 1.0}},
            }
        ],
        "suites": [
            {
                "name": "q",
                "task": {"kind": "classification", "labels": ["yes", "no"]},
                "search": asked("search"),
                "report": asked("report"),
                "max_similarity": None,
            }
        ],
        "objectives": [{"metric": "q.accuracy", "direction": "maximize", "reference": 0.0}],
        "num_trials": 1,
        "evaluator": {"engine": "transformers", "max_model_len": 256},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(folder):
    """The folder of a run of the study, its inputs stored as `safemerge search` does."""
    spec = load_study(folder / "study.yaml").spec
    found = {
        ref.name: ref.resolved_to(Path(ref.path), fingerprint=fingerprint(ref.path))
        for ref in spec.checkpoints
    }
    resolved, rows = with_inputs(spec.with_checkpoints(found), load_suites(spec))
    RunStore(folder / "results" / "toy").create(resolved, rows=rows)
    return folder / "results" / "toy"


def edit_generation(folder):
    (folder / "base" / "generation_config.json").write_text('{"eos_token_id": 3}')


def test_nothing_is_said_of_a_run_whose_inputs_are_as_they_were(run, capsys):
    check_stored(run, Console())
    assert capsys.readouterr().out == ""


def test_changed_rows_are_told_by_suite_split_and_first_row(run, folder):
    write_rows(folder, "search", count=7)
    with pytest.raises(
        ChangedRunError,
        match=r"study 'toy': inputs must be the run's; got 7 rows instead of 6: 1 new, first "
        r"search\.jsonl:[0-9a-f]+ \(suites\.q\.search\).*--as-stored",
    ):
        check_stored(run, Console())


def test_a_data_file_with_the_same_rows_is_no_change(run, folder):
    path = folder / "search.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    check_stored(run, Console())


@pytest.mark.parametrize("gone", ["base", "search.jsonl", "both"])
def test_a_run_is_read_where_its_models_and_data_are_not(run, folder, gone):
    if gone != "search.jsonl":
        shutil.rmtree(folder / "base")
    if gone != "base":
        (folder / "search.jsonl").unlink()
    check_stored(run, Console())


def test_a_file_that_holds_no_rows_any_more_is_a_change(run, folder):
    (folder / "search.jsonl").write_text("{")
    with pytest.raises(ChangedRunError, match=r"another data file \(suites\.q\.search\)"):
        check_stored(run, Console())


def test_what_changed_is_said_where_the_stored_numbers_are_taken(run, folder, capsys):
    edit_generation(folder)
    check_stored(run, Console(), as_stored=True)
    told = capsys.readouterr().out
    assert "note: since the run was made there is another generation_config.json (base)" in told


def test_another_version_of_scoring_is_said_and_not_refused(run, monkeypatch, capsys):
    monkeypatch.setattr("safemerge.inputs.SCORING_VERSION", 99)
    check_stored(run, Console())
    assert "note: scored by version 99 for" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [("report", "RUN"), ("evaluate", "RUN", "--model", "ONE")],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_a_changed_run_by_name_with_exit_code_2(run, folder, capsys, arguments):
    edit_generation(folder)
    names = {"RUN": str(run), "ONE": str(folder / "one")}
    assert main([names.get(word, word) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another generation_config.json (base)" in line


def test_a_run_without_digests_is_read_and_told(run, capsys):
    path = RunStore(run).study_path
    document = json.loads(path.read_text())
    del document["inputs"]
    path.write_text(json.dumps(document))
    check_stored(run, Console())
    assert stored_study(str(run), Console()).name == "toy"
    assert "does not say what it was made with" in capsys.readouterr().out


def test_a_runs_recipe_is_not_scored_by_its_own_study_with_other_suites(run, folder):
    recipe = run / "recipes" / "3.yaml"
    spec = load_study(folder / "study.yaml").spec
    check_recipe(recipe, spec)
    suite = spec.suites[0]
    task = suite.task.model_copy(update={"labels": ["yes", "maybe"]})
    other = spec.model_copy(update={"suites": [suite.model_copy(update={"task": task})]})
    with pytest.raises(ChangedRunError, match=r"suites\.q\.task\.labels.*Name the run's folder"):
        check_recipe(recipe, other)
    check_recipe(recipe, other.model_copy(update={"name": "another"}))
    write_rows(folder, "report", count=7)
    with pytest.raises(ChangedRunError, match=r"7 rows instead of 6.*rename the study"):
        check_recipe(recipe, spec)


def test_a_search_refuses_to_resume_with_other_data_and_new_data_begin_a_run(
    run, folder, monkeypatch, capsys
):
    """Up to the cluster, which the search needs once all this is settled."""

    class ClusterError(Exception):
        pass

    def no_cluster():
        raise ClusterError

    monkeypatch.setattr("safemerge.distributed.cluster.ray_cluster", no_cluster)
    spec = load_study(folder / "study.yaml").spec
    with pytest.raises(ClusterError):
        run_study(spec, run, Console(), again="again")
    write_rows(folder, "search", words="sentence")
    with pytest.raises(ChangedRunError, match=r"6 gone, first .* 6 new, first .*--new-data"):
        run_study(spec, run, Console(), again="again")
    before = RunStore(run).study()
    with pytest.raises(ClusterError):
        run_study(spec, run, Console(), again="again", new_data=True)
    kept = run.with_name("toy.old-1")
    assert f"the run so far is kept as {kept}" in capsys.readouterr().out
    assert RunStore(kept).study() == before
    assert RunStore(run).study().inputs.rows != before.inputs.rows
    with pytest.raises(ClusterError):
        run_study(spec, run, Console(), again="again")


@pytest.mark.parametrize("options", [["--resume"], ["--accept-trials"]])
def test_new_data_and_resuming_exclude_each_other(folder, monkeypatch, capsys, options):
    monkeypatch.chdir(folder)
    assert main(["search", "study.yaml", "--new-data", *options]) == 2
    assert "new_data (--new-data) begins a new run" in capsys.readouterr().err


def test_a_run_that_is_there_is_told_with_both_ways_on(run, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["search", "study.yaml"]) == 2
    told = capsys.readouterr().err
    assert "--resume" in told
    assert "--new-data" in told


def test_shortened_trials_are_accepted_by_the_report(tmp_path, capsys):
    spec = landscape_study("short", references=False, num_trials=3, storage="journal")
    store = RunStore(tmp_path / "short").create(spec)
    with SearchStudy(spec, store) as study:
        for _ in range(3):
            proposal = study.ask()
            study.tell(proposal.number, SMOOTH.evaluate(proposal.recipe))
    lines = store.trials_path.read_bytes().splitlines(keepends=True)
    store.trials_path.write_bytes(b"".join(lines[:2]))
    assert main(["report", str(store.folder)]) == 2
    assert "got 2, 1 of them gone" in capsys.readouterr().err
    assert main(["report", str(store.folder), "--accept-trials"]) == 0
    assert "taken as it is" in capsys.readouterr().out
    assert main(["report", str(store.folder), "--accept-trials"]) == 0
    assert "nothing to accept" in capsys.readouterr().out


def test_a_judge_counts_by_its_weights(tiny_expert, tmp_path):
    suite = landscape_study().suites[1]
    guard = {"kind": "guard", "name": "g", "family": "llama_guard", "path": str(tiny_expert)}
    judge = (
        type(suite)
        .model_validate_json(
            json.dumps(
                {
                    **suite.resolved(),
                    "task": {"kind": "harm", "judge": guard, "same_judge": True},
                }
            )
        )
        .judges[0]
    )
    assert judge_digest(judge) == fingerprint(tiny_expert)
    (tmp_path / "pytorch_model.bin").write_bytes(b"1")
    pickled = judge.model_copy(update={"path": str(tmp_path)})
    first = judge_digest(pickled)
    (tmp_path / "pytorch_model.bin").write_bytes(b"2")
    assert judge_digest(pickled) not in (first, None)
    assert judge_digest(judge.model_copy(update={"path": str(tmp_path / "none")})) is None
    hub = judge.model_copy(update={"path": None, "hub": "nobody/has-this"})
    assert judge_digest(hub) is None


def test_rows_that_change_while_a_run_is_under_way_are_refused(run, folder):
    stored = stored_study(str(run), Console())
    resolved, _ = with_inputs(stored, load_suites(stored))
    write_rows(folder, "report", words="sentence")
    with pytest.raises(DataError, match=r"suites\.q\.report"):
        load_suites(resolved)
