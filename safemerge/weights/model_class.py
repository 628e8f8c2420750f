"""Which stored tensors a model reads: asked of its class in transformers."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from safemerge.weights.header import TensorEntry
from safemerge.weights.settings import read_config, unread_reason
from safemerge.weights.skeleton import BUILD_ERRORS, model_of_config

_DEAD_BUFFER = re.compile(
    r"rotary_(?:pos_)?emb\.(?:original_)?(?:inv_freq|cos_cached|sin_cached)$"
    r"|(?:^|\.)(?:cross)?att(?:n|ention)\.(?:masked_bias|bias)$|(?:^|\.)position_ids$"
    r"|(?:^|\.)attn\.causal_mask$"
)
"""Buffers of the usual decoders that older versions of transformers stored, by their names."""

_USUAL = re.compile(r"\.(?:weight|bias)$")
_MASK_AXES = 4
_OUTSIDE_LAYERS = re.compile(r"(?:^|[._])mtp[._]")


def unread_tensors(
    config: Mapping[str, Any], entries: Mapping[str, TensorEntry], beyond: Iterable[str] = ()
) -> frozenset[str]:
    """Return the names of stored tensors that transformers ignores when it loads the model.

    Those are buffers that models compute anew (rotary frequencies, causal masks, position ids)
    and weights that the class names in ``_keys_to_ignore_on_load_unexpected``, e.g. layers for
    multi-token prediction. The class is built on the meta device and asked, but only where some
    tensor is not a weight or bias of an ordinary name and float type; where transformers does
    not know the model, the names of the usual buffers decide. No custom code is run.

    Args:
        config: Content of config.json.
        entries: Headers of all stored tensors by name.
        beyond: Names of tensors in layers beyond those that the config counts.
    """
    doubtful = {name for name, entry in entries.items() if _is_doubtful(name, entry)}
    doubtful |= set(beyond)
    if not doubtful:
        return frozenset()
    by_name = {name for name in doubtful if is_dead_buffer(name, entries[name])}
    if doubtful == by_name:
        return frozenset(by_name)
    ignored = _ignored(json.dumps(config, sort_keys=True), tuple(sorted(doubtful)))
    return frozenset(by_name | ignored)


def is_buffer_name(name: str) -> bool:
    """Tell whether a name is that of a buffer which models compute anew."""
    return _DEAD_BUFFER.search(name) is not None


def is_dead_buffer(name: str, entry: TensorEntry) -> bool:
    """Tell whether name and shape are those of a buffer that no version reads any more."""
    # The bias of a projection has one axis; a causal mask four, its fill value none.
    mask = not name.endswith("bias") or len(entry.shape) in (0, _MASK_AXES)
    return mask and is_buffer_name(name)


def _is_doubtful(name: str, entry: TensorEntry) -> bool:
    usual = _USUAL.search(name) is not None and entry.dtype.is_floating_point
    return not usual or bool(_DEAD_BUFFER.search(name) or _OUTSIDE_LAYERS.search(name))


@lru_cache(maxsize=16)
def missing_head(config: str, names: tuple[str, ...]) -> str | None:
    """Return the output head's parameter if no stored tensor fills it, as its class is untied.

    transformers starts such a head with random numbers, whatever the input embedding is.

    Args:
        config: Content of config.json.
        names: Stored names, or those that may be of a head.

    Returns:
        Its name in transformers; None if it is filled or tied, if the model has no head, or if
        transformers does not know the model.
    """
    model = _empty_model(json.loads(config))
    head = None if model is None else model.get_output_embeddings()
    if model is None or head is None or getattr(head, "weight", None) is None:
        return None
    name = next((name for name, held in model.named_parameters() if held is head.weight), None)
    if name is None or name in (model.all_tied_weights_keys or {}):
        return None
    state = model.state_dict()
    read = _read_as(model, state)
    return None if any(name in (given, read(given)) for given in names) else name


def _read_as(model: Any, state: Mapping[str, Any]) -> Callable[[str], str]:
    """Return what gives the parameter that a stored name is read as."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    conversions = get_model_conversion_mapping(model)
    converters = [item for item in conversions if isinstance(item, WeightConverter)]
    renamings = [item for item in conversions if not isinstance(item, WeightConverter)]

    def read(name: str) -> str:
        prefix = model.base_model_prefix
        found: str = rename_source_key(name, renamings, converters, prefix, state)[0]
        return found

    return read


@lru_cache(maxsize=16)
def _ignored(config: str, names: tuple[str, ...]) -> frozenset[str]:
    model = _empty_model(json.loads(config))
    if model is None:
        return frozenset()
    state = model.state_dict()
    read = _read_as(model, state)
    buffers = {name for name, _ in model.named_buffers()} - state.keys()
    patterns = [re.compile(text) for text in _ignore_patterns(model, buffers)]
    found = set()
    for name in names:
        read_as = read(name)
        if read_as in state or name in state:
            continue
        if read_as in buffers or any(pattern.search(read_as) for pattern in patterns):
            found.add(name)
    return frozenset(found)


def _ignore_patterns(model: Any, buffers: Iterable[str]) -> set[str]:
    """What transformers ignores on loading: the class's own patterns and two of every class."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return patterns


def _empty_model(config: Mapping[str, Any]) -> Any | None:
    """The model on the meta device, None where transformers cannot build it."""
    if unread_reason(config) is not None:
        return None
    try:
        return model_of_config(read_config(config))
    except BUILD_ERRORS:
        return None
