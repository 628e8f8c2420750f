"""Replicas that come with the queue and go without it, with engines of a fixed latency."""

import sys
import threading
import time

import pytest
from ray import cloudpickle, serve

from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.request import DEPLOYMENT, Request
from safemerge.distributed.search import search_round
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.fixed_latency import FixedLatencyReplica, fixed_latency_application
from safemerge.testing.landscapes import landscape_study
from tests.integration.driving import PATIENCE, wait_until

pytestmark = pytest.mark.ray

APP = "safemerge-scaled"
START_S = 6.0
"""As long as a replica takes to start; candidates take a fraction of it."""
LONG_S = 45.0
"""Longer than the reports of the handles (10 s) and the delay of scaling down together."""

# Ray's processes can't import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class UnequalReplica(FixedLatencyReplica):
    """Answers the report split at once if it was the first, slowly if it came later."""

    async def score(self, recipe, split):
        later = serve.get_replica_context().rank.rank > 0
        if split == "report":
            self._latency_s = LONG_S if later else 0.1
        return await super().score(recipe, split)


@pytest.fixture(scope="module")
def spec():
    evaluator = {
        "engine": "transformers",
        "min_replicas": 1,
        "max_replicas": 3,
        "cpus_per_replica": 0.1,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 2.0,
        "timeout_s": 60 * PATIENCE,
    }
    return landscape_study(num_trials=60, evaluator=evaluator, sampler={"name": "random"})


@pytest.fixture(scope="module")
def replicas(spec):
    with (
        ray_cluster(num_cpus=2),
        fixed_latency_application(
            spec.evaluator, app=APP, latency_s=0.7, start_s=START_S, replica=UnequalReplica
        ) as application,
    ):
        yield application


def states():
    """How many replicas run, start and stop."""
    deployment = serve.status().applications[APP].deployments[DEPLOYMENT]
    return {
        str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items()
    }


def running():
    return states().get("RUNNING", 0)


def test_replicas_come_with_the_queue_and_go_without_it(replicas, spec, tmp_path):
    seen, over = [], threading.Event()

    def watch():
        while not over.wait(0.2):
            seen.append((time.monotonic(), states()))

    finished = []
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert running() == 1
    store = RunStore(tmp_path / "run").create(spec)
    with SearchStudy(spec, store) as study:
        assert search_round(study, app=APP, on_record=lambda *_: finished.append(time.monotonic()))
        records = study.records
    wait_until(lambda: running() == 1 and states() == {"RUNNING": 1}, within_s=120)
    over.set()
    watcher.join()

    assert max(found.get("RUNNING", 0) for _, found in seen) == 3
    starting = [moment for moment, found in seen if found.get("STARTING")]
    meanwhile = [moment for moment in finished if min(starting) < moment < max(starting)]
    assert meanwhile, "the search must not wait for replicas that start"
    complete = [record for record in records if record.state == "COMPLETE"]
    assert len(complete) == len(records), "no candidate may be cut, or tried again"
    assert sum(record.role == "sampled" for record in complete) == spec.num_trials
    assert len({record.result.replica for record in complete}) == 3


def test_a_replica_that_is_scaled_down_finishes_its_candidate(replicas, spec, tmp_path):
    with SearchStudy(spec, RunStore(tmp_path / "run").create(spec)) as study:
        recipe = study.ask().recipe.model_dump_json(by_alias=True)
    requests, stopping = [], []

    def ask():
        response = replicas._handle.score.remote(recipe, "report")
        requests.append(Request(response, timeout_s=60 * PATIENCE, what="evaluator"))

    def all_run():
        # The first replica answers at once: more than three wait until all of them are up.
        while sum(request.wait(0.01) is None for request in requests) < 4:
            ask()
        return running() == 3

    wait_until(all_run, within_s=120)
    answers = []
    for request in requests:
        while (answer := request.wait(0.2)) is None:
            stopping.append(states().get("STOPPING", 0))
        answers.append(answer)

    assert any(stopping), "a replica must be stopped while it answers"
    assert len(answers) == len(requests)
