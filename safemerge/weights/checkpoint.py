"""Checkpoints as lazy, memory-mapped maps from tensor name to tensor."""

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from safemerge.errors import CheckpointChangedError, CheckpointError
from safemerge.weights import pages
from safemerge.weights.header import TensorEntry
from safemerge.weights.hub import on_this_node
from safemerge.weights.index import INDEX_FILE as INDEX_FILE
from safemerge.weights.index import SINGLE_FILE as SINGLE_FILE
from safemerge.weights.index import check_index, check_no_pointers, shard_files
from safemerge.weights.index import refuse_pickle as refuse_pickle
from safemerge.weights.kind import tower_of
from safemerge.weights.model_class import is_buffer_name, unread_tensors
from safemerge.weights.quantized import check_not_quantized
from safemerge.weights.settings import ties_embeddings
from safemerge.weights.tensor_file import TensorFile
from safemerge.weights.watched_file import WatchedFile

CONFIG_FILE = "config.json"
OUTPUT_HEAD = "lm_head.weight"
"""Name of the output projection; with tied embeddings it is the input embedding."""

_INPUT_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight$"
)
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_HUB_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Return the 0-indexed decoder layer a tensor belongs to, None outside the layers.

    The layer is read from ``.layers.<n>.`` or ``.h.<n>.`` in the name. Layers of other towers,
    as of a vision encoder, are none; see `tower_of`.
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match and tower_of(name) is None else None


class Checkpoint(ABC):
    """Weights by name, read on demand; what merging knows of a model.

    Tensors may be views of a memory map: callers must not write to them.
    """

    folder: Path
    """Folder the checkpoint was opened from."""
    config: dict[str, Any]
    """The model's config.json; an adapter gives its base's."""
    left_out: tuple[str, ...] = ()
    """Names of stored tensors that transformers ignores, sorted; they are no part of the model."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted, without those that are left out."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""

    @abstractmethod
    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor; raises CheckpointError for an unknown name."""

    def fetch(self, name: str) -> None:  # noqa: B027
        """Bring a tensor into memory, so that reading it later does not wait."""

    def release(self, name: str) -> None:  # noqa: B027
        """Let a tensor's memory go until it is read again; views of it stay valid."""

    def check_unchanged(self) -> None:  # noqa: B027
        """Refuse files that are no longer those that were opened; what was read is then void.

        Cheap: asked before and after every merge.

        Raises:
            CheckpointChangedError: If a file changed, is gone, or cannot be read.
        """

    def __contains__(self, name: object) -> bool:
        """Tell whether a tensor of that name is stored."""
        return name in self.names

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def setting(self, *keys: str) -> object:
        """Return the first of several config keys that is set, top level or ``text_config``."""
        nested = self.config.get("text_config")
        for section in (self.config, nested if isinstance(nested, dict) else {}):
            for key in keys:
                if section.get(key) is not None:
                    return section[key]
        return None

    @property
    def input_embedding(self) -> str | None:
        """Name of the input embedding, None if no usual name is found."""
        return next(
            (
                name
                for name in self.names
                if _INPUT_EMBEDDING.search(name) and tower_of(name) is None
            ),
            None,
        )

    @property
    def tied_embeddings(self) -> bool:
        """Whether input embedding and output head are one tensor.

        ``tie_word_embeddings`` of the config; where the config is silent, True if no
        ``lm_head.weight`` is stored, and else what transformers takes for the model's type.
        """
        declared = self.setting("tie_word_embeddings")
        if declared is not None:
            return bool(declared)
        return OUTPUT_HEAD not in self.names or ties_embeddings(self.config)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, by the config or else by the tensor names."""
        declared = self.setting(*_LAYER_COUNTS)
        if isinstance(declared, int):
            return declared
        layers = [layer for name in self.names if (layer := layer_of(name)) is not None]
        return max(layers) + 1 if layers else 0

    @property
    def distinct_names(self) -> tuple[str, ...]:
        """Names without a redundantly stored tied output head, sorted; what is merged."""
        if self.tied_embeddings and self.input_embedding is not None:
            return tuple(name for name in self.names if name != OUTPUT_HEAD)
        return self.names

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return sum(torch.Size(self.shape(name)).numel() for name in self.distinct_names)


class DenseCheckpoint(Checkpoint):
    """A folder with config.json and safetensors weights, one file or indexed shards.

    Headers are checked at opening; data is memory-mapped where `TensorFile` can, so that processes
    of a node share the page cache and reading a tensor copies nothing.

    Args:
        folder: The checkpoint's folder.

    Raises:
        CheckpointError: If the folder, config.json or the weights are missing, only pickle
            files or Git LFS pointers are there, an old index lies beside newer weights, a file
            is truncated or corrupt, or the weights are quantised.
        CheckpointChangedError: If a file changes while it is opened.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = existing_folder(folder)
        self.config = read_json(self.folder / CONFIG_FILE)
        self._config_file = WatchedFile(self.folder / CONFIG_FILE)
        self.files = weight_files(self.folder)
        self._handles = {file: TensorFile(file) for file in self.files}
        self._entries: dict[str, TensorEntry] = {}
        self._file_by_name: dict[str, Path] = {}
        for file, opened in self._handles.items():
            for name, entry in opened.entries.items():
                if name in self._entries:
                    raise CheckpointError(
                        f"{file}, tensor '{name}': a tensor must be in one shard only; got it "
                        f"also in '{self._file_by_name[name].name}'. Save the checkpoint again."
                    )
                self._entries[name] = entry
                self._file_by_name[name] = file
        if not self._entries:
            raise CheckpointError(
                f"{self.folder}: the weight files must hold tensors; got none. Save it again."
            )
        check_not_quantized(self.folder, self.config, self._entries)
        self.left_out = tuple(sorted(self._unread()))
        for name in self.left_out:
            del self._entries[name]
        self._names = tuple(sorted(self._entries))
        index = self.folder / INDEX_FILE
        if index.is_file():
            check_index(index, _weight_map(index), self._file_by_name, may_lack=self._may_lack)
        self._mappings: dict[Path, tuple[pages.Mapping, ...]] = {}
        self._views: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every stored tensor name, sorted."""
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` gives, without reading it."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor as a view of the memory map; it must not be written to."""
        view = self._views.get(name)
        if view is None:
            self._entry(name)
            file = self._file_by_name[name]
            view = self._views[name] = self._handles[file].get_tensor(name)
        return view

    def fetch(self, name: str) -> None:
        """Bring a tensor's pages into memory, so that reading it later does not wait."""
        pages.fetch(self.tensor(name))

    def release(self, name: str) -> None:
        """Let a tensor's pages go from this process until it is read again."""
        file = self._file_by_name[name]
        if file not in self._mappings:
            self._mappings[file] = pages.mappings_of(file)
        pages.release(self.tensor(name), self._mappings[file])
        # NOTE: with the view held, peak memory of a merge to disk was some tensors higher.
        self._views.pop(name, None)

    def check_unchanged(self) -> None:
        """Refuse weights or a config that are no longer those that were opened.

        A config counts by value, as it does in fingerprints.

        Raises:
            CheckpointChangedError: If a file changed, is gone, or cannot be read.
        """
        for opened in self._handles.values():
            opened.check_unchanged()
        changed = self._config_file.difference()
        if changed is None:
            return
        path = self._config_file.path
        if not path.is_file() or read_json(path) != self.config:
            raise CheckpointChangedError(
                f"{path}: must stay as it was when it was opened; got {changed}. Put the old "
                f"file back, or start a new run with this one."
            )

    def _unread(self) -> frozenset[str]:
        layers = {name: layer for name in self._entries if (layer := layer_of(name)) is not None}
        declared = self.setting(*_LAYER_COUNTS)
        beyond = [
            name
            for name, layer in layers.items()
            if isinstance(declared, int) and layer >= declared
        ]
        return unread_tensors(self.config, self._entries, beyond)

    def _may_lack(self, name: str) -> bool:
        """Whether an index may name a tensor that is not stored: a tied head, a dead buffer."""
        if name != OUTPUT_HEAD:
            return is_buffer_name(name)
        declared = self.setting("tie_word_embeddings")
        return ties_embeddings(self.config) if declared is None else bool(declared)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._entries:
            raise CheckpointError(
                f"{self.folder}: must hold the tensor asked for; got no '{name}' among "
                f"{len(self._names)} tensors. Check that the checkpoint is of the same model."
            )
        return self._entries[name]


