"""Which sampler ``auto``, the default, is; a run keeps the one that it began with."""

import pytest
from optuna.samplers import NSGAIIISampler, TPESampler
from search_driving import finish
from warm_start_driving import BOTH, space

from safemerge.config.sampler import SamplerSpec
from safemerge.errors import ConfigError
from safemerge.search import storage
from safemerge.search.bayesian_sampler import BayesianSampler
from safemerge.search.storage import make_sampler, with_sampler
from safemerge.testing.landscapes import landscape_study

AUTO = {"storage": "journal", "references": False, "sampler": {}}


@pytest.fixture
def without_botorch(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda _: None)


def test_a_new_run_takes_the_bayesian_one():
    pytest.importorskip("botorch")
    assert SamplerSpec().name == "auto"
    spec, told = with_sampler(landscape_study(**AUTO))
    assert (spec.sampler.name, told) == ("bayesian", "sampler: bayesian (qLogNEHVI)")
    assert with_sampler(spec) == (spec, None)


def test_without_botorch_it_is_tpe_and_the_run_says_so(without_botorch):
    spec, told = with_sampler(landscape_study(**AUTO))
    assert (spec.sampler.name, told) == ("tpe", "sampler: tpe, for botorch is not installed")


def test_with_many_combinations_of_choices_it_is_tpe():
    choices = {"choices": [round(0.05 * step, 2) for step in range(11)]}
    vary = {**dict.fromkeys(BOTH, choices)}
    spec, told = with_sampler(landscape_study(**AUTO, spaces=[space(vary)]))
    assert (spec.sampler.name, told) == (
        "tpe",
        "sampler: tpe, for there are 121 combinations of choices",
    )


def test_a_bayesian_run_is_not_continued_without_botorch(without_botorch):
    stored = landscape_study(**{**AUTO, "sampler": {"name": "bayesian"}})
    with pytest.raises(ConfigError, match=r"sampler\.name 'bayesian': needs botorch"):
        with_sampler(landscape_study(**AUTO), stored)


def test_a_sampler_that_is_named_stays():
    for name in ("tpe", "random", "nsga2", "nsga3"):
        spec = landscape_study(sampler={"name": name})
        assert with_sampler(spec, landscape_study(**AUTO)) == (spec, None)


def test_nsga3_has_populations_of_startup():
    spec = landscape_study(sampler={"name": "nsga3", "startup": 6})
    sampler = make_sampler(spec, num_existing=0)
    assert isinstance(sampler, NSGAIIISampler)
    assert sampler.population_size == 6


def test_a_run_from_before_goes_on_with_tpe(begin):
    first = begin(**{**AUTO, "sampler": {"name": "tpe"}}, num_trials=3)
    finish(first)
    first.close()
    second = begin(**AUTO, num_trials=4)
    assert isinstance(second._study.sampler, TPESampler)
    finish(second)
    assert second.num_sampled == 4


def test_a_study_that_names_another_sampler_than_its_run_is_refused(begin):
    begin(**{**AUTO, "sampler": {"name": "random"}}).close()
    with pytest.raises(Exception, match=r'sampler\.name: "random" vs "tpe"'):
        begin(**{**AUTO, "sampler": {"name": "tpe"}})


def test_a_new_search_is_driven_by_the_bayesian_one(begin):
    pytest.importorskip("botorch")
    study = begin(**AUTO, num_trials=2)
    assert isinstance(study._study.sampler, BayesianSampler)
    finish(study)


def test_a_search_ends_by_what_it_expects_and_more_budget_continues_it(begin):
    pytest.importorskip("botorch")
    sampler = {**AUTO, "sampler": {"startup": 4}, "num_trials": 30}
    first = begin(**sampler, budget={"expected_gain": 0.99})
    assert len(finish(first)) == 7
    assert first.ended_by is not None
    assert all(record.expected_gain is None for record in first.records[:4])
    first.close()
    same = begin(**sampler, budget={"expected_gain": 0.99})
    assert finish(same) == []
    same.close()
    more = begin(**{**sampler, "num_trials": 8}, budget={"expected_gain": 1e-9})
    assert len(finish(more)) == 1


def test_auto_that_is_tpe_expects_nothing(without_botorch):
    with pytest.raises(ConfigError, match=r"budget\.expected_gain: needs the Bayesian .* got tpe"):
        with_sampler(landscape_study(**AUTO, budget={"expected_gain": 0.01}))
