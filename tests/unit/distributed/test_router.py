import asyncio
import importlib

import pytest

from safemerge.distributed import router
from safemerge.distributed.router import FreeReplicaRouter, routing


@pytest.fixture
def free_replica_router():
    return FreeReplicaRouter.__new__(FreeReplicaRouter)


def chosen(free_replica_router, replicas):
    (group,) = asyncio.run(free_replica_router.choose_replicas(replicas))
    return group


def test_every_replica_of_a_few_is_asked(free_replica_router):
    assert sorted(chosen(free_replica_router, [*range(5)])) == [*range(5)]


def test_of_many_replicas_others_are_asked_each_time(free_replica_router):
    first, second = (chosen(free_replica_router, [*range(500)]) for _ in range(2))
    assert len(set(first)) == len(set(second)) == router.ASKED_AT_ONCE
    assert set(first) != set(second)


def test_clients_find_the_router_by_its_name():
    module, _, name = routing().request_router_class.rpartition(".")
    assert getattr(importlib.import_module(module), name) is FreeReplicaRouter


def test_a_serve_that_no_longer_asks_the_router_is_said_once(monkeypatch, caplog):
    router._check_serve_asks.cache_clear()
    monkeypatch.setattr(router, "PowerOfTwoChoicesRequestRouter", object)
    routing()
    routing()
    router._check_serve_asks.cache_clear()
    (record,) = caplog.records
    assert "does not ask which replicas to try" in record.getMessage()


def test_the_serve_that_is_installed_asks_the_router(caplog):
    router._check_serve_asks.cache_clear()
    routing()
    assert not caplog.records
