"""What the functions do, with fakes for what takes long: arguments, results, progress, errors."""

import json
import logging
from pathlib import Path

import pytest
import yaml

import safemerge
from safemerge.api import merge as merging
from safemerge.api import search as searching
from safemerge.api.progress import Progress
from safemerge.cli import main
from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import ConfigError, PreflightError, UserError
from safemerge.store import RunStore
from safemerge.testing.landscapes import landscape_study


@pytest.fixture
def recipe(tiny_base, tiny_expert):
    return safemerge.Recipe(
        base={"name": "base", "path": tiny_base},
        experts=[{"name": "math", "path": tiny_expert}],
        method={"name": "task_arithmetic", "weights": {"math": 0.5}},
    )


def test_progress_goes_to_the_function_or_the_log(caplog, capsys):
    said = []
    Progress(said.append).say("one")
    with caplog.at_level(logging.INFO, logger="safemerge"):
        Progress().say("two")
    assert said == ["one"]
    assert [record.message for record in caplog.records] == ["two"]
    assert capsys.readouterr() == ("", "")


def test_a_merge_is_the_one_of_the_command_line(recipe, tmp_path, capsys):
    said = []
    merged = safemerge.merge(recipe, tmp_path / "by_code", progress=said.append)
    assert merged.path == tmp_path / "by_code"
    assert merged.candidate == merged.recipe.digest
    assert merged.recipe.spec.base.digest
    assert (merged.rank, merged.lost) == (None, None)
    assert said[-1] == f"merged checkpoint: {merged.path} (candidate {merged.candidate})"
    assert capsys.readouterr().out == ""
    file = recipe.save(tmp_path / "recipe.yaml")
    assert main(["merge", str(file), str(tmp_path / "by_command")]) == 0
    weights = [tmp_path / name / "model.safetensors" for name in ("by_code", "by_command")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_merge_of_adapters_says_its_rank(tiny_base, tiny_adapter, tmp_path):
    recipe = safemerge.Recipe(
        base={"name": "base", "path": tiny_base},
        experts=[{"name": "one", "path": tiny_adapter}],
        method={"name": "task_arithmetic", "weights": {"one": 0.5}},
    )
    merged = safemerge.merge(recipe, tmp_path / "adapter", adapter=True)
    assert (merged.path / "adapter_model.safetensors").is_file()
    assert merged.rank is not None
    assert merged.rank > 0
    assert merged.lost is None
    with pytest.raises(UserError, match="rank: needs adapter; got 2"):
        safemerge.merge(recipe, tmp_path / "other", rank=2)


def test_a_folder_that_is_taken_is_refused_before_models_are_read(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "resolve_recipe", lambda *_: pytest.fail("read"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(UserError, match="must be missing or empty"):
        safemerge.merge(recipe, tmp_path / "out")


@pytest.mark.parametrize("given", [{}, {"recipe": "r.yaml", "model": "m"}])
def test_a_candidate_is_a_recipe_or_a_model(given):
    with pytest.raises(UserError, match=r"evaluate: needs recipe or model; got (both|neither)"):
        safemerge.evaluate(safemerge.Study.of(landscape_study("toy")), **given)


def test_a_search_does_not_write_over_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "run_study", lambda *_, **__: None)
    study = safemerge.Study.of(landscape_study("toy"))
    RunStore(tmp_path / "toy").create(study.spec)
    with pytest.raises(UserError, match=r"holds a run of this study already.*resume=True"):
        safemerge.search(study, results=tmp_path)
    assert safemerge.search(study, results=tmp_path, resume=True).study == study
    with pytest.raises(UserError, match=r"new_data .*begins a new run"):
        safemerge.search(study, results=tmp_path, resume=True, new_data=True)


def test_a_secret_in_a_url_that_is_refused_is_not_printed(capsys):
    url = "s3://AKIA:topsecret@bucket/run"
    with pytest.raises(UserError, match="new_data") as searched:
        safemerge.search(safemerge.Study.of(landscape_study("toy")), results=url, new_data=True)
    with pytest.raises(UserError, match="got a URL") as attributed:
        safemerge.attribute(url)
    with pytest.raises(PreflightError, match=r"got a URL \(s3://…\)") as trained:
        RunStore.under(url, "stage")
    messages = [str(searched.value), str(attributed.value), str(trained.value)]
    for command in (
        ["report", url, "--accept-trials"],
        ["attribute", url],
        ["attribute", url, "--dry-run"],
        ["export", url, "out", "--pick", "knee"],
        ["status", url],
        ["compare", url, "runs/other"],
    ):
        assert main(command) == 2
        messages.append(capsys.readouterr().err)
    for message in messages:
        assert "topsecret" not in message


def test_an_interrupted_search_is_an_interrupt(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "run_study", interrupt)
    with pytest.raises(KeyboardInterrupt):
        safemerge.search(safemerge.Study.of(landscape_study("toy")), results=tmp_path)


@pytest.fixture
def ingredients(monkeypatch, tmp_path):
    from safemerge.distributed import ingredient

    asked = []

    class FakeIngredients:
        def __init__(self, *, say, on_step, restart):
            self.say = say
            asked.append(restart)

        def resolve(self, refs):
            (ref,) = refs
            asked.append(ref)
            self.say(f"{ref.name}: training")
            made = CheckpointRef(name=ref.name, path=str(tmp_path / "made"), digest="d" * 16)
            return {ref.name: made}

    monkeypatch.setattr(ingredient, "Ingredients", FakeIngredients)
    return asked


def stage(kind, **changes):
    rows = {"kind": "generator", "name": "reviews", "split": "train", "count": 4}
    return {
        "kind": kind,
        "name": "mood",
        "base": {"name": "base", "path": "base"},
        "data": [{"source": rows, "response": answer} for answer in ("{label}", "I cannot.")],
        "steps": 1,
        **changes,
    }


@pytest.mark.parametrize("kind", ["align", "finetune"])
@pytest.mark.parametrize("form", ["mapping", "file"])
def test_a_stage_is_a_file_or_a_mapping(kind, form, ingredients, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = stage(kind)
    file = tmp_path / "r" / "mood" / f"{kind}.yaml"
    if form == "file":
        file = Path("mood.yaml")
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        given = file
    said = []
    trained = getattr(safemerge, kind)(given, results=tmp_path / "r", progress=said.append)
    assert ingredients == [False, CheckpointRef(name="mood", **{kind: str(file.resolve())})]
    assert (trained.name, trained.path, trained.digest) == ("mood", tmp_path / "made", "d" * 16)
    assert trained.file == file
    stored = json.loads((trained.folder / "checkpoint.json").read_text())
    assert stored == {"path": str(trained.path), "digest": trained.digest}
    assert said == ["mood: training"]
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert written["kind"] == kind


def test_a_wrong_stage_is_named_by_kind_and_path(ingredients, tmp_path):
    with pytest.raises(ConfigError, match=r"^align: stepps: unknown key; got 1\. Did you mean"):
        safemerge.align(stage("align", stepps=1), results=tmp_path)
    assert ingredients == []


def test_the_methods_are_those_of_the_command(capsys):
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == safemerge.methods()


def files_of(name):
    """A mapping that declares one of the programs' runs wrongly, at one key."""
    return {"kind": name, "name": "toy", "stepps": 1}


@pytest.mark.parametrize("name", ["optimize", "generate", "robustness"])
def test_a_programs_mapping_is_checked_as_its_file_is(name, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(yaml.safe_dump(files_of(name)), encoding="utf-8")
    with pytest.raises(ConfigError, match="stepps: unknown key; got 1") as of_file:
        getattr(safemerge, name)(file, results=tmp_path)
    with pytest.raises(ConfigError) as of_code:
        getattr(safemerge, name)(files_of(name), results=tmp_path)
    assert str(of_code.value) == str(of_file.value).replace(str(file), name)
