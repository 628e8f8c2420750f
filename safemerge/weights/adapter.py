"""LoRA adapters as dense checkpoints: what peft merges, computed when a tensor is asked for."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from safemerge.errors import CheckpointError
from safemerge.weights.checkpoint import (
    CONFIG_FILE,
    OUTPUT_HEAD,
    Checkpoint,
    DenseCheckpoint,
    existing_folder,
    open_safetensors,
    read_json,
    read_tensor,
    refuse_pickle,
)
from safemerge.weights.injection import Copy, ExpertProducts, Product, Update, inject
from safemerge.weights.skeleton import Conversion, bare_model, conversions
from safemerge.weights.tensor_file import TensorFile
from safemerge.weights.untied import with_own_head
from safemerge.weights.watched_file import WatchedFile

_PREFIX = re.compile(r"(?:\w+\.)+")


class RenamedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are given under other names.

    Args:
        source: The checkpoint as stored.
        stored: Stored name by the name it is given under.
    """

    def __init__(self, source: Checkpoint, stored: Mapping[str, str]) -> None:
        self.source = source
        self.folder = source.folder
        self.config = source.config
        self._stored = dict(stored)
        self._names = tuple(sorted(self._stored))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a tensor is given under, sorted."""
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.source.shape(self._stored.get(name, name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""
        return self.source.dtype(self._stored.get(name, name))

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return the source's tensor."""
        return self.source.tensor(self._stored.get(name, name))

    def fetch(self, name: str) -> None:
        """Bring the source's tensor into memory."""
        self.source.fetch(self._stored.get(name, name))

    def release(self, name: str) -> None:
        """Let the source's tensor go."""
        self.source.release(self._stored.get(name, name))

    def check_unchanged(self) -> None:
        """Refuse a source whose files are no longer those that were opened."""
        self.source.check_unchanged()


