"""A trial costs the driver the same work however many trials are finished: calls are counted."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from search_driving import finish

from safemerge.config import grid
from safemerge.front import front_hypervolume, front_trials
from safemerge.search import tpe_sampler, unseen
from safemerge.search.tpe_sampler import BoundedTPESampler, History
from safemerge.testing.landscapes import landscape_study

MEMORY = {"references": False, "sampler": {"name": "random"}}


class Count:
    """Counts the calls of a function, and what it returned in all."""

    def __init__(self, monkeypatch, owner, name):
        self.calls = self.items = 0
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            self.calls += 1
            found = function(*args, **kwargs)
            self.items += len(found) if hasattr(found, "__len__") else 0
            return found

        monkeypatch.setattr(owner, name, counting)


def trial_of(study):
    """Do what the searcher does for one trial."""
    assert not study.done
    finish(study, limit=1)
    study.front()
    study.hypervolume()


def test_a_trial_goes_through_no_finished_trials(begin, monkeypatch):
    study = begin(**MEMORY, num_trials=200)
    costs = []
    for finished in (10, 150):
        finish(study, limit=finished - len(study.records))
        with monkeypatch.context() as patch:
            listed = Count(patch, optuna.Study, "get_trials")
            stored = Count(patch, InMemoryStorage, "get_all_trials")
            points = Count(patch, unseen, "grid_point")
            trial_of(study)
            costs.append((listed.calls, stored.items, points.calls))
    assert costs[0] == costs[1]
    assert costs[1][:2] == (0, 0)


def test_tpe_fits_to_a_bounded_history(begin, monkeypatch):
    monkeypatch.setattr(tpe_sampler, "MAX_TRIALS", 20)
    study = begin(references=False, num_trials=80, sampler={"name": "tpe", "startup": 4})
    fitted = []
    fit = TPESampler._build_parzen_estimator

    def counting(sampler, study, space, trials, handle_below):
        fitted.append(len(trials))
        return fit(sampler, study, space, trials, handle_below)

    monkeypatch.setattr(TPESampler, "_build_parzen_estimator", counting)
    finish(study)
    assert max(fitted) <= 30
    assert len(study.records) == 80


def test_a_short_history_gives_the_draws_of_optunas_own_tpe():
    space = {"a/x": FloatDistribution(0.0, 1.0), "a/y": FloatDistribution(0.0, 1.0)}
    own = BoundedTPESampler({"a": space}, chooser={}, startup=6, seed=3)
    with pytest.warns(optuna.exceptions.ExperimentalWarning, match="group"):
        other = TPESampler(
            seed=3, n_startup_trials=6, multivariate=True, group=True, constant_liar=True
        )
    drawn = []
    for sampler in (own, other):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for _ in range(25):
            trial = study.ask()
            x, y = (trial.suggest_float(name, 0.0, 1.0) for name in space)
            study.tell(trial, [x, (x - 0.5) ** 2 + y])
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1]


def test_a_thinned_history_keeps_the_front_and_what_runs(begin):
    study = begin(**MEMORY, num_trials=60)
    history = History(limit=20)
    sizes = []
    for _ in range(40):
        finish(study, limit=1)
        sizes.append(len(history.of(study._study)))
    assert sizes[:30] == list(range(1, 31))
    assert max(sizes) == 30
    flying = study.ask()
    kept = history.of(study._study)
    assert kept[-1].user_attrs["number"] == flying.number
    numbers = {trial.user_attrs["number"] for trial in kept}
    assert {record.number for record in study.front()} <= numbers
    assert len(numbers) == len(kept)


def test_a_running_front_is_the_front_of_all_trials(begin):
    study = begin(references=True, num_trials=30, sampler={"name": "random"})
    while finish(study, limit=1):
        assert study.front() == front_trials(study.spec, study.records)
        whole = front_hypervolume(study.spec, study.records)
        assert study.hypervolume() == pytest.approx(whole, abs=1e-12)
    assert len(study.front()) > 2


def test_a_grid_is_gone_through_once(begin, monkeypatch):
    """Each point is looked at when the one before it was drawn, not at every question."""
    space = landscape_study().resolved()["spaces"][0]
    space["vary"] = {path: {"low": 0.0, "high": 1.0, "step": 0.1} for path in space["vary"]}
    study = begin(**MEMORY, spaces=[space], num_trials=40)
    size = grid.grid_size(study.spec)
    assert size == 121
    made = Count(monkeypatch, unseen, "recipe_at")
    finish(study)
    for _ in range(50):
        assert not study.covered
    assert made.calls <= 40
