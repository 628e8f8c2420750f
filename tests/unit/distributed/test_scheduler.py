"""Clients live as long as the search, and one that hangs is ended."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import ray
from ray.tune.utils.object_cache import _ObjectCache

from safemerge.distributed.scheduler import StudyScheduler
from safemerge.distributed.trainable import WAITS

NEEDS = "what a trial asks of Ray"


class Controller:
    """What the scheduler sees of Tune, with Tune's own cache of clients."""

    def __init__(self):
        self._tune_controller = SimpleNamespace(
            _actor_cache=_ObjectCache(may_keep_one=True), _trial_to_actor={}
        )
        self.live = set()

    def get_live_trials(self):
        return self.live

    def add(self, number, status):
        trial = Trial(number, status)
        self.live.add(trial)
        return trial


class Trial:
    placement_group_factory = NEEDS

    def __init__(self, number, status):
        self.trial_id, self.config, self.status = f"t{number}", {"number": number}, status
        self.temporary_state = SimpleNamespace(ray_actor=f"client of t{number}")


@pytest.fixture
def controller():
    return Controller()


@pytest.fixture
def ended(monkeypatch):
    ended = []
    monkeypatch.setattr(ray, "kill", ended.append)
    return ended


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def scheduler(**changes):
    return StudyScheduler(**{"clients": 3, "promote": lambda *_: True, "silent_s": 180} | changes)


def test_clients_of_trials_that_end_together_are_all_kept(controller):
    first, *others = (controller.add(number, "RUNNING") for number in range(4))
    keeps = scheduler()
    for trial in [first, *others]:
        keeps.on_trial_add(controller, trial)
    cache = controller._tune_controller._actor_cache
    assert [cache.cache_object(NEEDS, f"client {i}") for i in range(4)] == [True] * 3 + [False]
    assert not list(cache.flush_cached_objects())


def test_the_proposal_that_waits_longest_runs_first(controller, clock):
    for number, status in [(12, "PENDING"), (3, "RUNNING"), (5, "PENDING"), (100, "PENDING")]:
        controller.add(number, status)
    assert scheduler().choose_trial_to_run(controller).config["number"] == 5
    controller.live = {trial for trial in controller.live if trial.status == "RUNNING"}
    assert scheduler().choose_trial_to_run(controller) is None


def test_a_trial_whose_client_starts_waits_for_it(controller, clock):
    starting, free = (controller.add(number, "PENDING") for number in (1, 2))
    controller._tune_controller._trial_to_actor[starting] = "client that starts"
    assert scheduler().choose_trial_to_run(controller) is free
    controller.live.remove(free)
    assert scheduler().choose_trial_to_run(controller) is None


def look(watching, controller, clock, *, until, heard=()):
    while clock.now < until:
        clock.now += 10
        watching.choose_trial_to_run(controller)
        for trial in heard:
            if clock.now % 30 == 0:
                watching.on_trial_result(controller, trial, {WAITS: True})


def test_a_client_that_is_silent_is_ended_and_one_that_waits_is_not(controller, clock, ended):
    controller.add(1, "RUNNING")
    waits = controller.add(2, "RUNNING")
    controller.add(3, "PENDING")
    watching = scheduler()
    look(watching, controller, clock, until=190, heard=[waits])
    assert not ended
    look(watching, controller, clock, until=210, heard=[waits])
    assert ended == ["client of t1"]


def test_a_driver_that_was_stopped_itself_ends_no_client(controller, clock, ended):
    controller.add(1, "RUNNING")
    watching = scheduler()
    look(watching, controller, clock, until=100)
    clock.now = 1000.0
    watching.choose_trial_to_run(controller)
    look(watching, controller, clock, until=1180)
    assert not ended
    look(watching, controller, clock, until=1200)
    assert ended == ["client of t1"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "trainable",
            ("torch", "transformers", "optuna", "safemerge.search", "safemerge.engines"),
        ),
        ("evaluator", ("ray.tune", "optuna", "safemerge.search")),
    ],
)
def test_processes_of_a_search_import_nothing_that_only_others_need(module, heavy):
    code = (
        f"import sys, safemerge.distributed.{module}\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
