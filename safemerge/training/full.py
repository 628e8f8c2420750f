"""Training of every weight: kept in float32, sharded over several workers, written out dense.

With one worker the model stays whole. With several, each holds a shard of every weight, of its
gradient and of the optimiser's state (FSDP2: Zhao et al., arXiv:2304.11277, as rewritten in
``torch.distributed.fsdp.fully_shard``); the passes gather one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.errors import ConfigError
from safemerge.merge.writer import write_merged
from safemerge.training.batch import TokenBatch
from safemerge.training.gradient import Loss
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.skeleton import bare_model, conversions


def products_in(loss: Loss, *, device: str, dtype: torch.dtype) -> Loss:
    """Return a loss whose products are computed in a type, on weights that stay float32.

    Args:
        loss: The loss.
        device: ``cpu`` or ``cuda``.
        dtype: Type of the products; float32 changes nothing.
    """
    if dtype != torch.bfloat16:
        return loss

    def narrow(model: Any, batch: TokenBatch) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return loss(model, batch)

    return narrow


class ShardedModel(torch.nn.Module):
    """A causal LM of which every rank holds a shard; its forward pass is the loss of a batch.

    Backward passes add the gradient's sum over all ranks to each shard: losses must be weighted
    by shares of the targets of all ranks (`logical_batch` with ``joined``). The loss is the root
    of what is gathered, so that the output layer may be used apart from the model's own pass.

    Args:
        causal: The whole model in float32, the same on every rank; sharded in place.
        loss: The mean loss of a batch.
        packing: Whether the loss lays rows end to end.
        device: ``cpu`` or ``cuda``; shards go there.
        dtype: Type that layers are gathered and multiplied in; gradients are summed in float32.
    """

    def __init__(
        self, causal: Any, *, loss: Loss, packing: bool, device: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        self.causal = causal
        self._loss, self._packing = loss, packing
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        policy = MixedPrecisionPolicy()
        if dtype == torch.bfloat16:
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        layers = set(getattr(causal, "_no_split_modules", None) or ())
        for module in [*causal.modules()]:
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        # Resharded after the forward pass, too: a measurement without a backward pass would
        # leave the gathered weights behind, and the next pass would take them for current.
        fully_shard(self, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                # Sums, not means: the shares are of all ranks' targets.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return the loss of this rank's rows.

        All ranks make the same passes: padded rows take no detour for a shared beginning, which
        only some of them may have.
        """
        if not self._packing:
            batch = replace(batch, num_shared=0)
        return self._loss(self.causal, batch)


def sharded_loss(model: Any, batch: TokenBatch) -> Tensor:
    """Return the loss of a `ShardedModel`, as a `Loss`."""
    value: Tensor = model(batch)
    return value


def whole_weights(model: Any) -> dict[str, Tensor]:
    """Return every weight of a causal LM by name, gathered if it is sharded, on the CPU.

    All ranks must call it; only the first one gets the weights, the others nothing.
    """
    causal = model.causal if isinstance(model, ShardedModel) else model
    first = not isinstance(model, ShardedModel) or torch.distributed.get_rank() == 0
    found: dict[str, Tensor] = {}
    for name, parameter in causal.named_parameters():
        value = parameter.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if first:
            found[name] = value.cpu()
    return found


def save_full(weights: Mapping[str, Tensor], base: Path, folder: Path, *, where: str) -> None:
    """Write trained weights as a dense checkpoint in the types and under the names of its base.

    Args:
        weights: Float32 weights by name.
        base: The base's folder: types, config, tokenizer and chat template come from there.
        folder: Where to write; must be new or empty.
        where: Place for messages.

    Raises:
        ConfigError: If the base stores a weight under another name than transformers has it.
    """
    opened = open_checkpoint(base)
    weights = _as_stored(weights, base, opened)
    strange = sorted(set(weights) - set(opened.names))
    if strange:
        raise ConfigError(
            f"{where}: parameters: full needs a base that stores its weights under the names that "
            f"transformers has for them; got no {strange[0]!r} in {base}. Save the base anew with "
            "transformers' save_pretrained."
        )
    ref = CheckpointRef(name="trained", path=str(base))
    recipe = MergeRecipe(
        base=CheckpointRef(name="base", path=str(base)),
        experts=[ref],
        method=Linear(name="linear", weights={ref.name: 1.0}),
    )
    trained = _Trained(opened, weights)
    write_merged(recipe, {"base": opened, ref.name: trained}, folder, check=False)
    # The recipe names a checkpoint that was never on disk; the stage's marker tells.
    for name in ("README.md", "safemerge_recipe.json"):
        (folder / name).unlink(missing_ok=True)


def _as_stored(
    weights: Mapping[str, Tensor], base: Path, opened: Checkpoint
) -> Mapping[str, Tensor]:
    """Weights by their names in the base's files, experts one by one where they are so there."""
    found = dict(weights)
    for entry in conversions(bare_model(base), opened.names):
        if all(name in found for name in entry.memory):
            parts = {name: found.pop(name) for name in entry.memory}
            shapes = {name: opened.shape(name) for names in entry.stored for name in names}
            found.update(entry.to_stored(parts, shapes))
    return found


class _Trained(Checkpoint):
    """A base with some of its tensors replaced, rounded to the base's types."""

    def __init__(self, base: Checkpoint, weights: Mapping[str, Tensor]) -> None:
        self.folder, self.config = base.folder, base.config
        self._base, self._weights = base, weights

    @property
    def names(self) -> tuple[str, ...]:
        return self._base.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._base.dtype(name)

    def tensor(self, name: str) -> Tensor:
        if name not in self._weights:
            return self._base.tensor(name)
        return self._weights[name].to(self._base.dtype(name))
