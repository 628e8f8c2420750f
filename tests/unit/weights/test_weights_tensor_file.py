import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointChangedError, CheckpointError
from safemerge.weights import mapping_guard, tensor_file
from safemerge.weights.tensor_file import TensorFile

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(40_000).to(torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.tensor([True, False]),
    "e": torch.zeros(0, 3),
    "f": torch.arange(5).to(torch.float8_e4m3fn),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.fixture(params=["mapped", "copied"])
def way(request, monkeypatch):
    """Where a file can be guarded, and where it cannot, as without numba."""
    if request.param == "copied":
        monkeypatch.setattr(mapping_guard, "_compiled", lambda: None)
    elif mapping_guard._compiled() is None:
        pytest.skip("mappings cannot be guarded here")


@pytest.mark.usefixtures("way")
def test_tensors_are_those_that_safetensors_reads(path):
    opened, expected = TensorFile(path), load_file(path)
    for name, tensor in expected.items():
        found = opened.get_tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    opened.check_unchanged()


@pytest.mark.usefixtures("way")
def test_tensors_at_odd_addresses_are_read(tmp_path):
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    head = json.dumps(entries).encode()
    content = b"\x05" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)
    found = TensorFile(path).get_tensor("b")
    assert found.tolist() == [1.5, -2.0]
    assert found.data_ptr() % 4 == 0


@pytest.mark.usefixtures("way")
def test_views_outlive_the_file(path):
    found = TensorFile(path).get_tensor("b")
    gc.collect()
    assert torch.equal(found, TENSORS["b"])


@pytest.mark.usefixtures("way")
def test_a_cut_file_ends_in_an_error(path):
    opened = TensorFile(path)
    os.truncate(path, 500)

    def read():
        opened.get_tensor("b").sum()
        opened.check_unchanged()

    with pytest.raises(CheckpointChangedError, match=r"x\.safetensors: must stay .*got 500 bytes"):
        read()


@pytest.mark.usefixtures("way")
def test_a_file_cut_while_it_is_opened_is_named(path, monkeypatch):
    checked = tensor_file._check_valid

    def cut_after(path):
        checked(path)
        os.truncate(path, 8192)

    monkeypatch.setattr(tensor_file, "_check_valid", cut_after)
    with pytest.raises(CheckpointChangedError, match=r"must stay as .*got 8192 bytes"):
        TensorFile(path)


def test_a_file_cut_and_restored_while_it_was_read_stays_refused(path):
    if mapping_guard._compiled() is None:
        pytest.skip("mappings cannot be guarded here")
    opened, content, times = TensorFile(path), path.read_bytes(), path.stat()
    os.truncate(path, 500)
    assert float(opened.get_tensor("b")[-1]) == 0.0
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CheckpointChangedError):
        opened.check_unchanged()
    TensorFile(path).check_unchanged()


def test_an_unknown_tensor_is_named(path):
    with pytest.raises(CheckpointError, match=r"must hold the tensor asked for; got no 'z'"):
        TensorFile(path).get_tensor("z")


def test_files_are_closed_with_what_reads_them(path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        TensorFile(path).get_tensor("a")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


DYING = """
import os, pathlib, torch
from safemerge.weights.tensor_file import TensorFile
view = TensorFile(pathlib.Path({path!r})).get_tensor("b")
os.truncate({path!r}, 500)
print(float(view.float().sum()))
"""


def test_a_process_that_reads_a_cut_file_lives_on(path):
    done = subprocess.run(
        [sys.executable, "-c", DYING.format(path=str(path))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
