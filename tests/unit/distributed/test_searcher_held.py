"""Proposals whose ingredients are still to be trained hold neither a trial nor an evaluator."""

import json

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.distributed.background_training import Delivery, Supply, refuse_exhausted
from safemerge.distributed.capacity import Room
from safemerge.distributed.searcher import StudySearcher
from safemerge.distributed.trainable import FAILURE, NO_REPLICA, RESULT, RETRY, WRONG
from safemerge.errors import NoReplicaError, TrainingError, UserError
from safemerge.testing.landscapes import LAMBDA, SMOOTH, lambda_landscape

CHOICES = [0, 5, 20]
ALL = ["safety--1", "safety--2", "safety--3"]


class Order:
    """A supply that notes what is wanted, and delivers what the test says."""

    def __init__(self, *, beside=True):
        self.room = Room(beside, 1)
        self.wanted = []
        self._ready = []
        self.exhausted = None

    def want(self, path):
        if path not in self.wanted:
            self.wanted.append(path)

    @property
    def waiting(self):
        return bool(self.wanted) and not self.room.beside

    def deliver(self, path, error=""):
        self.wanted.remove(path)
        made = CheckpointRef(name="made", path=path, digest=f"weights of {path}")
        self._ready.append(Delivery(path, None if error else made, error))

    def delivered(self):
        ready, self._ready = self._ready, []
        return ready


def lambda_study(*, untrained, startup=4, num_trials=12):
    return lambda_landscape(
        {"choices": CHOICES},
        untrained=untrained,
        num_trials=num_trials,
        references=False,
        sampler={"name": "random", "startup": startup},
        evaluator={"num_retries": 0},
    )


class Driver:
    """Tune's part: asks for trials, ends them."""

    def __init__(self, study, order, *, at_once=3):
        self.records = []
        self.searcher = StudySearcher(
            study, on_record=self.records.append, supply=order, at_once=at_once
        )
        self.study = study
        self.count = 0

    def ask(self):
        self.count += 1
        name = f"t{self.count}"
        return name, self.searcher.suggest(name)

    def run_all(self):
        """Evaluate what there is to evaluate; return Tune's last answer."""
        while True:
            name, config = self.ask()
            if not isinstance(config, dict):
                return config
            proposal = self.study.proposal(config["number"])
            assert json.loads(config["recipe"]) == proposal.recipe.resolved()
            result = SMOOTH.evaluate(proposal.recipe)
            self.searcher.on_trial_complete(name, {RESULT: result.model_dump_json()})


def values(records):
    return [record.params[LAMBDA] for record in records]


def test_the_search_goes_on_with_ingredients_that_exist(open_study):
    order = Order()
    driver = Driver(open_study(lambda_study(untrained=["safety--3"])), order)

    assert driver.run_all() is None

    assert order.wanted == ["/made/safety--3"]
    assert set(values(driver.records)) <= {0, 5}
    order.deliver("/made/safety--3")
    assert driver.run_all() == "FINISHED"
    assert len(driver.records) == 12
    assert set(values(driver.records)) == {0, 5, 20}
    for record in driver.records:
        (safety,) = (item for item in record.recipe["experts"] if item["name"] == "safety")
        if record.params[LAMBDA] == 20:
            assert safety["digest"] == "weights of /made/safety--3"
        assert safety["digest"] is not None


def _deliver_until_told(driver, order):
    """Deliver one by one; nothing is sampled before all six of the startup are told."""
    startup = {*driver.study.in_flight}
    while startup & {*driver.study.in_flight}:
        assert driver.study.num_sampled == 6
        order.deliver(order.wanted[0])
        driver.run_all()
    while order.wanted:
        order.deliver(order.wanted[0])
        driver.run_all()


def test_the_sampler_learns_from_no_recipe_before_its_startup_is_told(open_study):
    order = Order()
    driver = Driver(open_study(lambda_study(untrained=ALL, startup=6)), order, at_once=10)

    assert driver.run_all() is None

    assert driver.records == []
    assert len(driver.study.in_flight) == 6
    _deliver_until_told(driver, order)
    assert len(driver.records) == 12


def test_resumed_in_its_startup_a_study_asks_all_of_it_again_before_it_samples(open_study):
    spec = lambda_study(untrained=ALL, startup=6)
    first = open_study(spec)
    Driver(first, Order(), at_once=10).run_all()
    assert len(first.in_flight) == 6
    first.close()

    order = Order()
    driver = Driver(open_study(spec), order, at_once=1)
    assert driver.run_all() is None
    assert len(driver.study.in_flight) == 6
    _deliver_until_told(driver, order)
    assert sum(record.state == "COMPLETE" for record in driver.study.records) == 12


