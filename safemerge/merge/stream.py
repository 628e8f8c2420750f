"""A recipe and its checkpoints as a stream of named tensors: one path to disk and to engines."""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointError, MergeError
from safemerge.merge.coefficient import check_groups
from safemerge.merge.compiled import beside
from safemerge.merge.measured import check_statistics
from safemerge.merge.method import merge_tensor, models_read, statistics_read
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.table import is_element_wise
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.transfer import DeviceInputs, InputsAhead
from safemerge.weights.checkpoint import Checkpoint, layer_of
from safemerge.weights.shared_vocabulary import VocabularyView, share_vocabulary, whole_checkpoint
from safemerge.weights.statistics import ModelStatistics
from safemerge.weights.untied import untie

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_SMALL = 1 << 22
"""Entries up to which a tensor is merged by one thread, others beside it."""

Destination = Callable[[str, torch.dtype, tuple[int, ...]], Tensor | None]
"""Gives memory for a merged tensor, by name, dtype and shape; None for new memory."""


def merge_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return tensor names with those of a layer together: embeddings, layers, the rest.

    Args:
        names: Tensor names in any order.

    Returns:
        Names sorted by (embedding first, layer number, name).
    """

    def key(name: str) -> tuple[float, str]:
        layer = layer_of(name)
        if layer is not None:
            return float(layer), name
        return (-1.0 if "embed" in name or ".wte." in f".{name}" else math.inf), name

    return tuple(sorted(names, key=key))


def in_one_vocabulary(
    recipe: MergeRecipe, checkpoints: Mapping[str, Checkpoint]
) -> Mapping[str, Checkpoint]:
    """Return the checkpoints as the recipe's vocabulary shows them; see `share_vocabulary`.

    Where some have an output head of their own, all are shown with one; see `untie`.

    Args:
        recipe: Recipe; with ``vocabulary: refuse`` every model keeps its rows.
        checkpoints: Base and experts by name, stored or shown in that vocabulary already.

    Returns:
        The recipe's checkpoints by name.

    Raises:
        CheckpointMismatchError: If they cannot be shown in one vocabulary.
        CheckpointError: If a tokenizer cannot be read.
    """
    checkpoints = untie(checkpoints)
    if recipe.vocabulary == "refuse" or any(
        isinstance(checkpoint, VocabularyView) for checkpoint in checkpoints.values()
    ):
        return checkpoints
    base, experts = share_vocabulary(
        checkpoints[recipe.base.name],
        {ref.name: checkpoints[ref.name] for ref in recipe.experts},
        how=recipe.vocabulary,
        owner=recipe.vocabulary_owner,
        choice=recipe.tokenizer,
        base_name=recipe.base.name,
        where=f"recipe {recipe.digest[:4]}",
    )
    return {recipe.base.name: base, **experts}


def merged_dtype(recipe: MergeRecipe, base: Checkpoint, name: str) -> torch.dtype:
    """Return the dtype that a merged tensor will have.

    Args:
        recipe: Recipe; its dtype ``base`` stands for the base tensor's own.
        base: The recipe's base.
        name: Tensor name.

    Returns:
        float32, bfloat16 or float16.
    """
    if recipe.dtype != "base":
        return DTYPES[recipe.dtype]
    whole = whole_checkpoint(base)
    # A head that only other models have starts from the input embedding; see `untie`.
    return whole.dtype(name if name in whole else whole.input_embedding or name)


def merged_tensors(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    *,
    thresholds: ThresholdCache | None = None,
    spectra: SpectrumCache | None = None,
    statistics: Mapping[str, ModelStatistics] | None = None,
    device: torch.device | str = "cpu",
    inputs: DeviceInputs | None = None,
    destination: Destination | None = None,
    keep_pages: bool = True,
) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """Yield every tensor of the candidate, in checkpoint names, one after the other.

    Tensors of a layer are adjacent (`merge_order`). A tied output head is left out, even where
    checkpoints store it. Each tensor is new, so that a consumer may keep it; beyond what the
    consumer keeps, memory is one tensor and its inputs, or some small ones. Experts without
    weight are not read.
    Nothing is checked here that `check_agreement` checks; a shape that differs still raises.

    Args:
        recipe: What to merge.
        checkpoints: Base and experts by the names of the recipe.
        thresholds: Trim thresholds kept between candidates; None for nowhere.
        spectra: Singular vectors kept between candidates; None for nowhere.
        statistics: Open statistics by model name, for recipes that read them; of each, one
            tensor at a time is in memory.
        device: Where tensors are merged and given.
        inputs: Where that device gets them from, see `DeviceInputs`; None for a new one, unless
            it is the CPU.
        destination: Asked for each tensor, by name, dtype and shape, before it is merged; what
            it gives is written to and yielded. None for new memory.
        keep_pages: Whether inputs stay in this process's memory for the next candidate. If
            not, they are fetched one tensor ahead and let go after use.

    Returns:
        Iterator of (name, merged tensor).

    Raises:
        MergeError: If a checkpoint or its statistics are not given, or cannot suffice (at the
            call), or a tensor cannot be merged or is not finite (while iterating).
        CheckpointChangedError: If a file is no longer what was opened (before the first tensor),
            or changed meanwhile (after the last): the tensors are then void.
        ConfigError: If a layer group matches no tensor (at the call).
    """
    missing = [ref.name for ref in recipe.checkpoints if ref.name not in checkpoints]
    if missing:
        raise MergeError(
            f"recipe {recipe.digest[:4]}: every model must be open; got no '{missing[0]}' among "
            f"{', '.join(sorted(checkpoints))}. Open its checkpoint."
        )
    checkpoints = in_one_vocabulary(recipe, checkpoints)
    base = checkpoints[recipe.base.name]
    check_groups(recipe, base.distinct_names)
    measured = statistics or {}
    check_statistics(recipe, measured)
    names = merge_order(base.distinct_names)
    places = {name: _place(recipe, base, name) for name in names}
    reads = {
        name: (recipe.base.name, *models_read(recipe.method, **place))
        for name, place in places.items()
    }
    there = torch.device(device)
    if inputs is None and there.type != "cpu":
        inputs = DeviceInputs(there)
    given: _Mapped | InputsAhead
    if inputs is not None:
        given = inputs.ahead(checkpoints, reads)
    else:
        given = (_Mapped if keep_pages else _Pages)(checkpoints, reads)

    def merged(name: str, out: Tensor | None) -> Tensor:
        dtype = merged_dtype(recipe, base, name)
        tensors = given.tensors(name)
        wanted = statistics_read(recipe.method, **places[name])
        return merge_tensor(
            recipe.method,
            base=tensors[recipe.base.name],
            experts=tensors,
            seed=recipe.seed,
            dtype=dtype,
            thresholds=thresholds,
            spectra=spectra,
            statistics={
                model: measured[model].at(name, quantities).to(there)
                for model, quantities in wanted.items()
            },
            out=out,
            **places[name],
        )

    def place(name: str) -> Tensor | None:
        if destination is None:
            return None
        return destination(name, merged_dtype(recipe, base, name), base.shape(name))

    element_wise = is_element_wise(recipe.method.name) and not recipe.steps
    if keep_pages and inputs is None and element_wise:
        small = {name for name in names if math.prod(base.shape(name)) <= _SMALL}
        stream = _side_by_side(names, merged, place, small)
    else:
        stream = _stream(names, merged, place, given)
    merged_from = [checkpoints[ref.name] for ref in recipe.checkpoints]
    return _unchanged(stream, merged_from, measured.values())


def _unchanged(
    stream: Iterator[tuple[str, Tensor]],
    checkpoints: Iterable[Checkpoint],
    statistics: Iterable[ModelStatistics],
) -> Iterator[tuple[str, Tensor]]:
    """Yield merged tensors, and see before and after that the files they are of did not change."""

    def check() -> None:
        for checkpoint in checkpoints:
            checkpoint.check_unchanged()
        for measured in statistics:
            measured.check_unchanged()

    check()
    try:
        yield from stream
    except (CheckpointError, MergeError):
        check()  # what was found in a file that changed says nothing of the recipe
        raise
    check()


def _place(recipe: MergeRecipe, base: Checkpoint, name: str) -> dict[str, Any]:
    """Where a tensor is in a recipe's model, as `merge_tensor` takes it."""
    return {
        "tensor": name,
        "base_name": recipe.base.name,
        "groups": recipe.layer_groups,
        "num_layers": base.num_layers or None,
        "steps": recipe.steps,
        "anchors": recipe.anchors,
    }


