"""A run as Python values: flat records for tables, picks, recipes, page and picture."""

import logging

import pandas as pd
import pytest

import safemerge
from safemerge.api.pick import pick_point
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError
from safemerge.reports import run as reports_run
from tests.unit.reports import synthetic_run as synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write_run(
        tmp_path_factory.mktemp("run") / "demo",
        spec=synthetic.make_spec(num_trials=20),
        num_sampled=20,
        synthetic=synthetic.Synthetic(counts={"search": 40, "report": 60}),
    )


@pytest.fixture(scope="module")
def run(folder):
    return safemerge.load_run(folder)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished") / "demo"
    return safemerge.load_run(synthetic.write_run(folder, num_sampled=12, publish=False))


def test_every_trial_is_a_flat_record_with_the_same_keys(run, folder):
    stored = reports_run.load_run(folder).trials
    assert [record["trial"] for record in run.trials] == [trial.number for trial in stored]
    assert len({tuple(record) for record in run.trials}) == 1
    for record, trial in zip(run.trials, stored, strict=True):
        assert all(
            value is None or isinstance(value, str | int | float | bool)
            for value in record.values()
        )
        assert record["split"] == (None if trial.result is None else "search")
        for path, value in trial.params.items():
            assert record[f"params.{path}"] == value
        if trial.result is not None:
            for name, estimate in trial.result.metrics.items():
                parts = (record[name], record[f"{name}.low"], record[f"{name}.high"])
                assert parts == (estimate.value, estimate.low, estimate.high)
                assert record[f"{name}.n"] == estimate.n


def test_a_data_frame_takes_the_records_as_they_are(run):
    frame = pd.DataFrame(run.trials)
    assert len(frame) == len(run.trials)
    assert frame[synthetic.HARM].dtype.kind == "f"
    assert frame.set_index("trial").loc[run.knee["trial"], "state"] == "COMPLETE"
    assert list(frame.columns) == sorted(frame.columns, key=lambda key: key.startswith("params."))


def test_the_front_is_that_of_the_report_on_held_out_prompts(run, folder):
    stored = reports_run.load_run(folder)
    assert [point["trial"] for point in run.front] == [point.number for point in stored.points]
    assert {point["split"] for point in run.front} == {"report"}
    for record, point in zip(run.front, stored.points, strict=True):
        assert record[synthetic.HARM] == point.report.value(synthetic.HARM)
    labels = [reference["label"] for reference in run.references]
    assert labels == [point.label for point in stored.references]


def test_points_are_picked_as_export_picks_them(run, folder):
    stored = reports_run.load_run(folder)

    def picked(choice):
        return pick_point(stored.front, choice, spec=stored.spec, where="run").number

    assert run.knee["trial"] == picked("knee")
    assert run.safest["trial"] == picked("safest")
    assert run.best(synthetic.SKILL)["trial"] == picked(f"best:{synthetic.SKILL}")
    assert run.safest in run.front
    with pytest.raises(UserError, match=r"must be knee.*got 'best:skil'"):
        run.best("skil")


def test_a_recipe_is_that_of_the_trial(run, folder):
    knee = run.knee
    stored = reports_run.load_run(folder).knee.trial.recipe
    assert run.recipe(knee["trial"]).spec == MergeRecipe.model_validate(stored)
    with pytest.raises(UserError, match=r"no such trial; got 999\."):
        run.recipe(999)


def test_an_unfinished_run_has_trials_and_a_front_so_far(unfinished):
    assert not unfinished.is_complete
    assert unfinished.knee is None
    assert {point["split"] for point in unfinished.front} == {"search"}
    for pick in (lambda: unfinished.safest, lambda: unfinished.best(synthetic.SKILL)):
        with pytest.raises(UserError, match="holds no published front; got an unfinished run"):
            pick()
    assert repr(unfinished).endswith(f"{len(unfinished.trials)} trials, unfinished)")


def test_the_studys_run_says_what_was_asked(run):
    assert run.study.name == "demo"
    assert run.study.spec.num_trials == 20
    assert run.is_complete
    assert sum(run.counts.values()) == len(run.trials)


def test_the_picture_is_written_and_shown(run, tmp_path):
    picture = run.plot(tmp_path / "new" / "front.png")
    assert picture.path == tmp_path / "new" / "front.png"
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert run.plot().path == run.folder / "figures" / "front.png"


def test_the_page_is_written_and_nothing_is_printed(run, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="safemerge"):
        page = run.report()
    assert page == run.folder / "report.html"
    assert "demo" in page.read_text(encoding="utf-8")
    assert capsys.readouterr() == ("", "")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must hold a run .*no such folder"):
        safemerge.load_run(tmp_path / "absent")


def test_a_report_names_the_url_of_its_run_and_no_folder_of_this_machine(tmp_path):
    folder = synthetic.write_run(tmp_path / "demo", num_sampled=12)
    (folder / ".place").write_text("s3://bucket/results/demo")
    page = safemerge.load_run(folder).report().read_text("utf-8")
    assert "safemerge export s3://bucket/results/demo --pick" in page
    assert "safemerge attribute s3://bucket/results/demo" in page
    assert str(tmp_path) not in page


def test_attribution_of_a_run_at_a_url_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="s3://bucket/demo: must be a run's folder"):
        safemerge.attribute("s3://bucket/demo")
