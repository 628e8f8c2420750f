"""A node that is taken away in mid-candidate: three raylets, engines of a fixed latency."""

import os
import secrets
import signal
import time

import pytest
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster

from safemerge.distributed import shutdown
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.search import search_round
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.fixed_latency import fixed_latency_application
from safemerge.testing.landscapes import landscape_study
from tests.integration.driving import PATIENCE

pytestmark = pytest.mark.ray

APP = "safemerge-spot"
LATENCY_S = 3.0
NODE = {"object_store_memory": 80 * 1024**2}


@pytest.fixture
def nodes(monkeypatch):
    """Three nodes with room for a replica each, beside a head without."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _read_token()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE},
    )
    try:
        nodes = [cluster.add_node(wait=False, num_cpus=1, **NODE) for _ in range(3)]
        cluster.wait_for_nodes(timeout=60 * PATIENCE)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_cluster():
            yield {node.node_id: node for node in nodes}
    finally:
        cluster.shutdown()
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        _read_token()


def _read_token():
    """Ray reads how clusters are guarded when it is imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


class SpotNotice:
    """Takes the node of a replica away that has had its candidate for half its time."""

    def __init__(self, nodes):
        self.nodes, self.taken, self._ended = nodes, None, {}

    def __call__(self, record, study):
        now = time.monotonic()
        if self.taken is None:
            for pid, ended in self._ended.items():
                if 0.4 * LATENCY_S < now - ended < 0.8 * LATENCY_S:
                    self._take(pid)
                    break
        if record.result is not None:
            self._ended[record.result.replica] = now

    def _take(self, pid):
        (node,) = (it.node_id for it in shutdown._replicas(APP) if str(it.pid) == pid)
        (raylet,) = self.nodes[node].all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.taken = pid


def test_a_node_that_is_lost_costs_no_candidate(nodes, tmp_path):
    evaluator = {"engine": "transformers", "min_replicas": 3, "max_replicas": 3}
    spec = landscape_study(num_trials=24, evaluator=evaluator, sampler={"name": "random"})
    notice = SpotNotice(nodes)
    store = RunStore(tmp_path / "run").create(spec)
    with (
        fixed_latency_application(spec.evaluator, app=APP, latency_s=LATENCY_S),
        SearchStudy(spec, store) as study,
    ):
        placed = {it.node_id for it in shutdown._replicas(APP)}
        assert search_round(study, app=APP, on_record=notice)
        records = study.records

    assert placed == set(nodes), "a replica each"
    assert notice.taken is not None, "no replica was in the middle of a candidate"
    complete = [record for record in records if record.state == "COMPLETE"]
    lost = [record for record in records if record.state == "FAIL"]
    assert sum(record.role == "sampled" for record in complete) == spec.num_trials
    candidates = [record.candidate for record in complete]
    assert len(set(candidates)) == len(candidates), "no candidate counts twice"
    assert len(lost) == 1
    assert "replica was lost" in lost[0].reason
    assert lost[0].candidate in candidates, "what was lost is tried again"
    after = complete[-1].result.replica
    assert after != notice.taken