def test_where_nothing_can_be_trained_the_search_ends_and_keeps_its_budget(open_study):
    def broken(ref, path):
        raise TrainingError(f"{ref.name}, step 3: the loss must be finite; got nan.")

    refs = {f"/made/{name}": CheckpointRef(name=name, align="/a.yaml") for name in ALL}
    study = open_study(lambda_study(untrained=ALL))
    with Supply(broken, refs, Room(True, 1), num_retries=0) as supply:
        driver = Driver(study, supply)
        while driver.run_all() is None:
            pass
        with pytest.raises(TrainingError, match="no ingredient could be trained"):
            refuse_exhausted(supply)
    assert not study.done
    assert study.num_sampled < 12
    assert study.in_flight, "what waits for the last to fail is asked again when it is resumed"


@pytest.mark.parametrize("missing", ALL)
def test_after_startup_no_more_is_held_than_runs_side_by_side(open_study, missing):
    order = Order()
    driver = Driver(open_study(lambda_study(untrained=[missing], startup=1, num_trials=60)), order)
    driver.run_all()
    (first,) = [*driver.records, *map(driver.study.proposal, driver.study.in_flight)][:1]
    first_is_held = first.params[LAMBDA] == CHOICES[ALL.index(missing)]
    assert len(driver.study.in_flight) == (1 if first_is_held else 3)
    order.deliver(order.wanted[0])
    assert driver.run_all() == "FINISHED"
    assert len(driver.records) == 60


def test_where_there_is_no_room_the_round_ends_and_the_next_goes_on(open_study):
    order = Order(beside=False)
    study = open_study(lambda_study(untrained=["safety--3"]))
    first = Driver(study, order)

    assert first.run_all() == "FINISHED"

    held = study.in_flight
    assert held
    assert not study.done
    for path in [*order.wanted]:
        order.deliver(path)
    second = Driver(study, order)
    assert second.run_all() == "FINISHED"
    assert study.done
    assert {record.number for record in second.records} >= set(held)


def test_no_round_ends_while_trials_are_in_flight(open_study):
    order = Order(beside=False)
    driver = Driver(open_study(lambda_study(untrained=["safety--3"], num_trials=30)), order)
    name, config = driver.ask()
    while isinstance(following := driver.ask()[1], dict):
        pass
    assert following is None
    proposal = driver.study.proposal(config["number"])
    driver.searcher.on_trial_complete(
        name, {RESULT: SMOOTH.evaluate(proposal.recipe).model_dump_json()}
    )
    assert driver.ask()[1] is None


def test_trials_of_an_ingredient_that_cannot_be_trained_fail_with_the_reason(open_study):
    order = Order()
    driver = Driver(open_study(lambda_study(untrained=["safety--3"])), order)
    while driver.run_all() is None:
        order.deliver("/made/safety--3", error="safety, step 3: the loss must be finite.")
    failed = [record for record in driver.records if record.state == "FAIL"]
    assert {record.params[LAMBDA] for record in failed} == {20}
    assert {record.reason for record in failed} == {"safety, step 3: the loss must be finite."}
    assert len(driver.records) == 12


def test_a_trained_variant_is_a_reference_from_then_on(open_study):
    spec = lambda_study(untrained=["safety--3"]).model_copy(update={"references": True})
    study = open_study(spec)
    order = Order()
    driver = Driver(study, order)
    driver.run_all()
    labels = {record.label for record in driver.records}
    assert "safety[booster.lambda=5]" in labels
    assert "safety[booster.lambda=20]" not in labels
    order.deliver("/made/safety--3")
    driver.run_all()
    assert "safety[booster.lambda=20]" in {record.label for record in driver.records}


def test_files_that_are_wrong_by_now_end_the_search_and_their_trial_is_asked_again(open_study):
    study = open_study(lambda_study(untrained=[]))
    searcher = StudySearcher(study, on_record=lambda _: None)
    searcher.suggest("a")
    told = {FAILURE: "model.safetensors: must stay as it was", RETRY: False, WRONG: True}
    searcher.on_trial_complete("a", told)
    with pytest.raises(UserError, match="must stay as it was"):
        searcher.suggest("b")
    assert not study.records


def test_without_any_replica_the_search_ends_and_no_try_is_used_up(open_study):
    study = open_study(lambda_study(untrained=[]))
    searcher = StudySearcher(study, on_record=lambda _: None)
    searcher.suggest("a")
    told = {FAILURE: "evaluator: no replica was free", RETRY: True, NO_REPLICA: True}
    searcher.on_trial_complete("a", told)
    with pytest.raises(NoReplicaError, match="no replica was free"):
        searcher.suggest("b")
    assert not study.records
