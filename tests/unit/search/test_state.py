import pytest

from safemerge.config.study import StudySpec
from safemerge.errors import StudyError
from safemerge.provenance import utc_now
from safemerge.search import Failure
from safemerge.search.pending import Pending
from safemerge.search.records import Proposal
from safemerge.search.state import SearchState
from safemerge.search.unseen import unseen
from safemerge.testing.landscapes import SMOOTH, landscape_study


@pytest.fixture
def spec() -> StudySpec:
    return landscape_study(num_trials=4)


def sampled(state):
    """Put a recipe in flight that was not drawn yet, as a sampler would."""
    found = unseen(state.spec, state.drawn)
    number = state.next_number
    proposal = Proposal(
        number=number,
        role="sampled",
        label=f"trial {number}",
        recipe=found.recipe,
        space=found.space,
        params=found.params,
    )
    return state.start(Pending(proposal, utc_now(), None))


def end(state, proposal, outcome=None):
    ending = state.ending(proposal.number, outcome or SMOOTH.evaluate(proposal.recipe))
    state.finish(ending)
    return ending


def references(state):
    found = []
    while (pending := state.next_reference()) is not None:
        found.append(state.start(pending))
        end(state, found[-1])
    return found


def test_references_come_first_each_once_with_numbers_in_a_row(spec):
    state = SearchState(spec)
    found = references(state)
    assert [one.number for one in found] == list(range(len(found)))
    assert [one.label for one in found][-1] == "mean"
    assert not state.is_done(num_sampled=0, waiting=False)


def test_a_search_is_done_once_budget_and_flights_are_spent(spec):
    state = SearchState(spec)
    references(state)
    proposal = sampled(state)
    assert not state.is_done(num_sampled=4, waiting=False), "one is in flight"
    end(state, proposal)
    assert state.is_done(num_sampled=4, waiting=False)
    assert not state.is_done(num_sampled=4, waiting=True)
    assert not state.is_done(num_sampled=3, waiting=False)


def test_a_crash_is_tried_again_as_often_as_the_study_says(spec):
    state = SearchState(spec)
    tries = spec.evaluator.num_retries + 1
    first = state.start(state.next_reference())
    endings = [end(state, first, Failure("lost"))]
    for _ in range(tries - 1):
        again = state.start(state.next_reference())
        assert again.candidate == first.candidate
        endings.append(end(state, again, Failure("lost")))
    assert [ending.retried for ending in endings] == [True] * (tries - 1) + [False]
    assert state.next_reference().proposal.candidate != first.candidate


def test_a_trial_stays_in_flight_until_its_ending_is_stored(spec):
    state = SearchState(spec)
    proposal = state.start(state.next_reference())
    ending = state.ending(proposal.number, SMOOTH.evaluate(proposal.recipe))
    assert list(state.pending) == [proposal.number]
    assert state.records == []
    state.finish(ending)
    assert state.records == [ending.record]
    with pytest.raises(StudyError, match=r"must be in flight to be reported.*In flight: none"):
        state.ending(proposal.number, Failure("again"))


def test_records_make_the_state_that_they_were_written_from(spec):
    state = SearchState(spec)
    references(state)
    end(state, sampled(state))
    again = SearchState(spec, state.records)
    assert again.next_number == state.next_number
    assert again.next_reference() is None
    assert again.drawn == state.drawn
    assert again.front() == state.front()
    assert again.hypervolume() == state.hypervolume() > 0
    known = state.records[-1]
    assert again.known_result(known.candidate) == known.result
