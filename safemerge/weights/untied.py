"""A checkpoint with tied embeddings shown with an output head of its own."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint


def with_own_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that says that embeddings are not tied, in the text model as well."""
    changed = {**config, "tie_word_embeddings": False}
    if isinstance(changed.get("text_config"), dict):
        changed["text_config"] = with_own_head(changed["text_config"])
    return changed


def untie(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """Show every checkpoint with a head of its own, if some but not all have one.

    The merge of a tied base with an expert whose head was trained apart, or whose embedding
    was, has a head of its own: the base's is its input embedding, from which it starts.

    Args:
        checkpoints: Checkpoints by name.

    Returns:
        The same, or with `UntiedView` of those that are tied.
    """
    tied = {name for name, checkpoint in checkpoints.items() if _can_untie(checkpoint)}
    if not tied or not any(_has_own_head(checkpoint) for checkpoint in checkpoints.values()):
        return checkpoints
    return {
        name: UntiedView(checkpoint) if name in tied else checkpoint
        for name, checkpoint in checkpoints.items()
    }


def _has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether a model is untied, and its head is not just a copy of its embedding."""
    embedding = checkpoint.input_embedding
    if checkpoint.tied_embeddings or OUTPUT_HEAD not in checkpoint or embedding is None:
        return False
    return not torch.equal(checkpoint.tensor(OUTPUT_HEAD), checkpoint.tensor(embedding))


def _can_untie(checkpoint: Checkpoint) -> bool:
    return checkpoint.tied_embeddings and checkpoint.input_embedding is not None


class UntiedView(Checkpoint):
    """A checkpoint with tied embeddings, its output head given as a tensor of its own.

    Args:
        source: The checkpoint as stored; its head is its input embedding.
    """

    def __init__(self, source: Checkpoint) -> None:
        assert source.input_embedding is not None, "asked only of models with an embedding"
        self.source = source
        self.folder = source.folder
        self.config = with_own_head(source.config)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, the head's among them, sorted."""
        return tuple(sorted({*self.source.names, OUTPUT_HEAD}))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.source.shape(self._stored(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""
        return self.source.dtype(self._stored(name))

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor; the head is the input embedding."""
        return self.source.tensor(self._stored(name))

    def check_unchanged(self) -> None:
        """Refuse a source whose files are no longer those that were opened."""
        self.source.check_unchanged()

    def fetch(self, name: str) -> None:
        """Bring the source's tensor into memory."""
        self.source.fetch(self._stored(name))

    def release(self, name: str) -> None:
        """Let the source's tensor go."""
        self.source.release(self._stored(name))

    def _stored(self, name: str) -> str:
        return (self.source.input_embedding or name) if name == OUTPUT_HEAD else name
