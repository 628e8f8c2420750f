"""A whole search as it is by default: Bayesian sampler, front by the posterior."""

import pytest

from safemerge.store import RunStore

pytestmark = pytest.mark.ray


def test_a_search_by_default_publishes_what_its_posterior_believes(
    safemerge, write_study, tmp_path
):
    study = write_study(num_trials=10, sampler={"startup": 4})

    done = safemerge("search", study)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "sampler: bayesian (qLogNEHVI)" in done.stdout
    assert "front: by the posterior of" in done.stdout
    store = RunStore.open(tmp_path / "results" / "pico")
    assert store.study().config.sampler.name == "bayesian"
    front = store.read_front()
    assert front.belief.evaluations >= 12
    assert {point.number for point in front.points} >= set(front.belief.members)
    assert all(0 <= point.belief.chance <= 1 for point in front.points)
    page = (tmp_path / "results" / "pico" / "report.html").read_text(encoding="utf-8")
    assert "chance of the front" in page
