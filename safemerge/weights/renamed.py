"""A checkpoint under the tensor names of another one of the same model."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from safemerge.weights.checkpoint import Checkpoint

_PREFIX = re.compile(r"(?:\w+\.)+")


class RenamedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are given under other names.

    Args:
        source: The checkpoint as stored.
        stored: Stored name by the name it is given under.
    """

    def __init__(self, source: Checkpoint, stored: Mapping[str, str]) -> None:
        self.source = source
        self.folder = source.folder
        self.config = source.config
        self._stored = dict(stored)
        self._names = tuple(sorted(self._stored))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a tensor is given under, sorted."""
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.source.shape(self._stored.get(name, name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""
        return self.source.dtype(self._stored.get(name, name))

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return the source's tensor."""
        return self.source.tensor(self._stored.get(name, name))

    def fetch(self, name: str) -> None:
        """Bring the source's tensor into memory."""
        self.source.fetch(self._stored.get(name, name))

    def let_go(self, name: str) -> None:
        """Let the source's tensor go."""
        self.source.let_go(self._stored.get(name, name))

    def check_unchanged(self) -> None:
        """Refuse a source whose files are no longer those that were opened."""
        self.source.check_unchanged()


def under_names_of(base: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint under the base's names, where a prefix is all that differs.

    A model saved without its head has no ``transformer.`` or ``model.`` before its names, as
    GPT-2 and BLOOM are published; transformers adds it when it loads them and writes it when it
    saves them. What the prefix is shows in the name of the input embedding.

    Args:
        base: Checkpoint whose names are wanted.
        checkpoint: Checkpoint of the same model.

    Returns:
        The checkpoint itself where its input embedding has the base's name or another one than
        a prefix explains.
    """
    wanted, found = base.input_embedding, checkpoint.input_embedding
    if wanted is None or found is None or wanted == found:
        return checkpoint
    names = {}
    for name in checkpoint.names:
        if found.endswith(f".{wanted}") and _PREFIX.fullmatch(found.removesuffix(wanted)):
            renamed = name.removeprefix(found.removesuffix(wanted))
        elif wanted.endswith(f".{found}") and _PREFIX.fullmatch(wanted.removesuffix(found)):
            renamed = f"{wanted.removesuffix(found)}{name}"
        else:
            return checkpoint
        names[renamed if renamed in base else name] = name
    return RenamedCheckpoint(checkpoint, names)
