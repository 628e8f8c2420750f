import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safemerge.weights import pages
from safemerge.weights.checkpoint import open_safetensors, read_tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="maps and advice are Linux's")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(500_000.0), "b": torch.ones(7)}, path)
    return path


def resident(tensor):
    """Kilobytes of the mapping that holds a tensor that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(part, 16) for part in first.split("-"))
            inside = start <= tensor.data_ptr() < stop
        elif inside and first == "Rss:":
            found += int(line.split()[1])
    return found


def test_pages_are_fetched_and_released_and_read_again(file):
    opened = open_safetensors(file)
    tensor = read_tensor(opened, file, "a")
    mappings = pages.mappings_of(file)
    assert len(mappings) == 1
    pages.fetch(tensor)
    assert resident(tensor) >= 1900
    pages.release(tensor, mappings)
    assert resident(tensor) <= 100
    assert torch.equal(tensor, torch.arange(500_000.0))


def test_memory_that_is_no_files_is_left_alone(file):
    opened = open_safetensors(file)
    mappings = pages.mappings_of(file)
    own = read_tensor(opened, file, "a").clone()
    pages.fetch(own)
    pages.release(own, mappings)
    assert torch.equal(own, torch.arange(500_000.0))
    pages.release(own[:3], mappings)
    pages.release(torch.empty(0), mappings)


def test_a_file_that_is_not_mapped_has_no_mappings(tmp_path):
    (tmp_path / "file").write_text("")
    assert pages.mappings_of(tmp_path / "file") == ()
