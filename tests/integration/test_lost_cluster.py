"""A local cluster whose raylet or head process is killed: one message, and no process left."""

import subprocess
import sys

import pytest

from tests.integration.driving import PATIENCE, marked, own_workers, wait_until

pytestmark = pytest.mark.ray

_DRIVER = """
import os, signal, sys, time
from safemerge.distributed import cluster
with cluster.ray_cluster():
    import ray
    ray.get(ray.remote(lambda: 1).options(num_cpus=0).remote())
    os.kill(cluster._ray_processes()[sys.argv[1]], signal.SIGKILL)
    ray.get(ray.remote(lambda: time.sleep(90)).remote())
print("went on")
"""


@pytest.mark.parametrize("kind", ["raylet", "gcs_server"])
def test_a_lost_local_cluster_is_one_message(kind, monkeypatch):
    monkeypatch.setenv("SAFEMERGE_TEST_MARK", marked(f"lost-{kind}"))

    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, kind],
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"safemerge: local Ray: its process '{kind}' was killed")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    wait_until(lambda: not own_workers(marked(f"lost-{kind}")), within_s=60)
