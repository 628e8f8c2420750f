"""What must be known of adapters that can be merged all the same."""

from collections.abc import Mapping
from pathlib import Path

from safemerge.errors import CheckpointError
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.checkpoint import CONFIG_FILE, Checkpoint
from safemerge.weights.fingerprint import fingerprint
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
