"""What checkpoints of one merge must share, checked before any GPU time is spent."""

import json
from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from safemerge.cache import read_entry, write_entry
from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint, layer_of
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.model_class import missing_head
from safemerge.weights.settings import setting_differences, ties_embeddings
from safemerge.weights.shared_vocabulary import (
    VocabularyView,
    stored_checkpoint,
    whole_checkpoint,
)
from safemerge.weights.tokenizer_files import has_vocabulary
from safemerge.weights.vocabulary import vocabulary_difference

MERGEABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NUM_EXAMPLES = 3
_OR_SHARE = ", or set vocabulary: base or union"
_PART_ENTRIES = 1 << 17


def check_agreement(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    *,
    mixed_dtypes: bool = False,
    where: str = "merge",
    finite: bool = True,
) -> None:
    """Check that base and experts can be merged tensor by tensor.

    Compared are tensor names, shapes, dtypes, architecture, tied embeddings and vocabulary; every
    tensor is scanned for NaN and infinities. Of a config.json counts what it means, not how it
    is written (see `setting_differences`): sizes and numbers of parts must agree; settings that
    change what the weights compute but not their shapes may differ, and `notices` names them.
    All weights must be float32, bfloat16 or float16. A tied output head that is stored
    redundantly and equals the input embedding is accepted, also of an expert whose config does
    not tie it. Differing
    float dtypes are refused unless `mixed_dtypes`: which one
    the result gets, and what was lost before, must be said, so callers pass
    ``recipe.dtype != "base"``. LoRA experts are dense in float32 and are exempt from that rule.
    Vocabularies are not compared where `share_vocabulary` has put rows in order.

    Args:
        base: Checkpoint that task vectors are measured from.
        experts: Experts by name.
        mixed_dtypes: Whether a tensor's dtype may differ between models.
        where: Place named first in messages, e.g. ``recipe 3f9c``.
        finite: Whether to scan for NaN and infinities (one pass over the weights, cached by
            fingerprint).

    Raises:
        CheckpointMismatchError: If something differs; up to three examples are listed.
        CheckpointError: If a weight is not finite, not float, or cannot be read.
    """
    for name, checkpoint in {"base": base, **experts}.items():
        _check_dtypes_merge(where, name, checkpoint)
        _check_tied_head(where, name, checkpoint)
        _check_head_is_stored(where, name, checkpoint)
    for name, expert in experts.items():
        _check_architecture(where, base, name, expert)
        _check_names(where, base, name, expert)
        _check_shapes(where, base, name, expert)
        if not mixed_dtypes and not isinstance(stored_checkpoint(expert), AdapterCheckpoint):
            _check_same_dtypes(where, base, name, expert)
    _check_vocabularies(where, base, experts)
    if finite:
        for checkpoint in (base, *experts.values()):
            check_finite(stored_checkpoint(checkpoint))


def check_finite(checkpoint: Checkpoint) -> None:
    """Check that no weight is NaN or infinite, in one pass over the checkpoint.

    The outcome is cached by fingerprint, so that a sound checkpoint is read once; of an
    adapter only the tensors it changes are read.

    Args:
        checkpoint: Checkpoint to scan.

    Raises:
        CheckpointError: If a weight is not finite; names the first such tensor (in sorted
            order), its count, and the number of such tensors.
        CheckpointChangedError: If its files change meanwhile.
    """
    key = fingerprint(checkpoint.folder)
    if isinstance(checkpoint, AdapterCheckpoint):
        names, key = checkpoint.adapted_names, f"{key}-on-{fingerprint(checkpoint.base.folder)}"
    else:
        names = checkpoint.names
    cached = read_entry("finite", key)
    if cached is not None and cached.get("finite") is True:
        return
    bad = []
    for name in names:
        if not is_finite(checkpoint.tensor(name)):
            bad.append(name)
        checkpoint.release(name)
    if bad:
        checkpoint.check_unchanged()
        tensor = checkpoint.tensor(bad[0])
        count = int(tensor.numel() - torch.isfinite(tensor).sum().item())
        raise CheckpointError(
            f"{checkpoint.folder}, tensor '{bad[0]}': weights must be finite; got {count} NaN or "
            f"infinite of {tensor.numel()} (and {len(bad) - 1} more such tensors). "
            f"Train or export the checkpoint again."
        )
    checkpoint.check_unchanged()
    write_entry("finite", key, {"finite": True, "num_tensors": len(names)})


