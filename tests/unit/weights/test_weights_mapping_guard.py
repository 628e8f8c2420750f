import faulthandler
import gc
import mmap
import os
import signal
import subprocess
import sys

import pytest
import torch

from safemerge.weights import mapping_guard

pytestmark = pytest.mark.skipif(
    mapping_guard._compiled() is None, reason="mappings cannot be guarded here"
)
PAGES = 4


@pytest.fixture
def mapping(tmp_path):
    """A file of four pages of ones, and its mapping."""
    path = tmp_path / "file"
    path.write_bytes(b"\x01" * PAGES * mmap.PAGESIZE)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return path, torch.frombuffer(mapped, dtype=torch.uint8)


def guarded(tensor):
    assert mapping_guard.guard(tensor.data_ptr(), tensor.numel())
    return tensor.data_ptr()


def test_pages_that_a_file_lost_read_as_zeros(mapping):
    path, tensor = mapping
    start = guarded(tensor)
    assert not mapping_guard.was_cut(start)
    os.truncate(path, mmap.PAGESIZE)
    assert int(tensor.sum()) == mmap.PAGESIZE
    assert mapping_guard.was_cut(start)
    mapping_guard.release(start)
    assert not mapping_guard.was_cut(start)


def test_mappings_are_told_apart(mapping, tmp_path):
    path, tensor = mapping
    first = guarded(tensor)
    (tmp_path / "other").write_bytes(b"\x01" * mmap.PAGESIZE)
    with (tmp_path / "other").open("rb") as file:
        other = torch.frombuffer(
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8
        )
    second = guarded(other)
    os.truncate(path, 0)
    assert int(tensor.sum()) == 0
    assert mapping_guard.was_cut(first)
    assert not mapping_guard.was_cut(second)
    assert int(other.sum()) == mmap.PAGESIZE
    for start in (first, second):
        mapping_guard.release(start)


def test_a_handler_that_another_library_put_in_its_place_is_replaced_again(mapping):
    path, tensor = mapping
    faulthandler.enable()
    try:
        start = guarded(tensor)
        os.truncate(path, 0)
        assert int(tensor.sum()) == 0
    finally:
        faulthandler.disable()
        mapping_guard.release(start)
        gc.collect()


UNGUARDED = """
import mmap, os, torch
from safemerge.weights import mapping_guard
def mapped(path):
    with open(path, "rb") as file:
        return torch.frombuffer(
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8
        )
here, other = (mapped({path!r}) for _ in range(2))
assert mapping_guard.guard(here.data_ptr(), here.numel())
os.truncate({path!r}, 0)
assert int(here.sum()) == 0
other.sum()
"""


def test_what_is_not_guarded_ends_as_it_would(mapping):
    path, _ = mapping
    done = subprocess.run(
        [sys.executable, "-c", UNGUARDED.format(path=str(path))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGBUS, done.stderr
