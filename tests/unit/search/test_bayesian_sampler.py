"""The sampler on a small landscape with a known front; float64 throughout."""

import itertools

import numpy as np
import optuna
import pytest

from safemerge.inference.share import wilson_interval
from safemerge.pareto import hypervolume, non_dominated_mask
from safemerge.search.bayesian_sampler import EXPECTED_GAIN, MAX_POINTS, BayesianSampler
from safemerge.search.encoding import Encoding
from safemerge.search.noise import VARIANCES, interval_variance
from safemerge.search.surrogate import Surrogate
from safemerge.testing.landscapes import landscape_values

pytest.importorskip("botorch")

SPACE = {
    "skill": optuna.distributions.FloatDistribution(0.0, 1.0),
    "safety": optuna.distributions.FloatDistribution(0.0, 1.0),
}
DIRECTIONS = ["maximize", "minimize"]
REFERENCES = {"accuracy": 0.0, "harm": 1.0}
COUNT = 100


def variance_of(share: float) -> float:
    return interval_variance(*wilson_interval(share, COUNT))


def search(
    sampler: optuna.samplers.BaseSampler, *, budget: int, seed: int, limit: float | None = None
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(seed)
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    for _ in range(budget):
        trial = study.ask()
        point = [trial.suggest_float(name, 0.0, 1.0) for name in SPACE]
        values = [rng.binomial(COUNT, share) / COUNT for share in landscape_values(*point)]
        variances = [variance_of(value) for value in values]
        if limit is not None:
            trial.set_constraint("harm", values[1] - limit)
        trial.set_user_attr(VARIANCES, dict(zip(REFERENCES, variances, strict=True)))
        study.tell(trial, values)
    return study


def bayesian(seed: int) -> BayesianSampler:
    return BayesianSampler(Encoding({"only": SPACE}), REFERENCES, startup=5, seed=seed)


def true_volume(study: optuna.Study) -> float:
    rows = [landscape_values(**trial.params) for trial in study.trials]
    return hypervolume(rows, [0.0, 1.0], DIRECTIONS)


def test_it_finds_more_than_random_draws() -> None:
    ours = [true_volume(search(bayesian(seed), budget=14, seed=seed)) for seed in range(2)]
    random = [
        true_volume(search(optuna.samplers.RandomSampler(seed=seed), budget=14, seed=seed))
        for seed in range(2)
    ]

    assert np.mean(ours) > np.mean(random) + 0.05


def test_the_same_seed_proposes_the_same() -> None:
    first, second = (search(bayesian(3), budget=8, seed=3) for _ in range(2))

    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]


def test_what_is_in_flight_is_not_proposed_again() -> None:
    study = search(bayesian(1), budget=8, seed=1)

    trials = [study.ask() for _ in range(3)]
    points = [[trial.suggest_float(name, 0.0, 1.0) for name in SPACE] for trial in trials]

    gaps = [np.abs(np.subtract(one, two)).max() for one, two in itertools.pairwise(points)]
    assert min(gaps) > 0.01


def test_constraints_keep_it_where_they_hold() -> None:
    study = search(bayesian(2), budget=20, seed=2, limit=0.3)

    late = [landscape_values(**trial.params)[1] for trial in study.trials[-6:]]

    assert np.median(late) < 0.3


def test_a_posterior_is_nearer_to_the_truth_than_what_was_observed() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((60, 2))
    truth = np.array([landscape_values(*point) for point in points])
    observed = rng.binomial(COUNT, truth) / COUNT
    noise = np.vectorize(variance_of)(observed)

    belief = Surrogate(points, observed, noise).believe(points)

    assert np.abs(belief.mean - truth).mean() < 0.7 * np.abs(observed - truth).mean()
    inside = np.abs(belief.mean - truth) < 1.96 * belief.deviation
    assert inside.mean() > 0.85


def test_a_posterior_front_is_less_optimistic() -> None:
    rng = np.random.default_rng(1)
    points = rng.random((80, 2))
    truth = np.array([landscape_values(*point) for point in points])
    observed = rng.binomial(COUNT, truth) / COUNT
    noise = np.vectorize(variance_of)(observed)

    mean = Surrogate(points, observed, noise).believe(points).mean

    def excess(values: np.ndarray) -> float:
        mask = non_dominated_mask(values, DIRECTIONS)
        reported = hypervolume(values[mask], [0.0, 1.0], DIRECTIONS)
        return reported - hypervolume(truth[mask], [0.0, 1.0], DIRECTIONS)

    assert abs(excess(mean)) < excess(observed)


def test_of_many_evaluations_the_best_and_an_even_sample_are_fitted() -> None:
    sampler = bayesian(0)
    study = optuna.create_study(directions=DIRECTIONS)
    rng = np.random.default_rng(0)
    for point in rng.random((MAX_POINTS + 50, 2)):
        values = landscape_values(*point)
        study.add_trial(
            optuna.trial.create_trial(
                values=values, params=dict(zip(SPACE, point, strict=True)), distributions=SPACE
            )
        )

    found = sampler._evaluations(study, study.trials)

    assert len(found.points) == MAX_POINTS
    every = np.array([trial.values for trial in study.trials]) * [1, -1]
    best = every[non_dominated_mask(every, ["maximize"] * 2)]
    assert {tuple(row) for row in best} <= {tuple(row) for row in found.values}


def test_what_it_expects_to_gain_is_a_share_that_shrinks() -> None:
    trials = search(bayesian(2), budget=24, seed=2).trials
    gains = [trial.user_attrs.get(EXPECTED_GAIN) for trial in trials]

    assert gains[:5] == [None] * 5
    learned = [gain for gain in gains[5:] if gain is not None]
    assert len(learned) == 19
    assert np.median(learned[-6:]) < np.median(learned[:6]) < 1
    assert min(learned) > 0
