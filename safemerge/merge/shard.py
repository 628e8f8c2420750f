"""Weight files written tensor by tensor, while the next tensors are merged."""

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.weights.header import header_bytes

_BUFFERS = 2
"""Tensors in memory at a time: one is merged while the other is written."""


class _Place(NamedTuple):
    handle: int
    offset: int


class ShardWriter:
    """Writes safetensors files of known content, in any order of tensors.

    Tensors are written by a thread of its own, from two buffers that are used over and over.
    Use as a context manager; leaving it waits until everything is written.

    Args:
        folder: Where files are made.
        files: Dtype and shape by tensor name, by file name.

    Raises:
        OSError: If a file cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]],
    ) -> None:
        self._handles: list[int] = []
        self._places: dict[str, _Place] = {}
        for file, shapes in files.items():
            head, offsets = header_bytes(shapes)
            handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._handles.append(handle)
            _write_at(handle, memoryview(head), 0)
            for name, offset in offsets.items():
                self._places[name] = _Place(handle, offset)
        self._free: list[Tensor] = []
        self._writing: deque[tuple[Future[None], Tensor]] = deque()
        self._taken: Tensor | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safemerge-write")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._writing and error is None:
                self._finish_one()
        finally:
            self._thread.shutdown(cancel_futures=True)
            for handle in self._handles:
                os.close(handle)

    def buffer(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return memory for the next tensor; it is the writer's again after `put`.

        Args:
            name: Tensor name; not used, so that this is a `Destination`.
            dtype: Its dtype.
            shape: Its shape.

        Returns:
            A tensor of any content.

        Raises:
            OSError: If an earlier tensor could not be written.
        """
        del name
        while len(self._writing) + 1 > _BUFFERS:
            self._finish_one()
        size = torch.Size(shape).numel() * dtype.itemsize
        held = self._free.pop() if self._free else torch.empty(0, dtype=torch.uint8)
        if held.numel() < size:
            held = torch.empty(size, dtype=torch.uint8)
        self._taken = held
        return held[:size].view(dtype).view(shape)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to its place, later.

        Args:
            name: A name of the files.
            tensor: What `buffer` gave, or any tensor that is not changed until this is closed.

        Raises:
            OSError: If an earlier tensor could not be written.
        """
        buffer = torch.empty(0, dtype=torch.uint8) if self._taken is None else self._taken
        self._taken = None
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        place = self._places[name]
        future = self._thread.submit(_write_at, place.handle, content, place.offset)
        self._writing.append((future, buffer))

    def _finish_one(self) -> None:
        future, buffer = self._writing.popleft()
        future.result()
        self._free.append(buffer)


def _write_at(handle: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], offset + done)
