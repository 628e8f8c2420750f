"""What must be known of checkpoints that can be merged all the same."""

from collections.abc import Mapping

from safemerge.weights.adapter_notice import adapter_notices
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.quantized import declared_quantization
from safemerge.weights.settings import setting_differences, unread_reason


def notices(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """Return a sentence for each thing that agreement allows and a user must know.

    Those are settings in which an expert differs from the base and that change what the weights
    compute (both values are named; a merge keeps the base's), a model that transformers does
    not know, stored tensors that it ignores and that are left out, a leftover
    ``quantization_config``, and what `adapter_notices` says.

    Args:
        base: The base.
        experts: Experts by name, which agree with it; see `check_agreement`.
    """
    found = []
    for name, checkpoint in {"base": base, **experts}.items():
        if checkpoint.config is base.config and checkpoint is not base:
            continue  # an adapter has the base's
        found += _of_checkpoint(name, checkpoint)
        differences = setting_differences(base.config, checkpoint.config)
        functional = [str(item) for item in differences if not item.structural]
        if functional:
            found.append(
                f"expert '{name}' has settings under which equal weights compute other values: "
                f"{'; '.join(functional)}. The base's are kept."
            )
    return (*found, *adapter_notices(experts))


def _of_checkpoint(name: str, checkpoint: Checkpoint) -> list[str]:
    found = []
    reason = unread_reason(checkpoint.config)
    if reason is not None and name == "base":
        found.append(
            f"{checkpoint.folder}: {reason}; configs were compared key by key, and what loads "
            f"this model must bring its code"
        )
    if checkpoint.left_out:
        found.append(
            f"'{name}': {len(checkpoint.left_out)} stored tensors are left out, for transformers "
            f"ignores them, e.g. '{checkpoint.left_out[0]}'"
        )
    quantization = declared_quantization(checkpoint.config)
    if quantization is not None and name == "base":
        found.append(
            f"{checkpoint.folder}: quantization_config ({quantization}) is left out of the "
            f"result, for the weights are dense"
        )
    return found
