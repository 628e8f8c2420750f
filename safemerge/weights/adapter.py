"""LoRA adapters as dense checkpoints: base + scale * B A, computed when a tensor is asked for.

References:
    Hu et al., LoRA, arXiv:2106.09685, section 4.1 (scale lora_alpha / rank).
    Kalajdzievski, rsLoRA, arXiv:2312.03732, definition of rsLoRA (scale lora_alpha / sqrt(rank)).
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from safemerge.errors import CheckpointError
from safemerge.weights.checkpoint import (
    Checkpoint,
    DenseCheckpoint,
    existing_folder,
    open_safetensors,
    read_json,
    read_tensor,
    refuse_pickle,
)
from safemerge.weights.header import TensorEntry
from safemerge.weights.renamed import under_names_of
from safemerge.weights.watched_file import WatchedFile

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))$"
)
_BASE_KEEPING_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they are."""
_REFUSED = {
    "use_dora": "DoRA rescales weight columns",
    "use_qalora": "QA-LoRA pools its inputs",
    "lora_bias": "biases of the factors",
    "alora_invocation_tokens": "activated LoRA depends on the prompt",
    "layer_replication": "replicated layers change the architecture",
    "target_parameters": "factors of bare parameters",
    "trainable_token_indices": "single trained token rows",
    "arrow_config": "routed adapters depend on the input",
    "kasa_config": "KaSA adds singular values",
    "use_bdlora": "block-diagonal factors",
    "monteclora_config": "sampled factors",
    "velora_config": "VeLoRA is another update",
}
_EXPORT_DENSE = "Merge it into its base with peft's merge_and_unload and use the dense model."


class _Factors(NamedTuple):
    """LoRA factors of one weight: stored keys, scale, and whether B A is transposed."""

    key_a: str
    key_b: str
    scale: float
    embedding: bool
    transposed: bool


class LowRank(NamedTuple):
    """The update of one weight as a product: scale * up down, in the weight's own orientation."""

    up: Float32[Tensor, "rows rank"]
    down: Float32[Tensor, "rank columns"]
    scale: float
    embedding: bool
    """Whether peft keeps the factors as those of an embedding."""


