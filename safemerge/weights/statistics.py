"""What was measured of a model on data: Fisher diagonals, Gram matrices, importance.

A folder holds ``statistics.json`` and, for each quantity, a safetensors file whose tensors bear
the checkpoint's names. Tensors are read one at a time, through a memory map.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from safemerge.cache import read_entry, write_entry
from safemerge.config.checkpoint import Quantity
from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.weights.agreement import is_finite
from safemerge.weights.checkpoint import Checkpoint, read_json
from safemerge.weights.header import TensorEntry
from safemerge.weights.tensor_file import TensorFile
from safemerge.weights.watched_file import content_digest

STATISTICS_FILE = "statistics.json"
FILES: Mapping[Quantity, tuple[str, ...]] = MappingProxyType(
    {"fisher": ("fisher",), "gram": ("gram",), "importance": ("importance", "base_importance")}
)
"""Stems of the safetensors files of each quantity."""


class TensorStatistics(NamedTuple):
    """What was measured of one model for one named tensor; None for what was not."""

    fisher: Float[Tensor, "..."] | None = None
    """Diagonal Fisher information, of the tensor's shape, at least 0."""
    fisher_norm: float = 1.0
    """Euclidean norm of the model's whole Fisher diagonal."""
    fisher_mean: float = 1.0
    """Mean entry of the model's whole Fisher diagonal."""
    gram: Float[Tensor, "columns columns"] | None = None
    """Mean of x x^T over the inputs x of a linear layer; None for other tensors."""
    importance: Float[Tensor, "..."] | None = None
    """Mean over rows of abs(w dL/dw), of the tensor's shape."""
    base_importance: Float[Tensor, "..."] | None = None
    """The same of the base, on the same rows."""

    def to(self, device: torch.device) -> "TensorStatistics":
        """Return the statistics on a device."""
        moved: dict[str, Any] = {
            name: item.to(device)
            for name, item in self._asdict().items()
            if isinstance(item, Tensor)
        }
        return self._replace(**moved)


def save_statistics(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], document: Mapping[str, Any]
) -> None:
    """Write a folder of statistics, its document last: without it the folder is unfinished.

    Gram matrices that are equal, of layers that read the same input, are stored once.

    Args:
        folder: An existing folder.
        tensors: Means by file stem (see `FILES`) and tensor name.
        document: What is reported about them: quantities, digest, model, fisher, gram.
    """
    shown = dict(document)
    for stem, by_name in tensors.items():
        stored = dict(by_name)
        if stem == "gram":
            twins = _twins(by_name)
            shown["gram"] = {**document["gram"], "twins": twins}
            stored = {name: item for name, item in stored.items() if name not in twins}
        file = folder / f"{stem}.safetensors"
        save_file({name: item.contiguous() for name, item in stored.items()}, file)
    text = json.dumps(shown, indent=2) + "\n"
    (folder / STATISTICS_FILE).write_text(text, encoding="utf-8")


def _twins(grams: Mapping[str, Tensor]) -> dict[str, str]:
    """Name, for each matrix that equals one of the few before it, of that one."""
    owners: list[str] = []
    twins: dict[str, str] = {}
    for name, gram in grams.items():
        same = (other for other in owners[-3:] if torch.equal(grams[other], gram))
        owner = next(same, None)
        if owner is None:
            owners.append(name)
        else:
            twins[name] = owner
    return twins


