"""Ingredients trained while a search goes on: once each, as many at once as there is room for."""

import threading
import time

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.stage import WorkersSpec
from safemerge.config.study import StudySpec
from safemerge.distributed.background_training import Supply, refuse_exhausted
from safemerge.distributed.capacity import Room, find_room
from safemerge.errors import ConfigError, PreflightError, TrainingError
from safemerge.testing.landscapes import landscape_study


class Trainer:
    """Trains when it is let to, and notes what it is asked for."""

    def __init__(self, broken=()):
        self.broken = broken
        self.asked = []
        self.most = 0
        self._busy = 0
        self._lock = threading.Lock()
        self.go = threading.Event()

    def __call__(self, ref, path):
        with self._lock:
            self.asked.append(ref.name)
            self._busy += 1
            self.most = max(self.most, self._busy)
        self.go.wait(10)
        with self._lock:
            self._busy -= 1
        if ref.name in self.broken:
            raise TrainingError(f"{ref.name}, step 3: the loss must be finite; got nan.")
        return ref.model_copy(update={"path": f"/made/{ref.name}", "align": None, "digest": "d"})


def supply(trainer, *, beside=True, at_once=2, **changes):
    names = ("one", "two", "three")
    refs = {f"/made/{name}": CheckpointRef(name=name, align="/a.yaml") for name in names}
    return Supply(trainer, refs, Room(beside, at_once), **changes)


def deliveries(made, count):
    found, deadline = [], time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += made.delivered()
        time.sleep(0.005)
    assert len(found) == count
    return found


def wait_until(ready):
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_each_is_trained_once_and_no_more_at_once_than_there_is_room_for():
    trainer = Trainer()
    with supply(trainer) as made:
        for _ in range(2):
            for name in ("one", "two", "three"):
                made.want(f"/made/{name}")
        assert made.delivered() == []
        wait_until(lambda: len(trainer.asked) == 2)
        trainer.go.set()
        found = deliveries(made, 3)
    assert sorted(item.path for item in found) == ["/made/one", "/made/three", "/made/two"]
    assert all(item.made.digest == "d" for item in found)
    assert sorted(trainer.asked) == ["one", "three", "two"]
    assert trainer.most == 2


def test_without_room_beside_nothing_starts_before_the_evaluator_gives_way():
    trainer = Trainer()
    trainer.go.set()
    with supply(trainer, beside=False, at_once=1) as made:
        made.want("/made/one")
        made.want("/made/two")
        time.sleep(0.05)
        assert trainer.asked == []
        assert made.waiting
        made.make_wanted()
        assert not made.waiting
        assert len(made.delivered()) == 2
    assert trainer.most == 1


def test_a_stage_that_fails_is_tried_again_and_then_no_more():
    trainer = Trainer(broken=["one"])
    trainer.go.set()
    with supply(trainer, num_retries=1) as made:
        for attempt in range(3):
            made.want("/made/one")
            (found,) = deliveries(made, 1)
            assert found.made is None
            assert "step 3: the loss must be finite" in found.error
            assert found.final == (attempt > 0)
        assert trainer.asked == ["one", "one"]
        assert made.exhausted is None


def test_a_search_that_can_train_nothing_ends():
    trainer = Trainer(broken=["one", "two"])
    trainer.go.set()
    with supply(trainer, num_retries=0) as made:
        made.want("/made/one")
        made.want("/made/two")
        deliveries(made, 2)
        with pytest.raises(TrainingError, match=r"no ingredient could be trained; got: .* step 3"):
            refuse_exhausted(made)


def test_one_that_was_made_gives_hope():
    trainer = Trainer(broken=["one", "two"])
    trainer.go.set()
    with supply(trainer, num_retries=0) as made:
        for name in ("one", "two", "three"):
            made.want(f"/made/{name}")
        deliveries(made, 3)
        refuse_exhausted(made)


def test_a_variant_from_before_gives_hope_too():
    trainer = Trainer(broken=["one", "two"])
    trainer.go.set()
    with supply(trainer, num_retries=0, num_there=1) as made:
        made.want("/made/one")
        made.want("/made/two")
        deliveries(made, 2)
        refuse_exhausted(made)


