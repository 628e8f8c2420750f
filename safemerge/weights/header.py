"""Read and check the header of a safetensors file before any tensor is touched.

The format is 8 bytes of header length (little endian), a JSON header with dtype, shape and
byte range of every tensor, then the bytes. Checking it here gives messages that name the file
and the remedy, where the library's own errors name neither.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemerge.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8
_COPY_AGAIN = "Copy or download the file again."


class TensorEntry(NamedTuple):
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    num_bytes: int


def header_bytes(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> tuple[bytes, dict[str, int]]:
    """Return a file's beginning, up to its first tensor, and where each tensor goes.

    Wider dtypes come first, so that every tensor lies at a multiple of its dtype's size.

    Args:
        shapes: Dtype and shape by tensor name.

    Returns:
        Length and header, padded to eight bytes; offset of each tensor's bytes in the file.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for name in sorted(shapes, key=lambda name: -shapes[name][0].itemsize):
        dtype, shape = shapes[name]
        places[name], end = end, end + math.prod(shape) * dtype.itemsize
        described[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return head, {name: len(head) + place for name, place in places.items()}


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name, after checking that it is whole.

    Args:
        path: A ``.safetensors`` file.

    Returns:
        Entry by tensor name, in the header's order.

    Raises:
        CheckpointError: If the file is missing, shorter than its header or its byte ranges
            say, not JSON where the header must be, or of an unknown dtype.
    """
    header, start, size = _read(path)
    _check_ranges(path, header, available=size - start)
    return {name: _entry(path, name, item) for name, item in header.items()}


def read_offsets(path: Path) -> dict[str, int]:
    """Return where the bytes of each tensor begin in a file that `read_header` has checked.

    Args:
        path: A ``.safetensors`` file.

    Returns:
        Offset from the beginning of the file, by tensor name.

    Raises:
        CheckpointError: As `read_header`.
    """
    header, start, _ = _read(path)
    return {name: start + int(item["data_offsets"][0]) for name, item in header.items()}


def _read(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header without metadata, where the data begins, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            text = file.read(length) if length <= size else b""
    except OSError as error:
        raise CheckpointError(
            f"{path}: must be a readable safetensors file; got: {error.strerror}. {_COPY_AGAIN}"
        ) from error
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: the header must lie within the file; got a header of {length} bytes in a "
            f"file of {size} bytes (truncated, or not safetensors). {_COPY_AGAIN}"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header must be JSON; got {text[:20]!r} (corrupt). {_COPY_AGAIN}"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: the header must be a JSON object; got {type(header).__name__}. {_COPY_AGAIN}"
        )
    header.pop("__metadata__", None)
    return header, _LENGTH_BYTES + length, size


def _check_ranges(path: Path, header: dict[str, Any], *, available: int) -> None:
    try:
        ends = [int(item["data_offsets"][1]) for item in header.values()]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path}: every tensor needs data_offsets; got none for some (corrupt). {_COPY_AGAIN}"
        ) from error
    needed = max(ends, default=0)
    if needed != available:
        raise CheckpointError(
            f"{path}: the data section must hold {needed} bytes; got {available} "
            f"({'truncated' if available < needed else 'trailing bytes'}). {_COPY_AGAIN}"
        )


def _entry(path: Path, name: str, item: dict[str, Any]) -> TensorEntry:
    try:
        code, shape = str(item["dtype"]), tuple(int(length) for length in item["shape"])
        begin, end = (int(offset) for offset in item["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}, tensor '{name}': needs dtype, shape and data_offsets; got {item!r} "
            f"(corrupt). {_COPY_AGAIN}"
        ) from error
    if code not in DTYPES:
        raise CheckpointError(
            f"{path}, tensor '{name}': dtype must be one of {', '.join(DTYPES)}; got {code!r}. "
            f"Convert the checkpoint to float32, bfloat16 or float16."
        )
    dtype = DTYPES[code]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}, tensor '{name}': the byte range must fit shape and dtype; got "
            f"{end - begin} bytes for {code} {shape} (corrupt). {_COPY_AGAIN}"
        )
    return TensorEntry(dtype, shape, end - begin)
