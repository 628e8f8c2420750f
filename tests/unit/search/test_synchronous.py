"""`synchronous: true`: the same recipes whatever the number of clients, and whoever is first."""

import random

import pytest
from search_driving import answer

from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import BROKEN, SMOOTH, landscape_study

SAMPLERS = ["tpe", "nsga2", "bayesian"]


@pytest.fixture
def drawn(tmp_path):
    """Search with some clients; return what was drawn, by number."""
    runs = iter(range(99))

    def search(name, *, clients, synchronous=True, seed=0, landscape=SMOOTH):
        sampler = {"name": name, "startup": 4, "synchronous": synchronous}
        spec = landscape_study(sampler=sampler, num_trials=14)
        store = RunStore(tmp_path / str(next(runs))).create(spec)
        order, flying = random.Random(seed), []
        with SearchStudy(spec, store) as study:
            while not study.done:
                while len(flying) < clients and (proposal := study.ask()) is not None:
                    flying.append(proposal)
                proposal = flying.pop(order.randrange(len(flying)))
                study.tell(proposal.number, answer(landscape, proposal))
            records = sorted(study.records, key=lambda record: record.number)
        assert sum(record.role == "sampled" for record in records) == 14
        return [(record.number, record.candidate, record.params) for record in records]

    return search


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_client_and_two_in_any_order_draw_the_same(name, drawn):
    if name == "bayesian":
        pytest.importorskip("botorch")
    alone = drawn(name, clients=1)

    assert drawn(name, clients=1) == alone
    assert drawn(name, clients=2, seed=1) == alone
    assert drawn(name, clients=3, seed=2) == alone


def test_without_it_the_order_of_answers_matters(drawn):
    alone = drawn("tpe", clients=1, synchronous=False)

    assert drawn("tpe", clients=3, synchronous=False, seed=2) != alone


def test_a_round_knows_what_those_before_found_and_nothing_of_its_own(drawn):
    here, elsewhere = (drawn("tpe", clients=1, landscape=item) for item in (SMOOTH, BROKEN))
    sampled = [(one[2] == other[2]) for one, other in zip(here, elsewhere, strict=True) if one[2]]

    assert sampled[:4] == [True] * 4
    assert False in sampled[4:]


def test_what_it_withheld_is_told_at_the_end(begin):
    sampler = {"name": "tpe", "startup": 4, "synchronous": True}
    study = begin(sampler=sampler, num_trials=6, references=False)
    while (proposal := study.ask()) is not None:
        study.tell(proposal.number, answer(SMOOTH, proposal))
    kept = study._study
    study.close()

    assert [trial.state.name for trial in kept.get_trials()] == ["COMPLETE"] * 6
