"""A front by the posterior, on a landscape with a known truth and 100 prompts a suite."""

import numpy as np
import pytest
from search_driving import FAST, finish

from safemerge.config.recipe import MergeRecipe
from safemerge.front import assemble_front
from safemerge.inference.share import wilson_interval
from safemerge.pareto import hypervolume
from safemerge.search import posterior
from safemerge.search.posterior import CHANCE, LEAST_EVALUATIONS, believed_front
from safemerge.testing.landscapes import (
    ACCURACY,
    HARM,
    NUM_PROMPTS,
    SMOOTH,
    landscape_values,
    weights_of,
)

pytest.importorskip("botorch")


class Noisy:
    """The smooth landscape, measured on prompts that are drawn anew for each recipe."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def evaluate(self, recipe, split="search"):
        result = SMOOTH.evaluate(recipe, split)
        metrics = {}
        for name, estimate in result.metrics.items():
            share = self.rng.binomial(NUM_PROMPTS, estimate.value) / NUM_PROMPTS
            low, high = wilson_interval(share, NUM_PROMPTS)
            update = {"value": share, "low": low, "high": high}
            metrics[name] = estimate.model_copy(update=update)
        return result.model_copy(update={"metrics": metrics})


@pytest.fixture
def searched(begin):
    def search(num_trials=40, **changes):
        study = begin(**{**FAST, "references": True, **changes}, num_trials=num_trials)
        return study.spec, finish(study, Noisy(3))

    return search


def truth(record):
    return landscape_values(*weights_of(MergeRecipe.model_validate(record.recipe)))


def volume(rows):
    return hypervolume(rows, [0.0, 1.0], ["maximize", "minimize"])


def test_a_believed_front_is_nearer_to_the_truth_than_the_observed_one(searched):
    spec, records = searched()
    by_number = {record.number: record for record in records}
    found = believed_front(spec, records)

    published = [truth(by_number[number]) for number in found.points]
    believed = [
        (point.values[ACCURACY].mean, point.values[HARM].mean) for point in found.points.values()
    ]
    observed = [tuple(by_number[number].objectives.values()) for number in found.points]
    error = np.abs(np.subtract(believed, published)).mean()
    assert error < np.abs(np.subtract(observed, published)).mean()
    assert volume(published) >= 0.97 * volume([truth(record) for record in records])
    told = found.front.hypervolume
    assert told.low < told.mean < told.high
    assert told.mean == pytest.approx(volume(published), rel=0.1)


def test_points_with_a_fair_chance_and_all_members_are_published(searched):
    spec, records = searched()
    found = believed_front(spec, records)

    assert found.front.evaluations == len(records) == 44
    assert set(found.front.members) <= set(found.points)
    rest = set(found.points) - set(found.front.members)
    assert all(found.points[number].chance >= CHANCE for number in rest)
    worst = {record.number for record in records if truth(record)[1] - truth(record)[0] ** 2 > 0.5}
    assert worst
    assert not worst & set(found.points)
    for point in found.points.values():
        for value in point.values.values():
            assert 0 <= value.low <= value.mean <= value.high <= 1


def test_of_many_with_a_fair_chance_the_likeliest_are_published(searched, monkeypatch):
    spec, records = searched()
    every = believed_front(spec, records)
    members = set(every.front.members)
    chances = {number: point.chance for number, point in every.points.items()}
    others = sorted(set(chances) - members, key=lambda number: -chances[number])
    assert len(others) > 2
    monkeypatch.setattr(posterior, "MOST_PUBLISHED", len(members) + 2)
    found = believed_front(spec, records)
    assert set(found.points) == members | set(others[:2])
    monkeypatch.setattr(posterior, "MOST_PUBLISHED", 1)
    assert set(believed_front(spec, records).points) == members


def test_the_same_trials_give_the_same_front(searched):
    spec, records = searched(num_trials=14)
    assert believed_front(spec, records) == believed_front(spec, records)


def test_few_recipes_say_too_little(searched):
    spec, records = searched(num_trials=LEAST_EVALUATIONS - 5)
    told = "11 scored recipes of the spaces; a posterior needs 12"
    assert believed_front(spec, records) == told


def test_without_botorch_the_front_is_the_observed_one(searched, monkeypatch):
    spec, records = searched(num_trials=10)
    monkeypatch.setattr(posterior.importlib.util, "find_spec", lambda _: None)
    assert "not installed" in believed_front(spec, records)


def test_a_study_may_ask_for_the_observed_front(searched):
    spec, records = searched(num_trials=10, front="observed")
    assert believed_front(spec, records) == "as the study says"


def test_what_breaks_a_limit_as_observed_is_not_published(searched):
    limit = [{"metric": HARM, "budget": 0.3}]
    spec, records = searched(constraints=limit)
    found = believed_front(spec, records)
    feasible = {record.number for record in records if record.feasible}
    assert set(found.points) <= feasible
    assert len(feasible) < len(records)
    for number in found.front.members:
        assert found.points[number].values[HARM].mean <= 0.3


def test_a_reference_off_the_spaces_is_believed_as_measured(searched):
    vary = {
        "method.weights.skill": {"low": 0.2, "high": 0.45},
        "method.weights.safety": {"low": 0.2, "high": 0.45},
    }
    space = {
        "name": "sum",
        "method": {"name": "task_arithmetic", "weights": {"skill": 0.4, "safety": 0.4}},
        "vary": vary,
    }
    spec, records = searched(num_trials=14, spaces=[space])
    found = believed_front(spec, records)
    safety = next(record for record in records if record.label == "safety")
    assert found.front.evaluations == 14
    assert found.points[safety.number].values[HARM].mean == safety.objectives[HARM] == 0.0


def test_the_knee_is_of_the_posterior_and_the_report_split_chooses_nothing(searched):
    spec, records = searched()
    found = believed_front(spec, records)
    knees = set()
    for seed in (10, 11):
        held_out = Noisy(seed)
        report = {
            record.candidate: held_out.evaluate(
                MergeRecipe.model_validate(record.recipe), "report"
            )
            for record in records
        }
        front = assemble_front(spec, records, report, study_digest="d", belief=found)
        assert {point.number for point in front.points} == set(found.points)
        assert front.belief == found.front
        assert all(point.belief == found.points[point.number] for point in front.points)
        knees.add(front.knee)
    assert len(knees) == 1
    assert knees <= set(found.front.members)


def test_it_says_which_parameters_move_an_objective(searched):
    spec, records = searched()
    importance = believed_front(spec, records).front.importance

    assert list(importance) == [item.metric for item in spec.objectives]
    for effects in importance.values():
        assert list(effects) == ["sum"]
        assert list(effects["sum"]) == list(spec.spaces[0].vary)
        assert all(0.1 < effect <= 1 for effect in effects["sum"].values())  # misfit is of both
