"""Layers of several checkpoints, one above the other, seen as one checkpoint."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint, layer_of
from safemerge.weights.kind import module_kind

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_SHARED = (
    ("model_type",),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("num_attention_heads", "n_head"),
    ("num_key_value_heads",),
    ("head_dim",),
    ("vocab_size",),
    ("tie_word_embeddings",),
    ("num_experts", "num_local_experts"),
)
"""Settings, by all of their names, that models of one stack must share."""

_BY_NUMBER = ("mlp_only_layers", "first_k_dense_replace", "cross_attention_layers")
"""Settings that name layers by number, which a stack would change in silence."""

_BY_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers")
"""Settings that list something for each layer."""

_NUMBER = re.compile(r"((?:^|\.)(?:layers|h)\.)\d+(\.)")


class Layers(NamedTuple):
    """Some layers of a checkpoint."""

    checkpoint: Checkpoint
    first: int
    last: int
    """Inclusive."""


class StackedCheckpoint(Checkpoint):
    """Layers of several checkpoints, numbered anew from below.

    Tensors before the layers, config and folder are the first checkpoint's; tensors after the
    layers the last one's. Of the config the number of layers is changed, and with it the lists
    that have an item for each layer.

    Args:
        layers: What is stacked, from below; checkpoints may come again.
        where: Place named in messages.

    Raises:
        CheckpointMismatchError: If shapes or kinds of the models differ.
        CheckpointError: If a layer is asked for that a model lacks, or the config names layers
            by number.
    """

    def __init__(self, layers: Sequence[Layers], *, where: str) -> None:
        self.sources = tuple(item.checkpoint for item in layers)
        first, last = self.sources[0], self.sources[-1]
        self.folder = first.folder
        self._check(layers, where)
        self._places: dict[str, tuple[Checkpoint, str]] = {}
        for name in first.names:
            if layer_of(name) is None and not _is_after(name):
                self._places[name] = (first, name)
        number, order = 0, []
        for checkpoint, start, stop in layers:
            for layer in range(start, stop + 1):
                self._place_layer(checkpoint, layer, number)
                order.append((checkpoint, layer))
                number += 1
        for name in last.names:
            if layer_of(name) is None and _is_after(name):
                self._places[name] = (last, name)
        self._names = tuple(sorted(self._places))
        self.config = _restacked(first.config, order)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted."""
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        source, own = self._place(name)
        return source.shape(own)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""
        source, own = self._place(name)
        return source.dtype(own)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor of the checkpoint that it is from."""
        source, own = self._place(name)
        return source.tensor(own)

    def check_unchanged(self) -> None:
        """Refuse checkpoints whose files are no longer those that were opened."""
        for source in dict.fromkeys(self.sources):
            source.check_unchanged()

    def fetch(self, name: str) -> None:
        """Bring a tensor into memory."""
        source, own = self._place(name)
        source.fetch(own)

    def release(self, name: str) -> None:
        """Let a tensor's memory go."""
        source, own = self._place(name)
        source.release(own)

    def _place(self, name: str) -> tuple[Checkpoint, str]:
        if name not in self._places:
            raise CheckpointError(
                f"{self.folder}: must hold the tensor asked for; got no '{name}' in the stack of "
                f"its layers. Check that the checkpoint is of the same model."
            )
        return self._places[name]

    def _place_layer(self, checkpoint: Checkpoint, layer: int, number: int) -> None:
        for name in checkpoint.names:
            if layer_of(name) == layer:
                self._places[_NUMBER.sub(rf"\g<1>{number}\g<2>", name, count=1)] = (
                    checkpoint,
                    name,
                )

    def _check(self, layers: Sequence[Layers], where: str) -> None:
        first = self.sources[0]
        for checkpoint, _, stop in layers:
            for keys in _SHARED:
                wanted, got = (item.setting(*keys) for item in (first, checkpoint))
                if wanted != got:
                    raise CheckpointMismatchError(
                        f"{where}: models of a stack must share {keys[0]}; got {wanted} in "
                        f"'{first.folder}' and {got} in '{checkpoint.folder}'. Stack models of "
                        f"one architecture."
                    )
            if stop >= checkpoint.num_layers:
                raise CheckpointError(
                    f"{where}: layers must be of the model; got layer {stop} of "
                    f"'{checkpoint.folder}', which has {checkpoint.num_layers}. Check the numbers "
                    f"(0-indexed)."
                )
            for key in _BY_NUMBER:
                if checkpoint.setting(key):
                    raise CheckpointError(
                        f"{where}: layers cannot be stacked where config.json names some by "
                        f"number; got {key} {checkpoint.setting(key)} in '{checkpoint.folder}'. "
                        f"Merge whole models of this architecture."
                    )


def _is_after(name: str) -> bool:
    return name == OUTPUT_HEAD or module_kind(name) != "embeddings"


def _restacked(config: dict[str, Any], order: Sequence[tuple[Checkpoint, int]]) -> dict[str, Any]:
    """Return a config for layers in another order: their number, and a value for each."""
    changed = dict(config)
    if isinstance(config.get("text_config"), dict):
        sources = [(item.config.get("text_config", {}), layer) for item, layer in order]
        changed["text_config"] = _with_layers(config["text_config"], sources)
    return _with_layers(changed, [(item.config, layer) for item, layer in order])


def _with_layers(
    config: dict[str, Any], order: Sequence[tuple[dict[str, Any], int]]
) -> dict[str, Any]:
    counts = [key for key in _COUNTS if isinstance(config.get(key), int)]
    changed = {**config, **dict.fromkeys(counts, len(order))}
    for key in _BY_LAYER:
        if isinstance(config.get(key), list):
            changed[key] = [source[key][layer] for source, layer in order]
    return changed
