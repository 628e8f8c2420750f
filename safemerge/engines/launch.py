"""Starting the engine that a file declares."""

from __future__ import annotations

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.engine import Engine
from safemerge.merge.digest import check_digests


def start_engine(
    models: MergeRecipe,
    spec: EvaluatorSpec,
    *,
    cpu_ids: str | None = None,
    in_process: bool = False,
) -> Engine:
    """Start an engine that can hold every model of a recipe.

    Args:
        models: Resolved recipe that names every model a later recipe may use.
        spec: Kind, sizes and types.
        cpu_ids: CPU ids for vLLM's threads; None leaves them unbound.
        in_process: Whether this process has no other engine, so that vLLM may run in it; see
            `VllmEngine`.

    Raises:
        PreflightError: If the engine is not installed.
        CheckpointError: If a checkpoint cannot be read, or is not what its digest says.
        EngineError: If it does not start.
    """
    # First: an engine that loads a damaged base says less, and later.
    check_digests(models)
    if spec.engine == "transformers":
        from safemerge.engines.transformers_engine import TransformersEngine

        return TransformersEngine(models, spec)
    from safemerge.engines.vllm_engine import VllmEngine

    return VllmEngine(models, spec, cpu_ids=cpu_ids, in_process=in_process)
