"""Inputs of a merge on a device: copied there one tensor ahead, or kept between candidates."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from safemerge.config.study import ModelPlace
from safemerge.weights.checkpoint import Checkpoint


class DeviceInputs:
    """Where a device gets the inputs of merges from, and what it keeps of them.

    A thread reads a tensor's inputs into page-locked memory, and a stream of its own copies them
    from there, while the tensor before is merged: neither the processor's reading nor the bus
    waits for the merge. Beyond what is kept, the inputs of two tensors are on the device.
    Weights that do not change between candidates are the same bytes wherever they are kept, so
    merges are too.

    Args:
        device: Where tensors are merged; on a CPU inputs are used where they are.
        keep: Where inputs stay once they were read: nowhere (``mapped``: in the page cache, as
            the kernel likes), in ``pinned`` host memory, or on the ``device``.
    """

    def __init__(self, device: torch.device | str, *, keep: ModelPlace = "mapped") -> None:
        self.device = torch.device(device)
        self.keep = keep
        # By the open checkpoint: what is shown otherwise, or interpolated, is another one.
        self._kept: WeakKeyDictionary[Checkpoint, dict[str, Tensor]] = WeakKeyDictionary()
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def ahead(
        self, checkpoints: Mapping[str, Checkpoint], reads: Mapping[str, Sequence[str]]
    ) -> "InputsAhead":
        """Return a merge's inputs, to be copied one tensor ahead; a context manager.

        Args:
            checkpoints: Open checkpoints by model name.
            reads: Models that each tensor's merge reads.
        """
        return InputsAhead(self, checkpoints, reads)

    def copy(self, checkpoint: Checkpoint, name: str) -> Tensor:
        """Return one tensor on the device; on CUDA the copy may still be under way.

        Its work is on the stream that is current here; `InputsAhead` waits for it.
        """
        kept = self._kept.get(checkpoint, {}).get(name)
        if kept is None:
            kept = checkpoint.tensor(name)
            if self._stream is not None:
                kept = kept.pin_memory()
            if self.keep == "pinned":
                self._kept.setdefault(checkpoint, {})[name] = kept
        there = kept.to(self.device, non_blocking=True)
        if self.keep == "device":
            self._kept.setdefault(checkpoint, {})[name] = there
        return there

    def copies(
        self, checkpoints: Sequence[Checkpoint], name: str
    ) -> tuple[list[Tensor], "torch.cuda.Event | None"]:
        """Begin to copy a tensor of some checkpoints.

        Returns:
            The tensors, and the event after which they are there; None for now.
        """
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            found = [self.copy(checkpoint, name) for checkpoint in checkpoints]
        return found, None if self._stream is None else self._stream.record_event()


class InputsAhead:
    """The inputs of one merge on a device; see `DeviceInputs.ahead`."""

    def __init__(
        self,
        inputs: DeviceInputs,
        checkpoints: Mapping[str, Checkpoint],
        reads: Mapping[str, Sequence[str]],
    ) -> None:
        self._inputs, self._checkpoints, self._reads = inputs, checkpoints, reads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safemerge-copy")
        self._copied: dict[str, Future[tuple[list[Tensor], torch.cuda.Event | None]]] = {}

    def __enter__(self) -> "InputsAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._copied.clear()

    def fetch(self, names: Sequence[str]) -> None:
        """Begin to copy the inputs of some tensors; those begun before are not copied again."""
        for name in names:
            if name not in self._copied:
                models = [self._checkpoints[model] for model in self._reads[name]]
                self._copied[name] = self._thread.submit(self._inputs.copies, models, name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a tensor's inputs by model name, ready for the current stream.

        Raises:
            CheckpointError: If one cannot be read.
        """
        self.fetch([name])
        found, there = self._copied[name].result()
        if there is not None:
            stream = torch.cuda.current_stream(self._inputs.device)
            stream.wait_event(there)
            for tensor in found:
                # The copying stream must not get their memory back before the merge has read it.
                tensor.record_stream(stream)
        return dict(zip(self._reads[name], found, strict=True))

    def release(self, name: str) -> None:
        """Let go of a tensor's inputs, but for those that are kept."""
        del self._copied[name]
