"""One safetensors file, open: tensors as views of a guarded memory map, or as copies."""

import mmap
import os
import weakref
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safemerge.errors import CheckpointChangedError, CheckpointError
from safemerge.weights import mapping_guard
from safemerge.weights.header import TensorEntry, read_header, read_offsets
from safemerge.weights.watched_file import WatchedFile


class TensorFile:
    """A safetensors file that is noticed to change.

    Where `mapping_guard` can guard it the file is mapped privately: processes of a node share the
    page cache, and nothing is copied. Elsewhere each tensor is read into memory of its own. What
    was read is the file's only if `check_unchanged` finds it unchanged afterwards.

    Args:
        path: A ``.safetensors`` file.

    Raises:
        CheckpointError: See `read_header`.
        CheckpointChangedError: If it changes while it is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watched = WatchedFile(path)
        self.entries: dict[str, TensorEntry] = read_header(path)
        """What the header says, by tensor name."""
        _check_valid(path)
        self._offsets = read_offsets(path)
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        closed = weakref.finalize(self, os.close, self._handle)
        # Header and handle are of one file, or this is not reached.
        self._watched.check_unchanged()
        self._map = self._guarded_map(self._watched.identity.size)
        if self._map is not None:
            closed()
        self.check_unchanged()

    def get_tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor; it must not be written to.

        Raises:
            CheckpointError: For an unknown name.
            CheckpointChangedError: If the file was cut.
        """
        if name not in self.entries:
            raise CheckpointError(
                f"{self.path}: must hold the tensor asked for; got no '{name}'. Check that the "
                f"file is of the same model."
            )
        dtype, shape, num_bytes = self.entries[name]
        if not num_bytes:
            return torch.empty(shape, dtype=dtype)
        if self._map is None:
            return self._read(num_bytes, self._offsets[name]).view(dtype).view(shape)
        content = torch.frombuffer(
            self._map, dtype=torch.uint8, count=num_bytes, offset=self._offsets[name]
        )
        if content.data_ptr() % dtype.itemsize:
            content = content.clone()
        return content.view(dtype).view(shape)

    def check_unchanged(self) -> None:
        """Refuse the file if it is not what was opened; see `WatchedFile`.

        Raises:
            CheckpointChangedError: If it changed, is gone, or cannot be read.
        """
        self._watched.check_unchanged()
        if self._map is not None and mapping_guard.was_cut(self._start):
            raise CheckpointChangedError(
                f"{self.path}: must stay as it was when it was opened; got it cut while it was "
                f"read. Start again."
            )

    def _guarded_map(self, size: int) -> mmap.mmap | None:
        """Map the file privately; None where it cannot be guarded."""
        mapped = mmap.mmap(self._handle, size, access=mmap.ACCESS_COPY)
        self._start = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()
        if not mapping_guard.guard(self._start, size):
            return None
        # NOTE: never at exit, when other threads may still read.
        weakref.finalize(mapped, mapping_guard.release, self._start).atexit = False
        return mapped

    def _read(self, num_bytes: int, offset: int) -> Tensor:
        content = torch.empty(num_bytes, dtype=torch.uint8)
        place, done = content.numpy().data, 0
        while done < num_bytes:
            count = os.preadv(self._handle, [place[done:]], offset + done)
            if count == 0:
                self.check_unchanged()
                raise CheckpointChangedError(
                    f"{self.path}: must be as long as its header says; got its end at byte "
                    f"{offset + done}. Copy or download the file again."
                )
            done += count
        return content


def _check_valid(path: Path) -> None:
    """Let safetensors check what `read_header` does not, overlaps and gaps among others."""
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: must be a valid safetensors file; got: {error}. "
            f"Copy or download the file again."
        ) from error
