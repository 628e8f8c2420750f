"""What a config.json means: the settings that transformers reads from it, compared by value."""

import copy
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from safemerge.errors import CheckpointError

_NOT_FUNCTIONAL = re.compile(
    r"""^(?:_.*
    |transformers_version|architectures|auto_map|name_or_path|unsloth.*|quantization_config
    |(?:torch_)?dtype|use_cache|return_dict|output_.*(?:states|attentions|logits)
    |attn_implementation|experts_implementation|gradient_checkpointing|base_model_\w+_plan
    |pretraining_tp|model_parallel_size|use_(?:mamba_kernels|mambapy|mem_eff_path)
    |use_associative_scan|num_logits_to_keep|chunk_size_feed_forward|ignore_keys_at_\w+
    |(?:bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_\w+)_token_id|suppress_tokens
    |id2label|label2id|num_labels|problem_type|task_specific_params|classifier_\w+|summary_\w+
    |label_smoothing|freeze_\w+|\w*init(?:ializer)?_(?:range|factor|std|scheme)|init_device
    |\w*(?:dropout|pdrop|layerdrop|jitter_noise|loss_coef\w*|loss_reduction)\w*
    |num_(?:nextn_predict|mtp)_layers|mtp_\w+|tie_word_embeddings)$""",
    re.VERBOSE,
)
"""Settings that change nothing of what stored weights compute for a prompt: bookkeeping,
training, initial values, attached heads. Tokens that begin or end a text are compared with the
tokenizers, tied embeddings with the weights."""

