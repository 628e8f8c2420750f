import pytest
from ray.autoscaler._private.util import validate_config

from safemerge.testing.growing_cluster import HEAD, WORKER, autoscaler_config


@pytest.fixture
def config():
    return autoscaler_config(port=6379, max_workers=3, cpus=2, idle_s=30, head_memory=2**30)


def test_ray_takes_the_configuration(config):
    validate_config(config)


def test_nodes_come_from_nothing_and_go_when_idle(config):
    types = config["available_node_types"]
    assert types[HEAD]["resources"] == {"CPU": 0, "memory": 2**30}
    assert types[WORKER]["resources"]["CPU"] == 2
    assert (types[WORKER]["min_workers"], types[WORKER]["max_workers"]) == (0, 3)
    assert config["idle_timeout_minutes"] == 0.5
    # All nodes are on one machine: by their address the autoscaler would take them for one.
    assert config["provider"]["use_node_id_as_ip"]
