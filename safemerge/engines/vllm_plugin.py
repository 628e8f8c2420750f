"""vLLM plug-in point: makes safemerge's weight-transfer backend known to every vLLM process.

Listed under the entry point group ``vllm.general_plugins``; vLLM calls `register` in its front
process, its engine core and each worker. Imports nothing heavy until a backend is built.
"""

from __future__ import annotations

BACKEND = "safemerge"
"""Name of the weight-transfer backend whose update payload is a recipe."""

MERGE_ERROR_MARK = "safemerge.MergeError:"
"""Marks, in the text that crosses vLLM's process border, that the recipe is at fault."""

CHECKPOINT_ERROR_MARK = "safemerge.CheckpointError:"
"""Marks, in the same text, that a checkpoint is: it changed, or cannot be read."""


def register() -> None:
    """Register the backend; calling it again in the same process changes nothing."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "safemerge.engines.vllm_backend", "RecipeWeightTransferEngine"
        )
    except ValueError:
        # vLLM refuses a name twice; plug-ins may be loaded more than once a process.
        return