def _stream(
    names: Sequence[str],
    merged: Callable[[str, Tensor | None], Tensor],
    place: Callable[[str], Tensor | None],
    given: "_Mapped | InputsAhead",
) -> Iterator[tuple[str, Tensor]]:
    with given:
        for at, name in enumerate(names):
            given.fetch(names[at : at + 2])
            yield name, merged(name, place(name))
            given.release(name)


def _side_by_side(
    names: Sequence[str],
    merged: Callable[[str, Tensor | None], Tensor],
    place: Callable[[str], Tensor | None],
    small: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """Merge small tensors ahead, a thread each; large ones by all threads, when they are due.

    Sharing out a small tensor costs more than merging it.
    """
    ahead: deque[tuple[str, Future[Tensor]]] = deque()
    coming = iter(names)
    num_ahead = 2 * torch.get_num_threads() if torch.get_num_threads() > 1 else 0
    try:
        for name in coming:
            if num_ahead and name in small:
                ahead.append((name, beside(partial(merged, name, place(name)))))
                if len(ahead) <= num_ahead:
                    continue
            while ahead and (name not in small or len(ahead) > num_ahead):
                done, found = ahead.popleft()
                yield done, found.result()
            if not num_ahead or name not in small:
                yield name, merged(name, place(name))
        while ahead:
            done, found = ahead.popleft()
            yield done, found.result()
    finally:
        # Whoever stopped listening may free the destinations.
        for _, found in ahead:
            found.cancel()
        wait([found for _, found in ahead])


class _Mapped:
    """Inputs where they are, mapped; they stay in this process's memory."""

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], reads: Mapping[str, Sequence[str]]
    ) -> None:
        self._checkpoints = checkpoints
        self._reads = reads

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a tensor's inputs by model name."""
        return {model: self._checkpoints[model].tensor(name) for model in self._reads[name]}

    def fetch(self, names: Sequence[str]) -> None:
        """Begin to fetch some tensors."""

    def release(self, name: str) -> None:
        """Let a tensor's inputs go."""


class _Pages(_Mapped):
    """Fetches inputs in the background, one tensor ahead, and lets them go after use."""

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], reads: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__(checkpoints, reads)
        self._fetched: dict[str, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safemerge-fetch")

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def fetch(self, names: Sequence[str]) -> None:
        """Begin to fetch some tensors; those begun before are not fetched again."""
        for name in names:
            if name not in self._fetched:
                self._fetched[name] = self._thread.submit(self._fetch, name)

    def release(self, name: str) -> None:
        """Let a tensor's inputs go."""
        self._fetched[name].result()
        for model in self._reads[name]:
            self._checkpoints[model].release(name)

    def _fetch(self, name: str) -> None:
        for model in self._reads[name]:
            self._checkpoints[model].fetch(name)
