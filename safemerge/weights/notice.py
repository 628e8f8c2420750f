"""What must be known of checkpoints that can be merged all the same."""

from collections.abc import Mapping
from pathlib import Path

from safemerge.errors import CheckpointError
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.checkpoint import CONFIG_FILE, Checkpoint
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.quantized import declared_quantization
from safemerge.weights.settings import setting_differences, unread_reason
from safemerge.weights.shared_vocabulary import stored_checkpoint


def adapter_notices(experts: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """Return a sentence for each thing about adapters that a user must know.

    Those are a base that an adapter's config names and that is not the one it is added to, as
    far as names tell, and factors of an embedding that is also the output head.

    Args:
        experts: Experts by name; those that are no adapters are passed over.
    """
    found = []
    for name, checkpoint in experts.items():
        adapter = stored_checkpoint(checkpoint)
        if not isinstance(adapter, AdapterCheckpoint):
            continue
        if adapter.named_base is not None and not _is_base(adapter.named_base, adapter.base):
            found.append(
                f"adapter '{name}' names the base '{adapter.named_base}' in its config; it is "
                f"added to '{adapter.base.folder}'"
            )
        if adapter.tied_embeddings and adapter.base.input_embedding in adapter.adapted_names:
            found.append(
                f"adapter '{name}' changes '{adapter.base.input_embedding}', which is also the "
                f"output head: both change, as with peft's merge_and_unload"
            )
    return tuple(found)


def _is_base(named: str, base: Checkpoint) -> bool:
    """Whether a base's name in an adapter's config may be that of the base at hand."""
    try:
        if (Path(named).expanduser() / CONFIG_FILE).is_file():
            return fingerprint(named) == fingerprint(base.folder)
    except (OSError, ValueError, CheckpointError):
        return False
    last = named.rstrip("/").rsplit("/", 1)[-1].lower()
    places = {part.lower() for part in base.folder.resolve().parts}
    cached = f"models--{named.replace('/', '--')}".lower()
    return not places.isdisjoint({last, cached}) or base.config.get("_name_or_path") == named


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
