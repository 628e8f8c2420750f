import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from safemerge.engines.core_claim import CoreClaim

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two CPU cores")

HOLD = (
    "from safemerge.engines.core_claim import CoreClaim\n"
    "claim = CoreClaim(1)\n"
    "print(claim.cpu_ids, flush=True)\n"
    "input()\n"
)


@pytest.fixture(autouse=True)
def _own_lock_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def claim():
    """Claim cores here; given back at the end."""
    made = []

    def claim(count):
        made.append(CoreClaim(count))
        return made[-1]

    yield claim
    for item in made:
        item.release()


@pytest.fixture
def hold():
    """Claim one core in another process; the process and what it got."""
    processes = []

    def hold():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


pytestmark = pytest.mark.skipif(not CORES, reason="no processor affinity on this platform")


@needs_two_cores
def test_two_processes_get_disjoint_cores_of_those_allowed(hold, claim):
    _, theirs = hold()
    ours = claim(1).cores
    assert {int(theirs)}.isdisjoint(ours)
    assert {int(theirs), *ours} <= set(CORES)


def test_a_killed_process_gives_its_core_back(hold, claim):
    process, theirs = hold()
    assert claim(len(CORES)).cores == ()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert claim(len(CORES)).cores == tuple(CORES)
    assert int(theirs) in CORES


def test_too_few_free_cores_give_none_and_hold_none(claim):
    refused = claim(len(CORES) + 1)
    assert (refused.cores, refused.cpu_ids) == ((), None)
    assert claim(len(CORES)).cores == tuple(CORES)


def test_released_cores_can_be_claimed_again(claim):
    first = claim(len(CORES))
    assert claim(1).cores == ()
    first.release()
    assert first.cpu_ids is None
    assert claim(len(CORES)).cores == tuple(CORES)


def test_the_binding_list_names_every_core(claim):
    assert claim(len(CORES)).cpu_ids == ",".join(str(core) for core in CORES)


def test_of_claims_made_at_once_one_gets_all_the_cores(claim, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for _ in range(25):
        together = threading.Barrier(4)

        def make(_, together=together):
            together.wait()
            return claim(16)

        with ThreadPoolExecutor(max_workers=4) as pool:
            made = list(pool.map(make, range(4)))
        assert sorted(len(item.cores) for item in made) == [0, 0, 0, 16]
        for item in made:
            item.release()


def test_without_processor_affinity_nothing_is_claimed(claim, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (claim(1).cores, claim(1).cpu_ids) == ((), None)
    assert list(tmp_path.iterdir()) == []
