import json
import shlex
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml

from safemerge.api import evaluate, search
from safemerge.api.declared import load_study
from safemerge.api.prepare import Checked
from safemerge.cli import build_parser, main
from safemerge.commands import search as search_command
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError, PreflightError, UserError
from safemerge.records import CandidateResult
from safemerge.store import RunStore
from safemerge.testing.landscapes import landscape_study


@pytest.fixture
def no_cluster(monkeypatch):
    """A cluster that is only counted: no Ray in these tests."""
    opened = []

    @contextmanager
    def ray_cluster():
        opened.append(True)
        yield

    module = SimpleNamespace(ray_cluster=ray_cluster)
    monkeypatch.setitem(sys.modules, "safemerge.distributed.cluster", module)
    return opened


# --- align, finetune --------------------------------------------------------------------


@pytest.fixture
def stage_spec(tmp_path):
    rows = {"kind": "generator", "name": "reviews", "split": "train", "count": 4}
    document = {
        "kind": "finetune",
        "name": "mood",
        "base": {"name": "base", "path": "/base"},
        "data": [{"source": rows, "response": "{label}"}],
        "steps": 1,
    }
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_a_stage_leaves_where_its_checkpoint_is_and_its_metrics(
    stage_spec, tmp_path, no_cluster, monkeypatch, capsys
):
    from safemerge.distributed import ingredient

    made = tmp_path / "cache" / "mood-ab12"
    work = tmp_path / "cache" / "mood-ab12.work"
    work.mkdir(parents=True)
    (work / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    asked = []

    class FakeIngredients:
        def __init__(self, *, say, on_step, restart):
            asked.append(restart)

        def resolve(self, refs):
            asked.extend(refs)
            if len(asked) > 2:
                raise KeyboardInterrupt
            return {"mood": CheckpointRef(name="mood", path=str(made), digest="d" * 16)}

    monkeypatch.setattr(ingredient, "Ingredients", FakeIngredients)
    arguments = ["finetune", str(stage_spec), "--results", str(tmp_path / "r")]
    assert main([*arguments, "--resume"]) == 0
    assert no_cluster == []
    assert asked == [False, CheckpointRef(name="mood", finetune=str(stage_spec))]
    folder = tmp_path / "r" / "mood"
    assert json.loads((folder / "checkpoint.json").read_text()) == {
        "path": str(made),
        "digest": "d" * 16,
    }
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert f"checkpoint: {made}" in capsys.readouterr().out

    assert main([*arguments, "--restart"]) == 130
    assert asked[2] is True
    told = f"interrupted; checkpoints are kept. Resume: safemerge {shlex.join(arguments)} --resume"
    assert told in capsys.readouterr().out
    assert main([*arguments, "--restart", "--resume"]) == 2
    assert "got both. Drop either." in capsys.readouterr().err


def test_a_stage_of_the_wrong_kind_is_refused_before_a_cluster_starts(
    stage_spec, no_cluster, capsys
):
    assert main(["align", str(stage_spec)]) == 2
    assert "mood.yaml: kind: must be 'align'" in capsys.readouterr().err
    assert no_cluster == []


# --- study, search ----------------------------------------------------------------------


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(landscape_study("toy").resolved()), encoding="utf-8")
    return path


def test_a_studys_paths_are_taken_from_its_own_folder(study_file, tmp_path):
    document = yaml.safe_load(study_file.read_text())
    document["base"]["path"] = "models/base"
    study_file.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert load_study(study_file).spec.base.path == str(tmp_path / "models" / "base")


@pytest.mark.parametrize(
    ("results", "start", "again"),
    [
        ("results", [], "s.yaml --resume"),
        ("my runs", [], "s.yaml --results 'my runs' --resume"),
        ("results", ["a.yaml", "b.yaml"], "s.yaml --start a.yaml --start b.yaml --resume"),
    ],
)
def test_a_run_is_not_written_over_unless_it_is_resumed(
    results, start, again, tmp_path, study_file, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    study_file.rename("s.yaml")
    RunStore(tmp_path / results / "toy").create(landscape_study("toy"))
    started = []
    monkeypatch.setattr(search, "run_study", lambda *_, again, **__: started.append(again))
    monkeypatch.setattr(search, "Run", lambda folder: None)
    monkeypatch.setattr(search_command, "show", lambda *_: None)

    def run(folder, *, resume):
        starts = [word for file in start for word in ("--start", file)]
        resumed = ["--resume"] if resume else []
        arguments = ["search", "s.yaml", "--results", folder, *starts, *resumed]
        search_command.run(build_parser().parse_args(arguments))

    with pytest.raises(UserError, match=f"toy: holds a run .* `safemerge search {again}`"):
        run(results, resume=False)
    assert started == []
    run(results, resume=True)
    run("other", resume=False)
    words = "".join(f"--start {file} " for file in start)
    assert started == [
        f"safemerge search {again}",
        f"safemerge search s.yaml --results other {words}--resume",
    ]


def test_recipes_of_the_study_and_of_the_command_line_are_taken_once_each(
    study_file, tmp_path, monkeypatch
):
    document = yaml.safe_load(study_file.read_text())
    document["start"] = ["found/recipe.yaml"]
    study_file.write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "..")
    spec = search.with_start_files(
        load_study(study_file).spec, [f"{tmp_path.name}/found/recipe.yaml", "other.yaml"]
    )
    assert spec.start == [
        str(tmp_path / "found" / "recipe.yaml"),
        str(tmp_path.parent / "other.yaml"),
    ]


