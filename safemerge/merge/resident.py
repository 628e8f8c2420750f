"""Base and experts kept open between candidates: what an evaluator replica holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.checkpoint import CheckpointRef, Neighbours, Vocabulary, interpolated
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.tokenizer import TokenizerChoice
from safemerge.errors import (
    CheckpointChangedError,
    CheckpointError,
    CheckpointMismatchError,
    ConfigError,
    MergeError,
)
from safemerge.merge.coefficient import check_groups
from safemerge.merge.derived import DerivedData
from safemerge.merge.digest import check_digests
from safemerge.merge.reference import model_path, open_statistics
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.stream import Destination, in_one_vocabulary, merged_tensors
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.tokenizer_notice import tokenizer_notices
from safemerge.merge.transfer import DeviceInputs
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.agreement import check_agreement
from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint
from safemerge.weights.interpolated import InterpolatedCheckpoint
from safemerge.weights.notice import notices
from safemerge.weights.shared_vocabulary import stored_checkpoint
from safemerge.weights.stacked import Layers, StackedCheckpoint
from safemerge.weights.statistics import ModelStatistics


class ResidentCheckpoints:
    """Memory-mapped base and experts, with what past candidates derived of them.

    Replicas of a node share the pages, and derived data in the cache where every reference has
    a digest. Use `open`; the constructor takes what is open already.

    Args:
        refs: References by model name.
        checkpoints: Open checkpoints by model name.
        base_name: Which of them is the base.
        statistics: Open statistics by model name, of those models that have any.
        vocabulary: The vocabulary they are shown in, as in recipes.
        owner: See `MergeRecipe.vocabulary_owner`.
        grows: Whether a recipe's model that is not held yet, and has a path and a fingerprint,
            is opened, checked and held from then on.
        said: What must be known of these models; see `notices` and `tokenizer_notices`.
    """

    def __init__(
        self,
        refs: Mapping[str, CheckpointRef],
        checkpoints: Mapping[str, Checkpoint],
        base_name: str,
        statistics: Mapping[str, ModelStatistics] = MappingProxyType({}),
        *,
        vocabulary: Vocabulary = "refuse",
        owner: str | None = None,
        choice: TokenizerChoice | None = None,
        grows: bool = False,
        said: tuple[str, ...] = (),
    ) -> None:
        self.base_name = base_name
        self.notices = said
        self.vocabulary = vocabulary
        self.owner = owner
        self._choice = choice or TokenizerChoice()
        self.grows = grows
        self._checkpoints = dict(checkpoints)
        self._statistics = dict(statistics)
        self.checkpoints: Mapping[str, Checkpoint] = MappingProxyType(self._checkpoints)
        self.statistics: Mapping[str, ModelStatistics] = MappingProxyType(self._statistics)
        derived = self._derived(refs)
        self.thresholds = ThresholdCache(kept=derived)
        self.spectra = SpectrumCache(kept=derived)
        self._refs = dict(refs)
        self._other_thresholds: dict[tuple[tuple[str, str], ...], ThresholdCache] = {}

    @classmethod
    def open(
        cls,
        recipe: MergeRecipe,
        *,
        check: bool = True,
        for_engine: bool = False,
        grows: bool = False,
    ) -> "ResidentCheckpoints":
        """Open the base and experts of a recipe; all of them, whatever their weights.

        Args:
            recipe: Recipe whose checkpoints are given by `path`.
            check: Whether to check that the checkpoints agree and are finite; cached, see
                `check_agreement`. That they have the recipe's digests is checked always: a node
                reads all bytes at its first opening, see `fingerprint`.
            for_engine: Whether merges go to an engine, whose model has the base's tensors: a
                union of vocabularies with more rows, or an output head that the base does not
                have, is then refused.
            grows: See the class.

        Returns:
            Open checkpoints, good for every recipe over the same models.

        Raises:
            CheckpointError: If a checkpoint cannot be read or is not finite.
            CheckpointMismatchError: If checkpoints disagree.
            CheckpointChangedError: If a digest is not the recipe's, or a file changes meanwhile.
            ConfigError: If a layer group matches no tensor.
            MergeError: If a reference has no path.
        """
        where = f"recipe {recipe.digest[:4]}"
        if for_engine and recipe.base.parts:
            raise ConfigError(
                f"{where}, model '{recipe.base.name}': an engine starts from the base's folder; "
                f"got a base made of several checkpoints. Run 'safemerge merge', then 'safemerge "
                f"evaluate --model' with the folder it wrote."
            )
        base = _open_model(where, recipe.base, None)
        checkpoints = {recipe.base.name: base}
        for ref in recipe.experts:
            checkpoints[ref.name] = _open_model(where, ref, base)
        checkpoints = dict(in_one_vocabulary(recipe, checkpoints))
        base = checkpoints[recipe.base.name]
        check_digests(recipe)
        said: tuple[str, ...] = ()
        if check:
            experts = {
                name: end
                for ref in recipe.experts
                for name, end in _plain(ref.name, checkpoints[ref.name]).items()
            }
            check_agreement(base, experts, mixed_dtypes=recipe.dtype != "base", where=where)
            said = (*notices(base, experts), *tokenizer_notices(recipe))
        if for_engine:
            _check_shape(where, base)
        check_groups(recipe, base.distinct_names)
        refs = {ref.name: ref for ref in recipe.checkpoints}
        statistics = {
            ref.name: open_statistics(f"{where}, model '{ref.name}'", ref, base, check=check)
            for ref in recipe.checkpoints
            if ref.statistics is not None
        }
        opened = cls(
            refs,
            checkpoints,
            recipe.base.name,
            statistics,
            vocabulary=recipe.vocabulary,
            owner=recipe.vocabulary_owner,
            choice=recipe.tokenizer,
            grows=grows,
            said=said,
        )
        # What was digested is what was opened.
        opened.check_unchanged()
        return opened

    @property
    def base(self) -> Checkpoint:
        """The open base."""
        return self.checkpoints[self.base_name]

    def merged(
        self,
        recipe: MergeRecipe,
        *,
        device: torch.device | str = "cpu",
        inputs: DeviceInputs | None = None,
        destination: Destination | None = None,
    ) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Yield every tensor of a candidate; see `merged_tensors`.

        A model is found by its name, or else by its digest: several weights may be held for one
        name of a recipe, under names of their own.

        Args:
            recipe: A recipe over the models held here, or some of them.
            device: Where tensors are merged and given.
            inputs: Where that device gets them from; None for a new one.
            destination: Gives memory for merged tensors; None for new memory.

        Returns:
            Iterator of (name, merged tensor).

        Raises:
            MergeError: If the recipe is over other checkpoints, or cannot be merged.
        """
        held = {ref.name: self._held(recipe, ref) for ref in recipe.checkpoints}
        for name in recipe.statistics_read():
            self._check_measured(recipe, name, held[name])
        if recipe.base.name != self.base_name:
            raise MergeError(
                f"recipe {recipe.digest[:4]}: the base must be the one held, "
                f"'{self.base_name}'; got '{recipe.base.name}'. Open checkpoints for this recipe."
            )
        held_rows = (self.vocabulary, self.owner, self._choice.rows)
        if (recipe.vocabulary, recipe.vocabulary_owner, recipe.tokenizer.rows) != held_rows:
            raise MergeError(
                f"recipe {recipe.digest[:4]}: vocabulary must be that of the checkpoints held, "
                f"'{self.vocabulary}'; got '{recipe.vocabulary}'. Open them for this recipe."
            )
        # Thresholds and spectra are kept by the recipe's names, so each set of weights under
        # them has its own; spectra and ranks are large, and kept for the plain names alone.
        others = tuple(sorted((name, own) for name, own in held.items() if name != own))
        thresholds = self.thresholds
        if any(ref.between is not None for ref in recipe.experts):
            thresholds = ThresholdCache(max_rank_bytes=0)  # another place, other weights
        elif others:
            if others not in self._other_thresholds:
                refs = {name: self._refs[own] for name, own in held.items()}
                derived = self._derived(refs)
                self._other_thresholds[others] = ThresholdCache(kept=derived, max_rank_bytes=0)
            thresholds = self._other_thresholds[others]
        return merged_tensors(
            recipe,
            {name: self.checkpoints[own] for name, own in held.items()},
            thresholds=thresholds,
            spectra=self.spectra if thresholds is self.thresholds else None,
            statistics={
                name: self.statistics[own] for name, own in held.items() if own in self.statistics
            },
            device=device,
            inputs=inputs,
            destination=destination,
        )

    def base_tensors(self) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """Yield the base's tensors as stored, a tied output head left out.

        Returns:
            Iterator of (name, tensor); tensors are shared and must not be written to.
        """
        for name in self.base.distinct_names:
            yield name, self.base.tensor(name)

    def check_unchanged(self) -> None:
        """Refuse checkpoints and statistics whose files are no longer those that were opened.

        Merges ask by themselves; whoever reads `checkpoints` asks afterwards.

        Raises:
            CheckpointChangedError: If a file changed, is gone, or cannot be read.
        """
        for checkpoint in self._checkpoints.values():
            checkpoint.check_unchanged()
        for statistics in self._statistics.values():
            statistics.check_unchanged()

    def _derived(self, refs: Mapping[str, CheckpointRef]) -> DerivedData | None:
        """What is kept on disk of some weights; nothing where rows are moved to other ids."""
        if self.vocabulary != "refuse":
            return None
        digests = {name: ref.digest for name, ref in refs.items()}
        return DerivedData.of(digests, self.base_name, check=self.check_unchanged)

    def _held(self, recipe: MergeRecipe, ref: CheckpointRef) -> str:
        held = self._refs.get(ref.name)
        if ref.between is not None and held != ref:
            return self._between(recipe, ref.name, ref.between)
        if held is not None:
            if held.digest is not None and held.digest == ref.digest:
                return ref.name
            if held.parts and held == ref:
                return ref.name
            digests_differ = None not in (held.digest, ref.digest)
            if not digests_differ and held.parts == ref.parts and _same_path(held, ref):
                return ref.name
        for name, other in self._refs.items():
            if ref.digest is not None and other.digest == ref.digest:
                return name
        if self.grows and ref.path is not None and ref.digest is not None:
            return self._take_in(recipe, ref)
        got = f"'{held.path or held.digest}'" if held else "no such model"
        raise MergeError(
            f"recipe {recipe.digest[:4]}: model '{ref.name}' must be the one held; got "
            f"'{ref.path}' ({ref.digest}), held is {got}. Open checkpoints for this recipe."
        )

    def _between(self, recipe: MergeRecipe, name: str, neighbours: Neighbours) -> str:
        """Hold the line between two models, which are held themselves, at one place."""
        low, high = (self._held(recipe, end) for end in neighbours.ends)
        # One place a name: there are as many as candidates.
        place = f"{name}@between"
        self._refs[place] = interpolated(name, neighbours)
        self._checkpoints[place] = InterpolatedCheckpoint(
            self._checkpoints[low], self._checkpoints[high], neighbours.share
        )
        return place

    def _take_in(self, recipe: MergeRecipe, ref: CheckpointRef) -> str:
        """Open a model of a recipe and hold it under a name of its own.

        Raises:
            CheckpointChangedError: If it has not the digest that the recipe says.
            MergeError: If it cannot be read, or does not agree with the base; see `open`.
        """
        needed = {self.owner, *self._choice.row_models()} - {None, ref.name, self.base_name}
        alone = MergeRecipe(
            base=self._refs[self.base_name],
            experts=[ref, *(self._refs[str(name)] for name in sorted(map(str, needed)))],
            method=Linear(name="linear", weights={ref.name: 1.0}),
            dtype=recipe.dtype,
            vocabulary=self.vocabulary,
            tokenizer=self._choice.model_copy(
                update={"from_": self.owner or self.base_name, "chat_template": None}
            ),
        )
        try:
            opened = ResidentCheckpoints.open(alone)
        except CheckpointChangedError:
            raise
        except (CheckpointError, CheckpointMismatchError) as error:
            raise MergeError(str(error)) from error
        name = f"{ref.name}@{ref.digest}"
        self._refs[name] = ref
        self._checkpoints[name] = opened.checkpoints[ref.name]
        if ref.name in opened.statistics:
            self._statistics[name] = opened.statistics[ref.name]
        return name

    def _check_measured(self, recipe: MergeRecipe, name: str, own: str) -> None:
        asked = next(ref.statistics for ref in recipe.checkpoints if ref.name == name)
        held = self.statistics.get(own)
        assert asked is not None, "checked by the recipe"
        if held is None or asked.digest not in (None, held.digest):
            got = "none" if held is None else held.digest
            raise MergeError(
                f"recipe {recipe.digest[:4]}: statistics of '{name}' must be those held; got "
                f"{asked.digest or asked.path}, held is {got}. Open them for this recipe."
            )


