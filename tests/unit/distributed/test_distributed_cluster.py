"""Joining or starting Ray, and leaving it, without a cluster."""

import signal

import pytest
import ray

from safemerge.distributed.cluster import ray_cluster
from safemerge.errors import PreflightError


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "local Ray must answer; got: too slow. Try again"),
        ("10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379 must answer; got: too slow. Start the"),
    ],
)
@pytest.mark.parametrize("kind", [ConnectionError, Exception])
def test_a_cluster_that_does_not_answer_is_told_in_one_line(no_ray, address, told, kind):
    if address is not None:
        no_ray.setenv("RAY_ADDRESS", address)

    def fail(**_):
        raise kind("too slow.\nmore")

    no_ray.setattr(ray, "init", fail)
    with pytest.raises(PreflightError, match=told) as caught, ray_cluster():
        pass
    assert "\n" not in str(caught.value)


def test_ctrl_c_while_ray_ends_leaves_no_process_behind(no_ray):
    ended = []

    def end():
        signal.raise_signal(signal.SIGINT)
        ended.append(True)

    no_ray.setattr(ray, "shutdown", end)
    handler = signal.getsignal(signal.SIGINT)
    with ray_cluster():
        pass
    assert ended == [True]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupted_block_ends_the_cluster(no_ray):
    ended = []
    no_ray.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(KeyboardInterrupt), ray_cluster():
        raise KeyboardInterrupt
    assert ended == [True]