class AdapterCheckpoint(Checkpoint):
    """A PEFT LoRA adapter on a base, seen as a dense checkpoint.

    Names and shapes are the base's. A tensor with factors is given as float32
    ``base + scale * B A`` with ``scale = lora_alpha / rank`` (``/ sqrt(rank)`` for rsLoRA),
    not rounded to the base's dtype; modules_to_save and trained biases are given as stored; all
    else is the base's. Rank and alpha patterns and fan_in_fan_out follow peft 0.21.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        base: The checkpoint the adapter was trained on.

    Raises:
        CheckpointError: If a file is missing or corrupt, the adapter is not plain LoRA (DoRA,
            other peft types, starts that change the base), a factor does not fit the base, or it
            changes an embedding that is also the output head.
    """

    def __init__(self, folder: Path | str, base: Checkpoint) -> None:
        self.folder = existing_folder(folder)
        self.base = base
        self.config = base.config
        self.adapter_config = read_json(self.folder / ADAPTER_CONFIG)
        self._config_file = WatchedFile(self.folder / ADAPTER_CONFIG)
        _check_plain_lora(self.folder, self.adapter_config)
        path = self.folder / ADAPTER_WEIGHTS
        if not path.is_file():
            refuse_pickle(self.folder, wanted=ADAPTER_WEIGHTS)
        self._handle = open_safetensors(path)
        self._entries = self._handle.entries
        self._factors, self._replaced = self._sort_keys()
        self._check_tied_embedding()

    @property
    def names(self) -> tuple[str, ...]:
        """Every stored tensor name, sorted."""
        return self.base.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives: float32 where there are factors."""
        if name in self._factors:
            return torch.float32
        if name in self._replaced:
            return self._entries[self._replaced[name]].dtype
        return self.base.dtype(name)

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a dense tensor; those the adapter does not change are the base's views."""
        whole = self.whole(name)
        weight = self.base.tensor(name) if whole is None else whole
        update = self.low_rank(name)
        if update is None:
            return weight
        return torch.addmm(weight.float(), update.up, update.down, alpha=update.scale)

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor's update, None where the adapter has none."""
        factors = self._factors.get(name)
        if factors is None:
            return None
        lora_a = self._stored(factors.key_a).float()
        lora_b = self._stored(factors.key_b).float()
        if factors.transposed:
            lora_a, lora_b = lora_b.T, lora_a.T
        return LowRank(lora_b, lora_a, factors.scale, factors.embedding)

    def whole(self, name: str) -> Shaped[Tensor, "..."] | None:
        """Return a tensor that the adapter stores whole, before factors; None if it does not.

        Those are modules_to_save and biases, and the copies of the base's embeddings that peft
        keeps beside their factors.
        """
        key = self._replaced.get(name)
        return None if key is None else self._stored(key)

    def check_unchanged(self) -> None:
        """Refuse an adapter or a base whose files are no longer those that were opened."""
        self.base.check_unchanged()
        self._handle.check_unchanged()
        self._config_file.check_unchanged()

    @property
    def adapted_names(self) -> tuple[str, ...]:
        """Names of the tensors that differ from the base, sorted."""
        return tuple(sorted({*self._factors, *self._replaced}))

    def _stored(self, key: str) -> Tensor:
        return read_tensor(self._handle, self.folder / ADAPTER_WEIGHTS, key)

    def _sort_keys(self) -> tuple[dict[str, _Factors], dict[str, str]]:
        keys_by_module: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        embeddings: set[str] = set()
        for key in self._entries:
            module_key = key.removeprefix(_PREFIX)
            match = _FACTOR.match(module_key)
            if match is None:
                name = module_key.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
                self._check_replacement(key, name)
                replaced[name] = key
                continue
            side = match["linear"] or match["embedding"]
            keys_by_module.setdefault(match["module"], {})[side] = key
            if match["embedding"]:
                embeddings.add(match["module"])
        factors = {
            f"{module}.weight": self._pair(module, keys, embedding=module in embeddings)
            for module, keys in keys_by_module.items()
        }
        if not factors and not replaced:
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}: an adapter must change some tensor; got none. "
                f"Save the adapter again."
            )
        return factors, replaced

    def _check_tied_embedding(self) -> None:
        embedding = self.base.input_embedding
        if self.base.tied_embeddings and embedding in self.adapted_names:
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}, tensor '{embedding}': a tied embedding cannot "
                f"be changed by an adapter, which trained it as input only; got factors or a "
                f"copy for it. {_EXPORT_DENSE}"
            )

    def _pair(self, module: str, keys: dict[str, str], *, embedding: bool) -> _Factors:
        where = f"{self.folder / ADAPTER_WEIGHTS}, module '{module}'"
        if set(keys) != {"A", "B"}:
            raise CheckpointError(
                f"{where}: both lora_A and lora_B must be stored; got only "
                f"lora_{next(iter(keys))}. Save the adapter again."
            )
        name = f"{module}.weight"
        if name not in self.base:
            raise CheckpointError(
                f"{where}: must be a weight of the base; got no '{name}' in "
                f"'{self.base.folder}'. Use the base that the adapter was trained on."
            )
        shape_a, shape_b = (self._entries[keys[side]].shape for side in ("A", "B"))
        transposed = embedding or bool(self.adapter_config.get("fan_in_fan_out"))
        two_axes = len(shape_a) == len(shape_b) == 2
        product = (shape_b[0], shape_a[1]) if two_axes else ()
        wanted = self.base.shape(name)
        if product[:: -1 if transposed else 1] != wanted or shape_a[0] != shape_b[1]:
            raise CheckpointError(
                f"{where}: B A must have the base weight's shape {wanted}; got A {shape_a}, "
                f"B {shape_b}. Use the base that the adapter was trained on."
            )
        scale = self._scale(where, module, shape_a[0])
        return _Factors(keys["A"], keys["B"], scale, embedding, transposed)

    def _scale(self, where: str, module: str, rank: int) -> float:
        declared = _by_pattern(self.adapter_config, "rank_pattern", module, "r", 8.0)
        if declared != rank:
            raise CheckpointError(
                f"{where}: rank must be as configured, {declared:g}; got factors of rank {rank}. "
                f"Keep adapter_config.json and weights of one training run together."
            )
        lora_alpha = _by_pattern(self.adapter_config, "alpha_pattern", module, "lora_alpha", 8.0)
        return lora_alpha / (
            math.sqrt(rank) if self.adapter_config.get("use_rslora") else float(rank)
        )

    def _check_replacement(self, key: str, name: str) -> None:
        entry: TensorEntry = self._entries[key]
        if name not in self.base:
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}, tensor '{key}': must replace a tensor of the "
                f"base; got no '{name}' there (a new head, a tied one, or another kind of "
                f"adapter). {_EXPORT_DENSE}"
            )
        if entry.shape != self.base.shape(name):
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}, tensor '{key}': must have the base's shape "
                f"{self.base.shape(name)}; got {entry.shape}. {_EXPORT_DENSE}"
            )


def is_adapter(folder: Path | str) -> bool:
    """Tell whether a folder holds a PEFT adapter rather than a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def open_checkpoint(path: Path | str, base: Checkpoint | None = None) -> Checkpoint:
    """Open a checkpoint's folder, dense or LoRA, without reading its weights.

    Args:
        path: Folder with safetensors weights and config.json, or a PEFT LoRA adapter.
        base: Checkpoint an adapter is added to, needed for adapters; a dense checkpoint is given
            under its names, see `under_names_of`.

    Returns:
        A `DenseCheckpoint`, maybe renamed, or an `AdapterCheckpoint`.

    Raises:
        CheckpointError: If the folder holds no readable safetensors checkpoint, or it is an
            adapter and no base was given.
    """
    folder = existing_folder(path)
    if not is_adapter(folder):
        opened = DenseCheckpoint(folder)
        return opened if base is None else under_names_of(base, opened)
    if base is None:
        raise CheckpointError(
            f"{folder}: an adapter needs the base it was trained on; got no base. "
            f"Use it as an expert, not as the base."
        )
    return AdapterCheckpoint(folder, base)


def _check_plain_lora(folder: Path, config: dict[str, Any]) -> None:
    where = folder / ADAPTER_CONFIG
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{where}: peft_type must be LORA; got {config.get('peft_type')!r}. {_EXPORT_DENSE}"
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{where}: {key} must be unset, for base + B A would be wrong ({reason}); got "
                f"{str(config[key])[:40]}. {_EXPORT_DENSE}"
            )
    start = config.get("init_lora_weights", True)
    if start not in _BASE_KEEPING_STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights must leave the base weights as they are; got {start!r}. "
            f"Save with path_initial_model_for_weight_conversion, or export the dense model."
        )


def _by_pattern(
    config: dict[str, Any], patterns: str, module: str, key: str, default: float
) -> float:
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(config.get(key, default))