_STRUCTURAL = re.compile(
    r"(?:^|_)(?:size|dim|dims|heads?|layers?|experts|embd?|inner|rank|channels|width|groups)$"
    r"|^d_\w+$|_d_\w+$"
)
_FUNCTIONAL_SIZES = re.compile(
    r"window_size$|chunk_size$|^rotary_dim$|^top_?k|_topk_|^vision_feature_layer|ngram_size$"
)
_WINDOW_PLAN = re.compile(r"(?:^|\.)(?:use_sliding_window|max_window_layers|\w*window_pattern)$")
_SAME_ACTIVATION = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
}
_ROPE_DEFAULTS: dict[str, object] = {
    "partial_rotary_factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
_MAX_VALUE_LENGTH = 60


class SettingDifference(NamedTuple):
    """A setting in which two models differ."""

    key: str
    """Dotted name as transformers has it, e.g. ``rope_parameters.rope_theta``."""
    base: object
    """The base's value; None if it is unset."""
    other: object
    """The other model's value; None if it is unset."""

    @property
    def structural(self) -> bool:
        """Whether it is a size or a number of parts: with it equal shapes mean other things."""
        name = self.key.rpartition(".")[2]
        if name == "model_type":
            return True
        numbers = all(
            value is None or (isinstance(value, int) and not isinstance(value, bool))
            for value in (self.base, self.other)
        )
        return numbers and _is_size(name)

    def __str__(self) -> str:
        return f"{self.key} base {_shown(self.base)}, expert {_shown(self.other)}"


class _Settings(NamedTuple):
    """The settings of one config, flattened to dotted keys; unset ones are left out."""

    declared: Mapping[str, object]
    """Those that the model's config class declares, defaults filled in."""
    others: Mapping[str, object]
    """What else stands in the file."""


def setting_differences(
    base: Mapping[str, Any], other: Mapping[str, Any]
) -> list[SettingDifference]:
    """Return the settings in which a model's config means something else than the base's.

    The config class of the installed transformers says what a file means: defaults, aliases and
    old spellings are resolved as it resolves them, and settings that change nothing of what the
    weights compute are left out. A key that the class does not declare counts only where both
    files have it, and lists are compared entry by entry. Where transformers cannot read one of
    the configs (see `unread_reason`), the keys of both files are compared, with the usual
    spellings of rotary embeddings, windows and heads resolved; a size that one of them lacks
    then says nothing. No custom code is run.

    Args:
        base: Content of the base's config.json.
        other: Content of an expert's config.json.

    Returns:
        Differences sorted by key; ``model_type`` alone if that differs.
    """
    if _flat(base) == _flat(other):
        return []
    if base.get("model_type") != other.get("model_type"):
        return [SettingDifference("model_type", base.get("model_type"), other.get("model_type"))]
    read = unread_reason(base) is None and unread_reason(other) is None
    first, second = (
        _as_transformers_reads(config) if read else _as_written(config) for config in (base, other)
    )
    keys = {*first.declared, *second.declared, *(first.others.keys() & second.others.keys())}
    if not read:
        keys |= {key for key in {**first.others, **second.others} if not _is_size(key)}
    ours, theirs = {**first.others, **first.declared}, {**second.others, **second.declared}
    return [
        _first_entry(SettingDifference(key, ours.get(key), theirs.get(key)))
        for key in sorted(keys)
        if ours.get(key) != theirs.get(key)
    ]


def unread_reason(config: Mapping[str, Any]) -> str | None:
    """Return why transformers cannot read a config, None if it can."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return f"transformers {transformers.__version__} knows no model_type {kind!r}"
    try:
        read_config(config)
    except CheckpointError as error:
        return str(error)
    return None


def read_config(config: Mapping[str, Any]) -> Any:
    """Return a config as an object of its class in transformers, as AutoConfig makes it.

    A ``quantization_config`` is left out: weights that are merged are dense.

    Args:
        config: Content of config.json, its ``model_type`` known to transformers; not changed.

    Raises:
        CheckpointError: If transformers refuses it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind == "mistral" and "layer_types" in config:
        kind = "ministral"  # as AutoConfig does
    document = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with _quiet():
            return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(document))
    except (StrictDataclassError, ArithmeticError, AttributeError, ImportError, LookupError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        text = " ".join(str(error).split())
        raise CheckpointError(f"transformers refuses the config: {text}") from error


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Tell whether transformers ties a model's embeddings; False for a config it cannot read."""
    if unread_reason(config) is not None:
        return False
    return bool(getattr(read_config(config), "tie_word_embeddings", False))


def _as_transformers_reads(config: Mapping[str, Any]) -> _Settings:
    declared: dict[str, object] = {}
    others: dict[str, object] = {}
    _gather(read_config(config), "", declared, others)
    return _Settings(_meaning(declared), _meaning(others))


def _as_written(config: Mapping[str, Any]) -> _Settings:
    return _Settings({}, _meaning(_flat(_spelled_out(config))))


def _is_size(key: str) -> bool:
    return _STRUCTURAL.search(key) is not None and not _FUNCTIONAL_SIZES.search(key)


def _first_entry(difference: SettingDifference) -> SettingDifference:
    """Narrow a difference of two long lists down to the first entry that differs."""
    base, other = difference.base, difference.other
    if not (isinstance(base, list) and isinstance(other, list) and len(base) == len(other)):
        return difference
    at = next(at for at, pair in enumerate(zip(base, other, strict=True)) if pair[0] != pair[1])
    return SettingDifference(f"{difference.key}[{at}]", base[at], other[at])


def _gather(
    config: Any, prefix: str, declared: dict[str, object], others: dict[str, object]
) -> None:
    from transformers.configuration_utils import PreTrainedConfig

    fields = {field.name for field in dataclasses.fields(config)}
    declared[f"{prefix}model_type"] = type(config).model_type
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _gather(value, f"{prefix}{key}.", declared, others)
        elif not _NOT_FUNCTIONAL.match(key) and key != "model_type":
            (declared if key in fields else others).update(_flat({key: value}, prefix))


def _flat(document: Mapping[Any, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in document.items():
        if _NOT_FUNCTIONAL.match(str(key)):
            continue
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _meaning(flat: Mapping[str, object]) -> dict[str, object]:
    """Leave out what is off or a default, and give equal things one spelling."""
    kept = {key: value for key, value in flat.items() if value is not None}
    for key in [key for key in kept if _is_rope(key)]:
        name = key.rpartition(".")[2]
        renamed = f"{key.removesuffix('type')}rope_type"
        if name == "type":
            kept.setdefault(renamed, kept.pop(key))
        elif kept[key] == _ROPE_DEFAULTS.get(name):
            del kept[key]
    for key, value in kept.items():
        if re.search(r"act(?:ivation)?(?:_fn|_function)?$", key):
            kept[key] = _SAME_ACTIVATION.get(str(value), value)
    return _windows_in_use(kept)


def _is_rope(key: str) -> bool:
    return re.search(r"(?:^|\.)rope_(?:parameters|scaling)\.", key) is not None


def _windows_in_use(settings: dict[str, object]) -> dict[str, object]:
    """Leave out windows that no layer looks through, and how the list of layers was made."""
    for part in {key.rpartition(".")[0] for key in settings}:
        dot = f"{part}." if part else ""
        layers = settings.get(f"{dot}layer_types")
        kinds = {str(kind) for kind in layers} if isinstance(layers, list) else None
        off = settings.get(f"{dot}use_sliding_window") is False
        if off or (kinds is not None and not any("sliding" in kind for kind in kinds)):
            settings.pop(f"{dot}sliding_window", None)
        if kinds is not None and not any("chunked" in kind for kind in kinds):
            settings.pop(f"{dot}attention_chunk_size", None)
    return {key: value for key, value in settings.items() if not _WINDOW_PLAN.search(key)}


def _spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the usual old spellings and defaults of a config that no class reads."""
    found = {
        key: _spelled_out(value)
        if isinstance(value, Mapping) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
    theta, scaling = found.pop("rope_theta", None), found.pop("rope_scaling", None)
    if theta is not None or scaling is not None or "rope_parameters" in found:
        rope = {"rope_theta": theta, **(scaling or {}), **(found.get("rope_parameters") or {})}
        found["rope_parameters"] = {"rope_type": rope.get("type", "default"), **rope}
    heads, hidden = found.get("num_attention_heads"), found.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        found["num_key_value_heads"] = found.get("num_key_value_heads") or heads
        found["head_dim"] = found.get("head_dim") or hidden // heads
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 1]}…"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging what it thinks of a config."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