def is_finite(tensor: Shaped[Tensor, "..."]) -> bool:
    """Tell whether every entry is finite, in little more than the time to read them.

    NaN and infinities always reach the float32 sum; only if the sum is not finite (large sound
    entries can overflow it) are the entries looked at one by one.

    Args:
        tensor: Any shape; integer and boolean tensors are finite.

    Returns:
        True if no entry is NaN or infinite; True for an empty tensor.
    """
    if not tensor.is_floating_point():
        return True
    # NOTE: in parts, for torch sums halves from a float32 copy of the whole.
    return all(
        bool(torch.isfinite(part.sum(dtype=torch.float32))) or bool(torch.isfinite(part).all())
        for part in torch.split(tensor.reshape(-1), _PART_ENTRIES)
    )


def _mismatch(
    where: str, name: str, rule: str, differences: list[str], remedy: str
) -> CheckpointMismatchError:
    more = len(differences) - _NUM_EXAMPLES
    examples = "; ".join(differences[:_NUM_EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
    return CheckpointMismatchError(f"{where}, expert '{name}': {rule}; got {examples}. {remedy}")


def _check_dtypes_merge(where: str, name: str, checkpoint: Checkpoint) -> None:
    bad = [
        f"'{tensor}' {dtype_name(checkpoint.dtype(tensor))}"
        for tensor in checkpoint.names
        if checkpoint.dtype(tensor) not in MERGEABLE_DTYPES
    ]
    if bad:
        raise CheckpointError(
            f"{where}, checkpoint '{name}' ({checkpoint.folder}): weights must be float32, "
            f"bfloat16 or float16; got {', '.join(bad[:_NUM_EXAMPLES])} ({len(bad)} such "
            f"tensors). Dequantise or cast the checkpoint first."
        )


def _check_tied_head(where: str, name: str, checkpoint: Checkpoint) -> None:
    embedding = checkpoint.input_embedding
    if not checkpoint.tied_embeddings or OUTPUT_HEAD not in checkpoint or embedding is None:
        return
    if not torch.equal(checkpoint.tensor(OUTPUT_HEAD), checkpoint.tensor(embedding)):
        raise CheckpointMismatchError(
            f"{where}, checkpoint '{name}' ({checkpoint.folder}), tensor '{OUTPUT_HEAD}': a tied "
            f"output head must equal '{embedding}'; got different weights. Set "
            f"tie_word_embeddings to false in config.json if the head was trained on its own."
        )


def _check_head_is_stored(where: str, name: str, checkpoint: Checkpoint) -> None:
    """Refuse a model whose head transformers would fill with random numbers."""
    stored = whole_checkpoint(checkpoint)
    declared = stored.setting("tie_word_embeddings")
    if declared is None:
        declared = ties_embeddings(stored.config)
    if declared or OUTPUT_HEAD in stored or stored.input_embedding is None:
        return
    outside = tuple(name for name in stored.names if layer_of(name) is None)
    head = missing_head(json.dumps(stored.config, sort_keys=True), outside)
    if head is not None:
        raise CheckpointMismatchError(
            f"{where}, checkpoint '{name}' ({stored.folder}), tensor '{head}': must be stored, "
            f"since config.json does not tie it to the embedding, so that transformers would "
            f"start it at random; got none. Set tie_word_embeddings to true in config.json if "
            f"the two are one, or save the model with its head."
        )


def _check_architecture(where: str, base: Checkpoint, name: str, expert: Checkpoint) -> None:
    differences = [
        item for item in setting_differences(base.config, expert.config) if item.structural
    ]
    if differences:
        rows_only = {item.key.rpartition(".")[2] for item in differences} == {"vocab_size"}
        raise _mismatch(
            where,
            name,
            "experts must share the base architecture",
            [str(item) for item in differences],
            f"Use experts fine-tuned from this base{_OR_SHARE if rows_only else ''}.",
        )
    if base.tied_embeddings != expert.tied_embeddings and not _stores_tied_head(base, expert):
        tied = [f"base {base.tied_embeddings}, expert {expert.tied_embeddings}"]
        rule = "experts must tie embeddings as the base does"
        raise _mismatch(where, name, rule, tied, "Export both models the same way.")


def _stores_tied_head(base: Checkpoint, expert: Checkpoint) -> bool:
    """Whether an expert whose config does not tie stores a head equal to its embedding."""
    embedding = expert.input_embedding
    return (
        base.tied_embeddings
        and not expert.tied_embeddings
        and OUTPUT_HEAD in expert
        and embedding is not None
        and torch.equal(expert.tensor(OUTPUT_HEAD), expert.tensor(embedding))
    )


def _check_names(where: str, base: Checkpoint, name: str, expert: Checkpoint) -> None:
    base_names, expert_names = set(base.distinct_names), set(expert.distinct_names)
    if _stores_tied_head(base, expert):
        expert_names.discard(OUTPUT_HEAD)
    differences = [f"'{tensor}' only in the base" for tensor in sorted(base_names - expert_names)]
    differences += [
        f"'{tensor}' only in the expert" for tensor in sorted(expert_names - base_names)
    ]
    if differences:
        raise _mismatch(
            where,
            name,
            "experts must have the base's tensors",
            differences,
            "Export the expert with the architecture class of the base.",
        )


def _check_shapes(where: str, base: Checkpoint, name: str, expert: Checkpoint) -> None:
    different = [
        tensor for tensor in base.distinct_names if base.shape(tensor) != expert.shape(tensor)
    ]
    if not different:
        return
    others = "".join(
        f", '{tensor}' base {base.shape(tensor)}, expert {expert.shape(tensor)}"
        for tensor in different[1:_NUM_EXAMPLES]
    )
    more = len(different) - _NUM_EXAMPLES
    rows_only = set(different) <= {base.input_embedding, OUTPUT_HEAD}
    raise CheckpointMismatchError(
        f"{where}, tensor '{different[0]}': experts must share the base shape; got base "
        f"{base.shape(different[0])}, expert '{name}' {expert.shape(different[0])}{others}"
        f"{f', and {more} more' if more > 0 else ''}. "
        f"Re-export the expert with the base tokenizer size{_OR_SHARE if rows_only else ''}."
    )


def _check_same_dtypes(where: str, base: Checkpoint, name: str, expert: Checkpoint) -> None:
    differences = [
        f"'{tensor}' base {dtype_name(base.dtype(tensor))}, "
        f"expert {dtype_name(expert.dtype(tensor))}"
        for tensor in base.distinct_names
        if base.dtype(tensor) != expert.dtype(tensor)
    ]
    if differences:
        rule = "experts must have the base dtypes unless the recipe gives a dtype"
        remedy = "Set dtype in the recipe, e.g. bfloat16, or cast the expert."
        raise _mismatch(where, name, rule, differences, remedy)


def _check_vocabularies(where: str, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> None:
    """Compare ids with the base's; with the first expert's where the base has no tokenizer."""
    stored = {
        name: expert for name, expert in experts.items() if not isinstance(expert, VocabularyView)
    }
    reference, embedding = base.folder, base.input_embedding
    if not has_vocabulary(reference):
        own = (expert.folder for expert in stored.values() if has_vocabulary(expert.folder))
        reference = next(own, reference)
    num_rows = None if embedding is None else base.shape(embedding)[0]
    for name, expert in stored.items():
        differences = vocabulary_difference(reference, expert.folder, num_rows=num_rows)
        if differences:
            rule = "experts must map every token to the base's id"
            remedy = f"Use the base's tokenizer for training{_OR_SHARE}."
            raise _mismatch(where, name, rule, differences, remedy)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's short name, e.g. ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