def _open_model(where: str, ref: CheckpointRef, base: Checkpoint | None) -> Checkpoint:
    if ref.between is not None:
        low, high = (_open_model(where, end, base) for end in ref.between.ends)
        return InterpolatedCheckpoint(low, high, ref.between.share)
    if ref.stack is not None:
        opened = [
            Layers(_open_model(where, item.model, None), *item.layer_range) for item in ref.stack
        ]
        return StackedCheckpoint(opened, where=f"{where}, model '{ref.name}'")
    if ref.on is not None:
        base = _open_model(where, ref.on, None)
    return open_checkpoint(model_path(where, ref), base)


def _plain(name: str, checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """A checkpoint, or the two that it is between, by name for messages."""
    if not isinstance(checkpoint, InterpolatedCheckpoint):
        return {name: checkpoint}
    return {f"{name} (lower)": checkpoint.low, f"{name} (upper)": checkpoint.high}


def _same_path(first: CheckpointRef, second: CheckpointRef) -> bool:
    if first.path is None or second.path is None:
        return False
    return Path(first.path).expanduser().resolve() == Path(second.path).expanduser().resolve()


def _check_shape(where: str, base: Checkpoint) -> None:
    name = base.input_embedding
    stored = stored_checkpoint(base)
    if stored.tied_embeddings and not base.tied_embeddings:
        raise CheckpointMismatchError(
            f"{where}, tensor '{OUTPUT_HEAD}': an engine's model ties its output head to "
            f"'{name}' as the base does; got an expert with a head of its own. Write the merge "
            f"with `safemerge merge` and score its folder, or use a base with a head of its own: "
            f"`safemerge merge` of base and expert with weight 0 writes it."
        )
    if name is not None and base.shape(name) != stored.shape(name):
        raise CheckpointMismatchError(
            f"{where}, tensor '{name}': an engine's model keeps the base's shape "
            f"{stored.shape(name)}; got {base.shape(name)} from the merge's vocabulary. Use "
            f"vocabulary: base, or write the merge and score its folder."
        )
