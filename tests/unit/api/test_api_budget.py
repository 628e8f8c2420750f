"""What `safemerge.search` does when a budget ends a search, and when a larger one continues it."""

from types import SimpleNamespace

import pytest

from safemerge.api import search as searching
from safemerge.api.progress import Progress
from safemerge.records import Timings
from safemerge.reports.run import load_run
from safemerge.reports.tracking import Tracking
from safemerge.store import RunStore
from safemerge.testing.landscapes import SMOOTH, landscape_study

SPENT = "budget.evaluator_seconds of 3 is spent (3 s)"


class LandscapeEvaluator:
    """Scores by a landscape what a replica would."""

    def score_all(self, recipes, split):
        """Yield a result a recipe."""
        for recipe in recipes:
            yield SMOOTH.evaluate(recipe, split)


@pytest.fixture
def drive(open_study, monkeypatch):
    """Run the search of a study by a landscape, as far as its budget goes."""

    def whole_round(study, progress, supply, trials, place):
        while not study.done:
            proposal = study.ask()
            result = SMOOTH.evaluate(proposal.recipe)
            timed = result.model_copy(update={"timings": Timings(total_s=1.0)})
            study.tell(proposal.number, timed)
        fronts.append(study.store.read_front())
        searching.end_round(study, LandscapeEvaluator(), progress)
        return True

    fronts = []
    monkeypatch.setattr(searching, "_round", whole_round)

    def drive(**changes):
        said = []
        spec = landscape_study(
            references=False,
            front="observed",
            sampler={"name": "random", "startup": 1},
            num_trials=8,
            **changes,
        )
        study = open_study(spec)
        supply = SimpleNamespace(wanted=[], room=None)
        tracking = Tracking([], say=said.append)
        searching._search(study, Progress(said.append), supply, None, None, tracking)
        folder = study.store.folder
        study.close()
        return folder, said, fronts[-1]

    return drive


def test_a_spent_budget_is_said_logged_and_published(drive):
    folder, said, _ = drive(budget={"evaluator_seconds": 3})
    assert f"{SPENT}; the search ends here" in said
    assert SPENT in RunStore(folder).log_path.read_text(encoding="utf-8")
    run = load_run(folder)
    assert run.front.ended_by == SPENT
    assert (run.num_sampled, run.is_complete) == (3, True)


def test_a_larger_budget_makes_the_front_unfinished_until_it_is_published_again(drive):
    drive(budget={"evaluator_seconds": 3})
    folder, said, while_searching = drive(budget={"evaluator_seconds": 5})
    assert while_searching.ended_by is None
    assert "resuming: 3 finished trials kept" in said
    assert load_run(folder).front.ended_by == "budget.evaluator_seconds of 5 is spent (5 s)"
    folder, said, _ = drive()
    run = load_run(folder)
    assert (run.front.ended_by, run.num_sampled) == (None, 8)
    assert not any("the search ends here" in line for line in said)


def test_the_same_budget_again_leaves_the_front_as_it_was(drive):
    drive(budget={"evaluator_seconds": 3})
    _, _, found = drive(budget={"evaluator_seconds": 3})
    assert found.ended_by == SPENT
