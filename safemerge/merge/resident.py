"""Base and experts kept open between candidates: what an evaluator replica holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, MergeError
from safemerge.merge.coefficient import check_groups
from safemerge.merge.sparsify import ThresholdCache
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.stream import merged_tensors
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.agreement import check_agreement
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.fingerprint import fingerprint


class ResidentCheckpoints:
    """Memory-mapped base and experts, with what past candidates derived of them.

    Replicas of a node share the pages. Use `open`; the constructor takes what is open already.

    Args:
        refs: References by model name.
        checkpoints: Open checkpoints by model name.
        base_name: Which of them is the base.
    """

    def __init__(
        self,
        refs: Mapping[str, CheckpointRef],
        checkpoints: Mapping[str, Checkpoint],
        base_name: str,
    ) -> None:
        self.base_name = base_name
        self.checkpoints: Mapping[str, Checkpoint] = MappingProxyType(dict(checkpoints))
        self.thresholds = ThresholdCache()
        self.spectra = SpectrumCache()
        self._refs = dict(refs)
        self._other_thresholds: dict[tuple[tuple[str, str], ...], ThresholdCache] = {}

    @classmethod
    def open(cls, recipe: MergeRecipe, *, check: bool = True) -> "ResidentCheckpoints":
        """Open the base and experts of a recipe; all of them, whatever their weights.

        Args:
            recipe: Recipe whose checkpoints are given by `path`.
            check: Whether to compare fingerprints with the recipe's digests and to check that
                the checkpoints agree and are finite. Both are cached, see `check_agreement`.

        Returns:
            Open checkpoints, good for every recipe over the same models.

        Raises:
            CheckpointError: If a checkpoint cannot be read or is not finite.
            CheckpointMismatchError: If checkpoints disagree, or a digest is not the recipe's.
            ConfigError: If a layer group matches no tensor.
            MergeError: If a reference has no path.
        """
        where = f"recipe {recipe.digest[:4]}"
        base = open_checkpoint(_path(where, recipe.base))
        checkpoints = {recipe.base.name: base}
        for ref in recipe.experts:
            checkpoints[ref.name] = open_checkpoint(_path(where, ref), base)
        if check:
            for ref in recipe.checkpoints:
                _check_digest(where, ref)
            experts = {ref.name: checkpoints[ref.name] for ref in recipe.experts}
            check_agreement(base, experts, mixed_dtypes=recipe.dtype != "base", where=where)
        check_groups(recipe, base.distinct_names)
        refs = {ref.name: ref for ref in recipe.checkpoints}
        return cls(refs, checkpoints, recipe.base.name)

    @property
    def base(self) -> Checkpoint:
        """The open base."""
        return self.checkpoints[self.base_name]

    def merged(
        self, recipe: MergeRecipe, *, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Yield every tensor of a candidate; see `merged_tensors`.

        A model is found by its name, or else by its digest: several weights may be held for one
        name of a recipe, under names of their own.

        Args:
            recipe: A recipe over the models held here, or some of them.
            device: Where tensors are merged and given.

        Returns:
            Iterator of (name, merged tensor).

        Raises:
            MergeError: If the recipe is over other checkpoints, or cannot be merged.
        """
        held = {ref.name: self._held(recipe, ref) for ref in recipe.checkpoints}
        if recipe.base.name != self.base_name:
            raise MergeError(
                f"recipe {recipe.digest[:4]}: the base must be the one held, "
                f"'{self.base_name}'; got '{recipe.base.name}'. Open checkpoints for this recipe."
            )
        # Thresholds and spectra are kept by the recipe's names, so each set of weights under
        # them has its own; spectra are large, and kept for the set of plain names alone.
        others = tuple(sorted((name, own) for name, own in held.items() if name != own))
        thresholds = self.thresholds
        if others:
            thresholds = self._other_thresholds.setdefault(others, ThresholdCache())
        return merged_tensors(
            recipe,
            {name: self.checkpoints[own] for name, own in held.items()},
            thresholds=thresholds,
            spectra=None if others else self.spectra,
            device=device,
        )

    def base_tensors(self) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Yield the base's tensors as stored, a tied output head left out.

        Returns:
            Iterator of (name, tensor); tensors are shared and must not be written to.
        """
        for name in self.base.distinct_names:
            yield name, self.base.tensor(name)

    def _held(self, recipe: MergeRecipe, ref: CheckpointRef) -> str:
        held = self._refs.get(ref.name)
        if held is not None:
            if held.digest is not None and held.digest == ref.digest:
                return ref.name
            digests_differ = None not in (held.digest, ref.digest)
            if not digests_differ and _same_path(held, ref):
                return ref.name
        for name, other in self._refs.items():
            if ref.digest is not None and other.digest == ref.digest:
                return name
        got = f"'{held.path or held.digest}'" if held else "no such model"
        raise MergeError(
            f"recipe {recipe.digest[:4]}: model '{ref.name}' must be the one held; got "
            f"'{ref.path}' ({ref.digest}), held is {got}. Open checkpoints for this recipe."
        )


def _same_path(first: CheckpointRef, second: CheckpointRef) -> bool:
    if first.path is None or second.path is None:
        return False
    return Path(first.path).expanduser().resolve() == Path(second.path).expanduser().resolve()


def _path(where: str, ref: CheckpointRef) -> Path:
    if ref.path is None:
        raise MergeError(
            f"{where}, model '{ref.name}': must be a folder by now; got a reference without "
            f"path. Resolve package, align and finetune references first."
        )
    return Path(ref.path)


def _check_digest(where: str, ref: CheckpointRef) -> None:
    if ref.digest is None or ref.path is None:
        return
    found = fingerprint(ref.path)
    if found != ref.digest:
        raise CheckpointMismatchError(
            f"{where}, model '{ref.name}': weights must have the fingerprint of the recipe, "
            f"{ref.digest}; got {found} in '{ref.path}'. Use the checkpoint the recipe was made "
            f"with, or drop its digest."
        )
