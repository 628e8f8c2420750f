"""A worker computes where its file says, with the threads that it was given."""

import pytest
import torch

from safemerge.config.stage import WorkersSpec
from safemerge.training.device import claim_device


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (2.9, 2)])
def test_a_cpu_worker_takes_as_many_threads_as_it_has_whole_cores(cpus, threads):
    assert claim_device(WorkersSpec(cpus_per_worker=cpus)) == "cpu"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("gpus", "is_there", "device"), [(1, True, "cuda"), (1, False, "cpu"), (0, True, "cpu")]
)
def test_a_gpu_is_taken_where_it_was_given_and_is_there(gpus, is_there, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert claim_device(WorkersSpec(gpus_per_worker=gpus)) == device