class ModelStatistics:
    """A folder of gathered statistics, read on demand.

    Args:
        folder: What `safemerge statistics` or a recipe's gathering made.

    Raises:
        CheckpointError: If it is no such folder, or a file is missing or corrupt.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        if not (self.folder / STATISTICS_FILE).is_file():
            raise CheckpointError(
                f"{self.folder}: must be a folder of statistics; got no {STATISTICS_FILE}. Name "
                f"a statistics file with 'gather', or a folder that was gathered."
            )
        self.document = read_json(self.folder / STATISTICS_FILE)
        self._files: dict[str, Path] = {}
        self._entries: dict[str, Mapping[str, TensorEntry]] = {}
        self._handles: dict[str, TensorFile] = {}
        for quantity in self.quantities:
            for stem in FILES[quantity]:
                file = self.folder / f"{stem}.safetensors"
                if not file.is_file():
                    raise CheckpointError(
                        f"{self.folder}: must hold {file.name}; got no such file. Gather the "
                        f"statistics again."
                    )
                self._files[stem] = file
                self._handles[stem] = TensorFile(file)
                self._entries[stem] = self._handles[stem].entries

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What was measured."""
        return tuple(item for item in FILES if item in self.document.get("quantities", ()))

    @property
    def digest(self) -> str:
        """Digest of the model, data and settings that these were gathered from."""
        return str(self.document["digest"])

    @property
    def model(self) -> str:
        """Fingerprint of the model that was measured."""
        return str(self.document["model"])

    def at(self, name: str, quantities: Collection[Quantity]) -> TensorStatistics:
        """Return what was measured for one tensor.

        Args:
            name: Tensor name.
            quantities: What is asked for; the rest is not read.

        Raises:
            CheckpointError: If a quantity was not gathered.
        """
        for quantity in quantities:
            if quantity not in self.quantities:
                raise CheckpointError(
                    f"{self.folder}: must hold {quantity}; got {', '.join(self.quantities)}. Add "
                    f"it to quantities in the statistics file."
                )
        found = {
            stem: self._read(stem, self._stored(stem, name))
            for quantity in quantities
            for stem in FILES[quantity]
            if self._stored(stem, name) in self._entries[stem]
        }
        if "fisher" in quantities:
            text = self.document["fisher"]
            found.update(fisher_norm=float(text["norm"]), fisher_mean=float(text["mean"]))
        return TensorStatistics(**found)

    def gram_tokens(self) -> dict[str, tuple[int, int]]:
        """Tokens that each Gram matrix is the mean over, and its columns, by tensor."""
        return {
            name: (int(count), self._entries["gram"][self._stored("gram", name)].shape[-1])
            for name, count in self.document["gram"]["tokens"].items()
        }

    def check(self, checkpoint: Checkpoint, quantities: Collection[Quantity], where: str) -> None:
        """Check that statistics fit a model: names, shapes, finite values, some not zero.

        The outcome of the pass over the values is cached by the files' bytes.

        Args:
            checkpoint: A model of the architecture they must fit.
            quantities: What will be read.
            where: Place named first in messages.

        Raises:
            CheckpointError: If a quantity was not gathered, or a value is not finite, negative,
                or all are zero.
            CheckpointMismatchError: If names or shapes differ.
        """
        self.at("", quantities)
        for quantity in quantities:
            for stem in FILES[quantity]:
                self._check_shapes(checkpoint, stem, where)
                self._check_values(stem, where)

    def _stored(self, stem: str, name: str) -> str:
        """Name under which a tensor's entry is stored: layers that read one input share it."""
        twins = self.document.get("gram", {}).get("twins", {}) if stem == "gram" else {}
        return str(twins.get(name, name))

    def check_unchanged(self) -> None:
        """Refuse statistics whose files are no longer those that were opened.

        Raises:
            CheckpointChangedError: If a file changed, is gone, or cannot be read.
        """
        for opened in self._handles.values():
            opened.check_unchanged()

    def _read(self, stem: str, name: str) -> Any:
        return self._handles[stem].get_tensor(name)

    def _check_shapes(self, checkpoint: Checkpoint, stem: str, where: str) -> None:
        entries = self._entries[stem]
        known = {**entries}
        if stem == "gram":
            twins = self.document.get("gram", {}).get("twins", {})
            known.update({twin: entries[owner] for twin, owner in twins.items()})
            wanted = [name for name in checkpoint.distinct_names if name in known]
        else:
            wanted = list(checkpoint.distinct_names)
        if not wanted or any(name not in known for name in wanted):
            lacking = next((name for name in wanted if name not in known), "any tensor")
            raise CheckpointMismatchError(
                f"{where}: {stem} must have the model's tensors; got none for '{lacking}' in "
                f"'{self.folder}'. Gather the statistics of this model."
            )
        for name in wanted:
            shape = checkpoint.shape(name)
            expected = (shape[-1], shape[-1]) if stem == "gram" and shape else shape
            if known[name].shape != expected:
                raise CheckpointMismatchError(
                    f"{where}, tensor '{name}': {stem} must have shape {expected}; got "
                    f"{known[name].shape} in '{self.folder}'. Gather the statistics of this model."
                )

    def _check_values(self, stem: str, where: str) -> None:
        file = self._files[stem]
        key = content_digest(file)
        if read_entry("statistics-checked", key) is not None:
            return
        total = 0.0
        for name in self._entries[stem]:
            tensor = self._read(stem, name)
            diagonal = tensor.diagonal() if stem == "gram" else tensor
            if not is_finite(tensor) or (diagonal.numel() and float(diagonal.min()) < 0.0):
                raise CheckpointError(
                    f"{where}, tensor '{name}': {stem} must be finite and not negative; got "
                    f"others in '{file}'. Gather the statistics again."
                )
            total += float(diagonal.sum(dtype=torch.float64))
        if total == 0.0:
            raise CheckpointError(
                f"{where}: {stem} must not be zero everywhere; got only zeros in '{file}'. Check "
                f"that the rows' answers fit max_tokens."
            )
        self._handles[stem].check_unchanged()
        write_entry("statistics-checked", key, {"sound": True})
