import threading

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ReplicaDetails

from safemerge.distributed import shutdown


class Cluster:
    """Replicas of one application that end as they are told, and when they are asked to."""

    def __init__(self, *replicas, drained_at):
        self.replicas, self.drained_at, self.now = list(replicas), drained_at, 0.0
        self.killed, self.deleted = [], []

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def applications(self):
        if self.now >= self.drained_at or not self.replicas:
            return {}
        return {"app": self}

    def kill(self, replica):
        self.killed.append(replica.actor_name)
        self.replicas.remove(replica)


def replica(name, state, node_id):
    return ReplicaDetails(
        replica_id=name, actor_name=name, state=state, node_id=node_id, pid=None, start_time_s=0.0
    )


@pytest.fixture
def put(monkeypatch):
    def put(cluster):
        class Status:
            @property
            def applications(self):
                return cluster.applications()

        monkeypatch.setattr(shutdown, "time", cluster)
        cluster.monotonic = cluster.time
        monkeypatch.setattr(shutdown.serve, "status", Status)
        monkeypatch.setattr(
            shutdown.serve,
            "delete",
            lambda app, _blocking=True: cluster.deleted.append((app, _blocking)),
        )
        monkeypatch.setattr(shutdown, "_replicas", lambda app: list(cluster.replicas))
        monkeypatch.setattr(shutdown, "_kill", cluster.kill)
        return cluster

    return put


def test_a_replica_that_answers_in_time_is_not_killed(put):
    cluster = put(Cluster(replica("busy", "STOPPING", "node"), drained_at=20))
    shutdown.end_application("app", within_s=30)
    assert cluster.killed == []
    assert cluster.deleted == [("app", False)]


def test_a_replica_that_outlasts_the_wait_is_killed(put):
    cluster = put(Cluster(replica("busy", "STOPPING", "node"), drained_at=1800))
    shutdown.end_application("app", within_s=30)
    assert cluster.killed == ["busy"]
    assert 30 <= cluster.now < 31


def test_only_a_replica_that_was_never_placed_is_dismissed(put):
    waiting, busy = replica("waiting", "STOPPING", None), replica("busy", "STOPPING", "node")
    cluster = put(Cluster(waiting, busy, replica("new", "STARTING", None), drained_at=1800))
    shutdown.dismiss("app")
    assert cluster.killed == ["waiting"]


@pytest.mark.parametrize("error", [RayServeException("no controller"), RayActorError()])
def test_a_controller_that_starts_again_is_asked_the_next_time(monkeypatch, error):
    asked, again = [], threading.Event()

    def dismiss(app):
        asked.append(app)
        if len(asked) == 1:
            raise error
        again.set()

    monkeypatch.setattr(shutdown, "dismiss", dismiss)
    monkeypatch.setattr(shutdown, "DISMISS_EVERY_S", 0.01)
    with shutdown.dismissing("app"):
        assert again.wait(30)
    assert set(asked) == {"app"}
