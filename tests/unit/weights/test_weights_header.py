import json

import pytest
import torch
from safetensors.torch import save_file

from safemerge.errors import CheckpointError
from safemerge.weights.header import read_header


def write(path, header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_header_gives_dtype_shape_and_size(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    assert entries["a"] == (torch.float32, (2, 3), 24)
    assert entries["b"] == (torch.bfloat16, (4,), 8)
    assert set(entries) == {"a", "b"}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: .*No such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"1234567", (100).to_bytes(8, "little") + b"{}"])
def test_a_header_longer_than_the_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"file of {len(content)} bytes .truncated"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("header", [b"{nonsense", b"\xff\xfe\xfd", b"[1, 2]"])
def test_a_header_that_is_no_json_object_is_refused(tmp_path, header):
    with pytest.raises(CheckpointError, match="the header must be"):
        read_header(write(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize(
    ("length", "words"), [(12, "must hold 24 bytes; got 12 .truncated"), (30, "trailing bytes")]
)
def test_a_data_section_of_the_wrong_length_is_refused(tmp_path, length, words):
    header = {"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}
    with pytest.raises(CheckpointError, match=words):
        read_header(write(tmp_path / "x.safetensors", header, bytes(length)))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [6]}, "needs data_offsets"),
        ({"shape": [6], "data_offsets": [0, 24]}, "needs dtype, shape"),
        ({"dtype": "F32", "shape": [7], "data_offsets": [0, 24]}, r"24 bytes for F32 \(7,\)"),
        ({"dtype": "F4", "shape": [6], "data_offsets": [0, 24]}, "dtype must be one of"),
    ],
)
def test_a_damaged_entry_is_refused(tmp_path, entry, words):
    with pytest.raises(CheckpointError, match=words):
        read_header(write(tmp_path / "x.safetensors", {"a": entry}, bytes(24)))