def under_names_of(base: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint under the base's names, where a prefix is all that differs.

    A model saved without its head has no ``transformer.`` or ``model.`` before its names, as
    GPT-2 and BLOOM are published; transformers adds it when it loads them and writes it when it
    saves them. What the prefix is shows in the name of the input embedding.

    Args:
        base: Checkpoint whose names are wanted.
        checkpoint: Checkpoint of the same model.

    Returns:
        The checkpoint itself where its input embedding has the base's name or another one than
        a prefix explains.
    """
    wanted, found = base.input_embedding, checkpoint.input_embedding
    if wanted is None or found is None or wanted == found:
        return checkpoint
    names = {}
    for name in checkpoint.names:
        if found.endswith(f".{wanted}") and _PREFIX.fullmatch(found.removesuffix(wanted)):
            renamed = name.removeprefix(found.removesuffix(wanted))
        elif wanted.endswith(f".{found}") and _PREFIX.fullmatch(wanted.removesuffix(found)):
            renamed = f"{wanted.removesuffix(found)}{name}"
        else:
            return checkpoint
        names[renamed if renamed in base else name] = name
    return RenamedCheckpoint(checkpoint, names)


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_BASE_KEEPING_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they are."""
_REFUSED = {
    "use_qalora": "QA-LoRA pools its inputs",
    "alora_invocation_tokens": "activated LoRA depends on the prompt",
    "layer_replication": "replicated layers change the architecture",
    "arrow_config": "routed adapters depend on the input",
    "kasa_config": "KaSA adds singular values",
    "use_bdlora": "block-diagonal factors",
    "monteclora_config": "sampled factors",
    "velora_config": "VeLoRA is another update",
}
_EXPORT_DENSE = "Merge it into its base with peft's merge_and_unload and use the dense model."


class LowRank(NamedTuple):
    """The update of one weight as a product: scale * up down, in the weight's own orientation."""

    up: Float32[Tensor, "rows rank"]
    down: Float32[Tensor, "rank columns"]
    scale: float
    embedding: bool
    """Whether peft keeps the factors as those of an embedding."""
    transposed: bool = False
    """Whether peft keeps the factors the other way round, as for GPT-2's Conv1D."""


class AdapterCheckpoint(Checkpoint):
    """A PEFT LoRA adapter on a base, seen as the dense checkpoint that peft merges it to.

    Names and shapes are those of the base's files. Values are those of ``merge_and_unload`` in
    float32, not rounded to the base's dtype; tensors that the adapter stores whole are given as
    stored, and all that it leaves alone are the base's. Which modules are meant, their kinds,
    ranks and scales, fused experts and DoRA are peft's own reading of the adapter.

    Where the base ties input embedding and output head and the adapter parts them (one of them
    in modules_to_save), so does this checkpoint: its head is stored and its config says so.
    Where peft merges into the one tensor that both are, both change.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        base: The checkpoint the adapter was trained on.

    Raises:
        CheckpointError: If a file is missing or corrupt, the adapter is not LoRA or of a kind
            that no single set of weights equals, its tensors do not fit the base, or transformers
            does not know the base's architecture.
    """

    def __init__(self, folder: Path | str, base: Checkpoint) -> None:
        self.folder = existing_folder(folder)
        self.base = base
        self.adapter_config = read_json(self.folder / ADAPTER_CONFIG)
        self._config_file = WatchedFile(self.folder / ADAPTER_CONFIG)
        _check_kind(self.folder, self.adapter_config)
        self._handle, tensors = _open_tensors(self.folder)
        model = bare_model(base.folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = conversions(model, base.names)
        self._of_name = {
            name: entry for entry in found for names in entry.stored for name in names
        }
        embedding = self._memory(base.input_embedding)
        tied = [name for name, held in _same(model, embedding) if held]
        injected = inject(self.folder, model, tensors, advice=_EXPORT_DENSE)
        self._updates = injected.updates
        parted = [
            name for name in tied if injected.together[name] != injected.together[embedding or ""]
        ]
        self.config, self._names = base.config, base.names
        if base.tied_embeddings and parted:
            self._of_name[OUTPUT_HEAD] = Conversion((parted[0],), ((OUTPUT_HEAD,),))
            self.config = with_own_head(base.config)
            self._names = tuple(sorted({*base.names, OUTPUT_HEAD}))
        self._changed = {
            name: entry
            for name, entry in self._of_name.items()
            if any(parameter in self._updates for parameter in entry.memory)
        }
        self._check_shapes(shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted."""
        return self._names

    @property
    def named_base(self) -> str | None:
        """The base that the adapter's config names; see `named_base`."""
        return named_base(self.folder, self.adapter_config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.base.shape(self._in_base(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives: float32 where something is computed."""
        if name not in self._changed:
            return self.base.dtype(self._in_base(name))
        updates = self._plain_updates(name)
        if updates is not None and isinstance(updates[-1], Copy):
            return updates[-1].value.dtype
        return torch.float32

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a dense tensor; those the adapter does not change are the base's views."""
        updates = self._plain_updates(name)
        if name in self._changed and updates is None:
            return self._converted(name)
        weight = self.base.tensor(self._in_base(name))
        for update in updates or ():
            weight = update.apply(weight)
        return weight

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor's update, None where the adapter has none."""
        updates = self._plain_updates(name) or ()
        factors = [update for update in updates if isinstance(update, Product)]
        if len(factors) != 1:
            return None
        up, down, scale, embedding, transposed = factors[0]
        return LowRank(up.float(), down.float(), scale, embedding, transposed)

    def whole(self, name: str) -> Shaped[Tensor, "..."] | None:
        """Return a tensor that the adapter stores whole, before factors; None if it does not.

        Those are modules_to_save and biases, and the copies of the base's embeddings that peft
        keeps beside their factors.
        """
        copies = [item for item in self._plain_updates(name) or () if isinstance(item, Copy)]
        return copies[-1].value if copies else None

    def check_unchanged(self) -> None:
        """Refuse an adapter or a base whose files are no longer those that were opened."""
        self.base.check_unchanged()
        self._handle.check_unchanged()
        self._config_file.check_unchanged()

    @property
    def adapted_names(self) -> tuple[str, ...]:
        """Names of the tensors that the adapter changes, sorted."""
        return tuple(sorted(self._changed))

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the tensors whose update is no product of two factors nor a copy, sorted.

        Those are fused experts, DoRA, single tokens, convolutions, and a tied head's factors.
        """
        return tuple(name for name in self.adapted_names if not self._is_factored(name))

    def memory_name(self, name: str) -> str:
        """Return the name that transformers has for a tensor in memory."""
        return self._of_name[name].memory[0]

    @property
    def memory_names(self) -> tuple[str, ...]:
        """Names of the base's parameters in memory, sorted."""
        return tuple(sorted({item for entry in self._of_name.values() for item in entry.memory}))

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, entry in self._changed.items():
            wanted = shapes[entry.memory[0]]
            if entry.converter is None and self.shape(name) != wanted:
                raise CheckpointError(
                    f"{self.base.folder}, tensor '{name}': must have the shape that config.json "
                    f"asks for, {wanted}, for an adapter to be added; got {self.shape(name)}. Use "
                    f"the base that the adapter was trained on, not a quantised copy."
                )

    def _is_factored(self, name: str) -> bool:
        updates = self._plain_updates(name)
        if updates is None or sum(isinstance(update, Product) for update in updates) > 1:
            return False
        products = [update for update in updates if isinstance(update, Product)]
        if name == self.base.input_embedding and not all(item.embedding for item in products):
            return False
        return all(isinstance(update, Product | Copy) for update in updates)

    def _memory(self, name: str | None) -> str | None:
        return self._of_name[name].memory[0] if name in self._of_name else None

    def _in_base(self, name: str) -> str:
        if name == OUTPUT_HEAD and name in self._names and name not in self.base:
            return self.base.input_embedding or name
        return name

    def _plain_updates(self, name: str) -> tuple[Update, ...] | None:
        """Updates of a tensor that is a parameter as it is; None where it is converted."""
        entry = self._changed.get(name)
        if entry is None or entry.converter is not None:
            return None
        return self._updates[entry.memory[0]]

    def _converted(self, name: str) -> Tensor:
        """A tensor of which a parameter in memory is made together with others."""
        entry = self._changed[name]
        every = [update for item in entry.memory for update in self._updates.get(item, ())]
        shapes = {item: self.base.shape(item) for names in entry.stored for item in names}
        if entry.by_expert and all(isinstance(update, ExpertProducts) for update in every):
            at = entry.expert_of(name)
            (parameter,) = entry.memory
            added = torch.stack(
                [item.of_expert(at) for item in every if isinstance(item, ExpertProducts)]
            ).sum(0)
            parts = entry.of_expert(at).to_stored({parameter: added}, shapes)
            return self.base.tensor(name).float() + parts[name]
        parameters = entry.to_memory({item: self.base.tensor(item).float() for item in shapes})
        for parameter in entry.memory:
            for update in self._updates.get(parameter, ()):
                parameters[parameter] = update.apply(parameters[parameter]).float()
        return entry.to_stored(parameters, shapes)[name].contiguous()


def is_adapter(folder: Path | str) -> bool:
    """Tell whether a folder holds a PEFT adapter rather than a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def named_base(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the base that an adapter's config names, None if it names none.

    Args:
        folder: The adapter's.
        config: Its ``adapter_config.json``.

    Returns:
        A folder or a name on a hub; of a path that leads from the adapter's folder to a model,
        that model's folder.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    beside = os.path.normpath(folder / named)
    return beside if os.path.isfile(os.path.join(beside, CONFIG_FILE)) else named


def adapter_weights(folder: Path) -> Path:
    """Return the weight file of an adapter's folder.

    Raises:
        CheckpointError: If there is none, or only a pickle file.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        refuse_pickle(folder, wanted=ADAPTER_WEIGHTS)
    return path


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


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    where = folder / ADAPTER_CONFIG
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{where}: peft_type must be LORA; got {config.get('peft_type')!r}. {_EXPORT_DENSE}"
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{where}: {key} must be unset, for no single set of weights equals it here "
                f"({reason}); got {str(config[key])[:40]}. {_EXPORT_DENSE}"
            )
    start = config.get("init_lora_weights", True)
    if start not in _BASE_KEEPING_STARTS:
        raise CheckpointError(
            f"{where}: init_lora_weights must leave the base weights as they are; got {start!r}. "
            f"Save with path_initial_model_for_weight_conversion, or export the dense model."
        )


def _open_tensors(folder: Path) -> tuple[TensorFile, dict[str, Tensor]]:
    path = adapter_weights(folder)
    opened = open_safetensors(path)
    if not opened.entries:
        raise CheckpointError(
            f"{path}: an adapter must change some tensor; got none. Save the adapter again."
        )
    return opened, {name: read_tensor(opened, path, name) for name in opened.entries}


def _same(model: Any, parameter: str | None) -> list[tuple[str, bool]]:
    """Names of parameters, and whether each is the same tensor as one of another name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = parameters.get(parameter)
    return [(name, held is wanted and name != parameter) for name, held in parameters.items()]
