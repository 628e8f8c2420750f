"""The examples run: notebook and scripts, in this process, on the models of a pico study."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import safemerge
from safemerge import errors
from safemerge.distributed.cluster import ray_cluster
from safemerge.reports import live
from tests.integration.driving import write_study_to

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.ray,
    # Ray's own, where it is driven from this process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_cluster():
    """The calls of this file join one cluster."""
    with ray_cluster(num_cpus=4):
        yield


@pytest.fixture
def run_script(study_document, tmp_path, monkeypatch, capsys):
    """Run an example over the pico study in an empty folder; return what it printed."""
    changes = {"num_trials": 2, "tracking": ["tensorboard"]}
    study = write_study_to(tmp_path, study_document | changes)

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, str(study), *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_example_of_a_search_lists_its_front_and_exports_its_knee(
    run_script, tmp_path, monkeypatch
):
    shown = []
    draw = live.render_html
    monkeypatch.setattr(
        live, "render_html", lambda run, **told: shown.append(run) or draw(run, **told)
    )
    said = run_script("search.py", "out")
    run = safemerge.load_run(tmp_path / "results" / "pico")
    assert run.is_complete
    assert shown[0].trials == ()  # the page is there before the first trial has ended
    assert "This search is running" not in (run.folder / "report.html").read_text("utf-8")
    (events,) = (run.folder / "tracking" / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"search/reviews.accuracy.low" in written
    assert b"report/reviews.accuracy" in written
    assert sum(trial["role"] == "sampled" for trial in run.trials) == 2
    for point in run.front:
        assert point["split"] == "report"
        assert f"{point['label']} {{'reviews.accuracy': {point['reviews.accuracy']}" in said
    assert "report: results/pico/report.html" in said
    assert run.knee is not None
    assert run.recipe(run.knee["trial"]).digest == run.knee["candidate"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(
        errors.UserError, match=r"holds a run .* `safemerge\.search\(.*resume=True"
    ):
        safemerge.search("study.yaml")


def test_the_example_of_a_merge_scores_what_it_wrote(run_script, study_document, tmp_path):
    said = run_script("merge_and_evaluate.py", "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    study = safemerge.load_study(tmp_path / "study.yaml")
    recipe = safemerge.Recipe(
        base=study.spec.base,
        experts=study.spec.experts,
        method={"name": "task_arithmetic", "weights": {"math": 0.5, "safety": 0.5}},
    )
    # The weights are rounded the same way on disk and in the engine.
    live = safemerge.evaluate(study, recipe=recipe)
    for name, found in live.metrics.items():
        assert f"{name}: {found.value} [{found.low}, {found.high}], n = 8" in said


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads((EXAMPLES / "demo.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, f"demo.ipynb, {cell['id']}", "exec"), names)
    run = names["run"]
    assert run.is_complete
    assert run.study.name == "demo"
    assert len([trial for trial in run.trials if trial["role"] == "sampled"]) == 3
    assert names["result"].candidate
    assert names["merged"].path.joinpath("model.safetensors").is_file()
    assert run.plot().path.read_bytes().startswith(b"\x89PNG")