@pytest.mark.parametrize(("free", "enough"), [(99_000_000, False), (100_000_000, True)])
def test_a_full_disk_is_refused_before_anything_starts(tmp_path, monkeypatch, free, enough):
    folders = []

    def usage(folder):
        folders.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("safemerge.run_folder.shutil.disk_usage", usage)
    wanted = tmp_path / "not" / "there" / "yet"
    if enough:
        RunStore(wanted).check_disk()
    else:
        with pytest.raises(PreflightError, match=r"yet: needs 100 MB of free space; got 99 MB\."):
            RunStore(wanted).check_disk()
    assert folders == [tmp_path.resolve()]


def test_a_run_needs_a_place_that_is_a_folder(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(PreflightError, match=r"toy: .*got a file, .*results\. Choose another"):
        RunStore(tmp_path / "results" / "toy").check_disk()


# --- evaluate ---------------------------------------------------------------------------


def test_without_a_recipe_a_candidate_is_the_checkpoint_as_it_is():
    spec = landscape_study("toy")
    candidate = CheckpointRef(name="candidate", path="/model")
    alone = evaluate._only_model(spec, candidate)
    assert {ref.path for ref in alone.checkpoints} == {"/model"}
    assert StudySpec.model_validate(alone.resolved()).base == candidate
    recipe = evaluate.resolved_recipe(alone, None)
    assert recipe.method == Linear(name="linear", weights={"candidate": 1.0})


def test_a_recipe_over_other_models_than_the_studys_is_refused():
    spec = landscape_study("toy")
    recipe = MergeRecipe.model_validate(
        {
            "base": {"name": spec.base.name, "path": "/b"},
            "experts": [{"name": "stranger", "path": "/s"}],
            "method": {"name": "linear", "weights": {"stranger": 1.0}},
        }
    )
    with pytest.raises(ConfigError, match="recipe: no such model in the study; got 'stranger'"):
        evaluate.resolved_recipe(spec, recipe)


# --- evaluate, serve: a live evaluator --------------------------------------------------


class FakeEvaluator:
    """Scores every candidate alike; its openings and endings are written down."""

    log: ClassVar[list] = []

    def __init__(self, spec, *, app):
        self.spec = StudySpec.model_validate(spec.resolved())  # as a replica reads it
        self.log.append(("made", app))

    def __enter__(self):
        self.log.append("up")
        return self

    def __exit__(self, *_):
        self.log.append("down")

    def score(self, recipe, split):
        self.log.append((recipe, split, self.spec.evaluator.max_replicas))
        return CandidateResult(candidate=recipe.digest, split=split, metrics={})


@pytest.fixture
def evaluator(no_cluster, monkeypatch):
    from safemerge.commands import serve

    log = []
    monkeypatch.setattr(FakeEvaluator, "log", log)
    module = SimpleNamespace(Evaluator=FakeEvaluator)
    monkeypatch.setitem(sys.modules, "safemerge.distributed.evaluator", module)
    for module in (evaluate, serve):
        monkeypatch.setattr(
            module, "preflight", lambda spec, _: Checked((), {"search": [], "report": []})
        )
        monkeypatch.setattr(module, "resolve_study", lambda spec, *_, stack=None: spec)
    return log


def test_a_checkpoint_is_scored_on_one_replica_and_the_asked_split(
    evaluator, study_file, tmp_path, capsys
):
    document = yaml.safe_load(study_file.read_text())
    document["evaluator"] |= {"min_replicas": 2, "max_replicas": 3}
    study_file.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = tmp_path / "result.json"
    arguments = ["--model", "/model", "--split", "search", "--json", str(result)]
    assert main(["evaluate", str(study_file), *arguments]) == 0
    made, up, (recipe, split, replicas), down = evaluator
    assert (made, up, down) == (("made", "safemerge-evaluate-toy"), "up", "down")
    assert (recipe.base.path, split, replicas) == ("/model", "search", 1)
    written = CandidateResult.model_validate_json(result.read_text())
    assert written == CandidateResult(candidate=recipe.digest, split="search", metrics={})
    assert f"candidate {recipe.digest}, search split" in capsys.readouterr().out


def test_a_recipe_is_scored_over_its_own_checkpoints_on_the_report_split(
    evaluator, study_file, tmp_path
):
    recipe = {
        "base": {"name": "base", "path": "models/base"},
        "experts": [{"name": "other", "path": "models/other"}],
        "method": {"name": "linear", "weights": {"other": 1.0}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    document = yaml.safe_load(study_file.read_text())
    document["suites"][0]["task"]["labels"] = ["positive", "negative"]
    for suite in document["suites"]:  # which are read, since the report's must be unseen
        for part in ("search", "report"):
            suite[part]["prompt"] = "{prompt}"
    study_file.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert main(["evaluate", str(study_file), "--recipe", str(path)]) == 0
    scored, split, _ = evaluator[2]
    assert split == "report"
    assert [ref.path for ref in scored.checkpoints] == [
        str(tmp_path / "models" / name) for name in ("base", "other")
    ]


def test_the_evaluator_is_served_until_interrupted(evaluator, study_file, monkeypatch, capsys):
    from safemerge.commands import serve

    def interrupt(_):
        assert evaluator[-1] == "up"
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.time, "sleep", interrupt)
    assert main(["serve", str(study_file)]) == 130
    assert evaluator == [("made", "safemerge-toy"), "up", "down"]
    assert (
        "up: Serve application 'safemerge-toy', deployment 'CandidateEvaluator'"
        in capsys.readouterr().out
    )