def existing_folder(folder: Path | str) -> Path:
    """Return the absolute path of a checkpoint's folder, on this machine.

    Raises:
        CheckpointError: If there is no such folder (says so if it looks like a repository of the
            hub), or its files are Git LFS pointers. See `on_this_node` for the hub's snapshots.
    """
    try:
        path = on_this_node(Path(folder).expanduser().absolute())
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{str(folder)[:80]!r}: a checkpoint must be a folder; got: {reason}. Check the path."
        ) from None
    if not is_folder:
        found = "a file" if path.exists() else "nothing there"
        raise CheckpointError(
            f"{path}: a checkpoint must be a folder; got {found}. {_advice(path)}"
        )
    check_no_pointers(path)
    return path


def _advice(path: Path) -> str:
    like_hub = not path.parent.exists() and path.parent.parent.is_dir()
    if like_hub and _HUB_PART.fullmatch(path.name) and _HUB_PART.fullmatch(path.parent.name):
        repository = f"{path.parent.name}/{path.name}"
        return f"Check the path; if it is a repository of the hub, write 'hub: {repository}'."
    return "Check the path."


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a checkpoint's file.

    Raises:
        CheckpointError: If the file is missing or no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: must hold {path.name}; got no such file. "
            f"Use the folder that save_pretrained wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: must be readable JSON; got: {error}. Copy or save it again."
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path}: must be a JSON object; got {type(document).__name__}. Save it again."
        )
    return document


def open_safetensors(path: Path) -> TensorFile:
    """Return an open safetensors file.

    Raises:
        CheckpointError: See `TensorFile`.
    """
    return TensorFile(path)


def read_tensor(opened: TensorFile, path: Path, name: str) -> Shaped[Tensor, "..."]:
    """Return a tensor of an open file; it must not be written to.

    Raises:
        CheckpointError: See `TensorFile.get_tensor`.
    """
    del path
    return opened.get_tensor(name)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint's folder, sorted by name.

    Raises:
        CheckpointError: If there are none, a shard that the index names is missing, or an index
            of shards and a single file lie side by side.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.is_file():
        return shard_files(index, _weight_map(index).values())
    if single.is_file():
        return (single,)
    refuse_pickle(folder, wanted=f"{SINGLE_FILE} or {INDEX_FILE}")
    return ()


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: must have a weight_map; got {type(weight_map).__name__}. Save it again."
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: shards must be file names in the same folder; got {shard!r}. "
                f"Save the checkpoint again."
            )
    return weight_map