def test_a_training_file_that_changed_meanwhile_is_told_and_not_waited_for():
    def elsewhere(ref, path):
        return ref.model_copy(update={"path": "/made/other", "align": None, "digest": "d"})

    with supply(elsewhere) as made:
        made.want("/made/one")
        with pytest.raises(ConfigError, match=r"/a.yaml: file and data must stay as they were"):
            wait_until(made.delivered)


def test_what_the_user_must_mend_ends_the_search_and_starts_nothing_more():
    asked = []

    def full(ref, path):
        asked.append(path)
        raise PreflightError("/made: the disk is full; got no room for one. Free space.")

    with supply(full, beside=False, at_once=1) as made:
        made.want("/made/one")
        made.want("/made/two")
        with pytest.raises(PreflightError, match="disk is full"):
            made.make_wanted()
        with pytest.raises(PreflightError, match="disk is full"):
            made.delivered()
    assert asked == ["/made/one"]


def test_nothing_starts_once_it_is_closed():
    trainer = Trainer()
    with supply(trainer, at_once=1) as made:
        made.want("/made/one")
        wait_until(lambda: trainer.asked)
        made.want("/made/two")
    made.want("/made/three")
    trainer.go.set()
    deliveries(made, 1)
    time.sleep(0.05)
    assert trainer.asked == ["one"]


def study(**evaluator) -> StudySpec:
    return landscape_study(evaluator={"cpus_per_replica": 2, **evaluator})


@pytest.mark.parametrize(
    ("evaluator", "workers", "nodes", "expected"),
    [
        ({}, {"cpus_per_worker": 2}, [{"CPU": 8}], Room(True, 3)),
        ({"max_replicas": 4}, {"cpus_per_worker": 2}, [{"CPU": 4}], Room(True, 1)),
        ({}, {"cpus_per_worker": 2}, [{"CPU": 2}], Room(False, 1)),
        ({}, {"cpus_per_worker": 1}, [{"CPU": 2}], Room(False, 2)),
        ({}, {"cpus_per_worker": 9}, [{"CPU": 2}], Room(False, 1)),
        ({}, {"cpus_per_worker": 3}, [{"CPU": 3}, {"CPU": 3}], Room(True, 1)),
        # Where the replica goes is not known: on the larger machine, no three cores are left.
        ({}, {"cpus_per_worker": 3}, [{"CPU": 3}, {"CPU": 2}], Room(False, 1)),
        ({}, {"cpus_per_worker": 10}, [{"CPU": 8, "GPU": 1}, {"CPU": 10}], Room(True, 1)),
        (
            {"gpus_per_replica": 0},
            {"cpus_per_worker": 10},
            [{"CPU": 8, "GPU": 1}, {"CPU": 10}],
            Room(False, 1),
        ),
        (
            {"gpus_per_replica": 1},
            {"gpus_per_worker": 1, "num_workers": 2},
            [{"CPU": 64, "GPU": 6}],
            Room(True, 2),
        ),
        # Left out, the GPUs of a replica are those that its engine spans, where there are any.
        ({}, {"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 1}], Room(False, 1)),
        (
            {"tensor_parallel_size": 2},
            {"gpus_per_worker": 1},
            [{"CPU": 8, "GPU": 3}],
            Room(True, 1),
        ),
        (
            {"gpus_per_replica": 1, "min_replicas": 4, "max_replicas": 4},
            {"gpus_per_worker": 1, "num_workers": 2},
            [{"CPU": 64, "GPU": 4}],
            Room(False, 2),
        ),
    ],
)
def test_room_is_what_the_least_replicas_leave(evaluator, workers, nodes, expected):
    assert find_room(study(**evaluator), [WorkersSpec(**workers)], nodes) == expected


def test_each_kind_of_stage_has_its_own_needs():
    workers = [
        WorkersSpec(cpus_per_worker=4, gpus_per_worker=1),
        WorkersSpec(num_workers=4, cpus_per_worker=1),
    ]
    node = {"CPU": 16, "GPU": 2, "node:10.0.0.1": 1.0}
    assert find_room(study(gpus_per_replica=1), workers, [node]) == Room(True, 1)
