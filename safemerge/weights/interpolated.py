"""A checkpoint between two others: what training in between is estimated with."""

import torch
from jaxtyping import Float32
from torch import Tensor

from safemerge.weights.checkpoint import Checkpoint


class InterpolatedCheckpoint(Checkpoint):
    """The straight line between two checkpoints of one model, at one place.

    A tensor is given in float32 as ``(1 - share) * low + share * high``, computed when it is
    asked for; ends that are adapters are made dense first, so products of factors are
    interpolated, and not factors.

    Args:
        low: Checkpoint at share 0; gives config and folder.
        high: Checkpoint at share 1, with the same tensors.
        share: Place on the line, in [0, 1].
    """

    def __init__(self, low: Checkpoint, high: Checkpoint, share: float) -> None:
        self.low, self.high, self.share = low, high, share
        self.folder = low.folder
        self.config = low.config

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted."""
        return self.low.names

    def __contains__(self, name: object) -> bool:
        return name in self.low

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.low.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives: float32."""
        return torch.float32

    def tensor(self, name: str) -> Float32[Tensor, "..."]:
        """Return a tensor between the two, new memory."""
        low, high = (end.tensor(name).float() for end in (self.low, self.high))
        return torch.lerp(low, high, self.share)

    def fetch(self, name: str) -> None:
        """Bring both ends' tensors into memory."""
        self.low.fetch(name)
        self.high.fetch(name)

    def release(self, name: str) -> None:
        """Let both ends' tensors go."""
        self.low.release(name)
        self.high.release(name)

    def check_unchanged(self) -> None:
        """Refuse ends whose files are no longer those that were opened."""
        self.low.check_unchanged()
        self.high.check_unchanged()
