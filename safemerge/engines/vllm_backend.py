"""The weight-transfer backend inside a vLLM worker: a recipe arrives, merged weights result.

The worker keeps base and experts open; an update merges them tensor by tensor
and hands checkpoint-format ``(name, tensor)`` pairs to the model's own ``load_weights``, with
vLLM's layer-wise reload around it. The same code serves CPUs, GPUs and tensor parallelism: each
worker streams the full tensors, the model's loader takes its shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import ModelPlace
from safemerge.engines.vllm_plugin import CHECKPOINT_ERROR_MARK, MERGE_ERROR_MARK
from safemerge.errors import CheckpointError, CheckpointMismatchError, MergeError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.transfer import DeviceInputs


@dataclass
class RecipeInitInfo(WeightTransferInitInfo):
    """Checkpoints that stay resident in the worker."""

    models: str
    """JSON of a resolved `MergeRecipe` that names every model an update may use."""
    place: ModelPlace = "mapped"
    """Where they wait between updates, if the worker is on a GPU."""


@dataclass
class RecipeUpdateInfo(WeightTransferUpdateInfo):
    """The payload of an update: a recipe, a few hundred bytes."""

    recipe: str
    """JSON of a resolved `MergeRecipe`."""


class RecipeWeightTransferEngine(WeightTransferEngine[RecipeInitInfo, RecipeUpdateInfo]):
    """Builds a candidate's weights where they are used."""

    init_info_cls = RecipeInitInfo
    update_info_cls = RecipeUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resident: ResidentCheckpoints | None = None
        self._inputs: DeviceInputs | None = None

    def init_transfer_engine(self, init_info: RecipeInitInfo) -> None:
        """Open base and experts; they stay open for the worker's life.

        Digests are checked here too: a worker may be on another node than the driver, and may
        start again when files have changed.

        Raises:
            CheckpointError: If a checkpoint cannot be read, or is not what the recipe's digest
                says; its text carries `CHECKPOINT_ERROR_MARK`.
        """
        models = MergeRecipe.model_validate_json(init_info.models)
        try:
            # Agreement was checked once by the driver; every worker would only repeat it.
            self._resident = ResidentCheckpoints.open(
                models, check=False, for_engine=True, grows=True
            )
        except (CheckpointError, CheckpointMismatchError) as error:
            raise CheckpointError(f"{CHECKPOINT_ERROR_MARK} {error}") from error
        if self.device.type != "cpu":
            self._inputs = DeviceInputs(self.device, keep=init_info.place)

    def start_weight_update(self) -> None:
        """Prepare layer-wise reloading."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Merge the recipe into the model, and wait for the device."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: RecipeUpdateInfo) -> None:
        """Stream merged tensors into the model's own loader.

        Raises:
            MergeError: If the recipe gives a non-finite tensor; its text carries
                `MERGE_ERROR_MARK`, and the model is left loadable.
            CheckpointError: If a checkpoint's file changed; its text carries
                `CHECKPOINT_ERROR_MARK`, and the model is left loadable.
        """
        if self._resident is None:
            raise RuntimeError("init_weight_transfer_engine must come before update_weights.")
        recipe = MergeRecipe.model_validate_json(update_info.recipe)
        try:
            self.model.load_weights(
                self._resident.merged(recipe, device=self.device, inputs=self._inputs)
            )
        except (MergeError, CheckpointError) as error:
            # Ends the reload so that the next one starts clean; the half-filled weights are
            # never used: no weight version is set for them.
            finalize_layerwise_reload(self.model, self.model_config)
            if isinstance(error, MergeError):
                raise MergeError(f"{MERGE_ERROR_MARK} {error}") from error
            raise CheckpointError(f"{CHECKPOINT_ERROR_MARK} {error}") from error

    def finish_weight_update(self) -> None:
        """Finish layer-wise reloading and clear the KV cache's memory.

        A candidate with overflowing activations leaves NaN in its KV blocks. Attention masks
        unused slots by multiplying with zero, and zero times NaN is NaN: without this, such a
        candidate spoils the answers of those after it.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        for module in self.model.modules():
            cache = getattr(module, "kv_cache", None)
            for tensor in cache if isinstance(cache, list | tuple) else [cache]:
                if isinstance(tensor, torch.Tensor):
                    tensor.zero_()

    def _repack_tied_head(self) -> None:
        """Pack a tied output head anew.

        On CPUs vLLM multiplies with a packed copy of the weights. A tied head is not in the
        checkpoint, so layer-wise reload passes it by: its weight is the embedding's, and new,
        but its packed copy would be the previous candidate's.
        """
        if self.device.type != "cpu":
            return
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                vars(module).pop("_already_called_process_weights_after_loading", None)
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Let go of the resident checkpoints."""
        self._resident = self._inputs = None
