"""The compiled merge on CPUs: one pass over memory, shared out among the cores.

This package alone knows what is compiled. Its functions take a job, or leave it (False or None)
to the plain way in torch: where numba is missing (it comes with vLLM), tensors are on a GPU or of
another dtype, or there is no loop for how task vectors are sparsified and combined. Results are
the same bits whatever the number of threads: parts begin at fixed multiples and no sum crosses
one.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.compiled import code
from safemerge.merge.inputs import TensorInputs, num_columns
from safemerge.merge.mask import (
    KEY_RUN,
    MAX_COLUMNS,
    Ranks,
    keep_limit,
    keep_limits,
    mask_key,
    rank_probabilities,
    ranks_in_rows,
)
from safemerge.merge.threshold import (
    Drop,
    Found,
    MagnitudeCounts,
    RankedDrop,
    Sparsifier,
    Threshold,
    Trim,
    check_finite_entries,
    nonempty_counts,
)

_KINDS = {
    torch.float32: code.FLOAT32,
    torch.bfloat16: code.BFLOAT16,
    torch.float16: code.FLOAT16,
}
_Answer = TypeVar("_Answer")
_NUM_BINS = 1 << 15
_PARTS_PER_THREAD = 4
_own = threading.local()
"""Of a merging thread: whether what it does is not to be shared out among the others."""

_KEEP_ALL, _DROP_NONE = Threshold(-1.0, -1), Threshold(float("inf"), -1)


class RankedKeep(NamedTuple):
    """How entries of a task vector are kept at random by their rank in the row."""

    ranks: Ranks
    limits: Tensor
    """Limit of the random word by rank, as `keep_limits` gives them."""
    scales: Tensor
    """What a kept entry is multiplied with by rank, float32."""


class Operand(NamedTuple):
    """One model's part in a merge."""

    tensor: Tensor
    """Its weights, of the base's shape."""
    weight: float
    name: str
    """Named in errors and, of an expert, in random masks."""
    lower: Threshold | None = None
    """Entries of the task vector that this keeps stay; None for all."""
    upper: Threshold | None = None
    """Entries that this keeps are dropped; None for none."""
    density: float | None = None
    """Probability of keeping an entry; None if none is dropped at random."""
    scale: float = 1.0
    """Multiplied with what is kept at random."""
    ranked: RankedKeep | None = None
    """Entries are dropped at random by their rank in the row; None if by density alone."""


class Rule(NamedTuple):
    """How operands become the merged tensor."""

    consensus: int
    """One of the numbers of `code`."""
    lambda_: float = 1.0
    threshold: float = 0.0
    """For agreement: how much an entry must stand out."""
    min_agreeing: int = 0
    """For agreement: how many operands must need an entry."""


def _is_compiled(*tensors: Tensor) -> bool:
    """Tell whether tensors can take the compiled path: on the CPU, of a known dtype."""
    known = all(tensor.device.type == "cpu" and tensor.dtype in _KINDS for tensor in tensors)
    return known and _loops() is not None


def prepare() -> bool:
    """Compile the loops now, into numba's cache on disk, so that no merge waits for it.

    Returns:
        Whether there are loops: False without numba.
    """
    base, model, out = torch.zeros(2), torch.ones(2), torch.empty(2)
    if not _is_compiled(base):
        return False
    merge_operands([Operand(model, 1.0, "a")], Rule(code.SUM), base=base, out=out)
    magnitudes = CompiledMagnitudes(model, base)
    counts = magnitudes.counts(where="preparing")
    magnitudes.found_in_bin(int(counts.bins[0]))
    norms_at_random(model, base, density=0.5, seed=0, tensor="t", expert="a")
    return True


def merge_task_vectors(
    inputs: TensorInputs,
    weights: Mapping[str, float],
    sparsifiers: Mapping[str, Sparsifier],
    *,
    consensus: str,
    out: Tensor,
) -> bool:
    """Merge base + lambda * consensus of task vectors into `out`, where there is a loop for it.

    Args:
        inputs: The tensor's inputs.
        weights: Weight by expert.
        sparsifiers: What each expert's task vector goes through; all entries of others stay.
        consensus: How task vectors become one; see `safemerge.merge.elementwise.CONSENSUS`.
        out: Where the result is written; changed.

    Returns:
        Whether the result was written; False leaves it to torch.
    """
    rule = _rule(inputs, consensus)
    models = [inputs.model(name) for name in weights]
    known = all(_has_loop(sparsifier, inputs.base) for sparsifier in sparsifiers.values())
    if rule is None or not known or not _is_compiled(out, inputs.base, *models):
        return False
    operands = [
        _operand(inputs, model, weight, name, sparsifiers.get(name))
        for model, (name, weight) in zip(models, weights.items(), strict=True)
    ]
    finite = merge_operands(
        operands, rule, base=inputs.base, out=out, seed=inputs.seed, tensor=inputs.tensor
    )
    inputs.note_finite(finite)
    return True


def sum_models(inputs: TensorInputs, shares: Mapping[str, float], *, out: Tensor) -> bool:
    """Write the sum of whole weights times their shares into `out`.

    Returns:
        Whether the result was written; False leaves it to torch.
    """
    models = [inputs.model(name) for name in shares]
    if not _is_compiled(out, *models):
        return False
    operands = [
        Operand(model, share, name)
        for model, (name, share) in zip(models, shares.items(), strict=True)
    ]
    inputs.note_finite(merge_operands(operands, Rule(code.SUM), base=None, out=out))
    return True


def _has_loop(sparsifier: Sparsifier, base: Tensor) -> bool:
    """Tell whether there is a loop for what a task vector goes through."""
    if isinstance(sparsifier, RankedDrop):
        return num_columns(base) <= MAX_COLUMNS
    if isinstance(sparsifier, Trim):
        return sparsifier.scale == 1.0
    return isinstance(sparsifier, Drop)


def _operand(
    inputs: TensorInputs, tensor: Tensor, weight: float, name: str, sparsifier: Sparsifier | None
) -> Operand:
    if isinstance(sparsifier, Trim):
        return Operand(tensor, weight, name, lower=sparsifier.lower, upper=sparsifier.upper)
    if isinstance(sparsifier, Drop):
        density, scale = sparsifier
        return Operand(tensor, weight, name, density=density, scale=scale)
    if isinstance(sparsifier, RankedDrop):
        kept = _ranked_keep(inputs, name, sparsifier)
        scale = sparsifier.scale if kept else 1.0
        return Operand(tensor, weight, name, density=1.0, scale=scale, ranked=kept)
    return Operand(tensor, weight, name)


def _ranked_keep(inputs: TensorInputs, name: str, drop: RankedDrop) -> RankedKeep | None:
    """Limits and scales by rank, with ranks of this or an earlier candidate; None keeps all."""
    if drop.density == 1.0:
        return None
    length = num_columns(inputs.base)
    chances = rank_probabilities(length, density=drop.density, epsilon=drop.epsilon)
    scales = chances.reciprocal() if drop.rescale else torch.ones_like(chances)
    cache = None if inputs.thresholds is None else inputs.thresholds.ranks
    held = None if cache is None else cache.get((name, inputs.tensor))
    if held is None:
        held = ranks_in_rows(inputs.model(name), inputs.base, num_columns=length)
        if cache is not None:
            cache.put((name, inputs.tensor), held)
    return RankedKeep(held, keep_limits(chances), scales.to(torch.float32))


def _rule(inputs: TensorInputs, consensus: str) -> Rule | None:
    """Return how the loops combine task vectors; None if they have no such way."""
    lambda_, options = inputs.coefficients.lambda_, inputs.coefficients.options
    if consensus == "sum":
        return Rule(code.SUM, lambda_)
    if consensus == "agreement":
        number = inputs.coefficients.number
        return Rule(code.AGREEMENT, lambda_, number("mask_threshold"), int(number("min_agreeing")))
    if consensus != "disjoint_mean":
        return None
    if options.get("variant") == "peft":
        return Rule(code.COUNTED_MEAN if inputs.normalize else code.COUNTED_SUM, lambda_)
    mean = code.SIGNED_MEAN if options.get("divisor") == "signed" else code.DISJOINT_MEAN
    return Rule(mean if inputs.normalize else code.DISJOINT_SUM, lambda_)


def merge_operands(
    operands: Sequence[Operand],
    rule: Rule,
    *,
    base: Tensor | None,
    out: Tensor,
    seed: int = 0,
    tensor: str = "",
) -> bool:
    """Merge operands into `out`; see `merge_task_vectors` and `sum_models`.

    Args:
        operands: Models with weight, in the order of their names.
        rule: How they become one.
        base: What task vectors are measured from; None for whole weights.
        out: Where the result is written, contiguous; changed.
        seed: The recipe's seed.
        tensor: Tensor name, for masks and errors.

    Returns:
        Whether every entry of the result is finite.

    Raises:
        MergeError: If entries are dropped at random and one is not finite, or there is no such
            rule.
    """
    if rule.consensus not in code.CONSENSUS:
        raise MergeError(
            f"tensor '{tensor}': the rule must be one of the numbers of `code`; got "
            f"{rule.consensus}."
        )
    by_rank = any(operand.ranked is not None for operand in operands)
    random = by_rank or any(operand.density is not None for operand in operands)
    trimmed = any(operand.lower is not None for operand in operands)
    sparsify = code.RANDOM if random else code.TRIM if trimmed else code.PLAIN
    sparsify = code.RANKED if by_rank else sparsify
    origin = None if base is None else _flat(base)
    flats = [_flat(operand.tensor) for operand in operands]
    lower = [operand.lower or _KEEP_ALL for operand in operands]
    upper = [operand.upper or _DROP_NONE for operand in operands]
    limits = [keep_limit(operand.density or 1.0) for operand in operands]
    shared = (
        np.array([flat.data_ptr() for flat in flats], dtype=np.int64),
        np.array([_KINDS[flat.dtype] for flat in flats], dtype=np.int64),
        out.data_ptr(),
        _KINDS[out.dtype],
    )
    rest = (
        _floats(operand.weight for operand in operands),
        _floats([rule.lambda_])[0],
        sparsify,
        _floats(threshold.magnitude for threshold in lower),
        np.array([threshold.last_equal for threshold in lower], dtype=np.int64),
        _floats(threshold.magnitude for threshold in upper),
        np.array([threshold.last_equal for threshold in upper], dtype=np.int64),
    )
    end = (
        np.array(limits, dtype=np.int32),
        _floats(operand.scale for operand in operands),
        rule.consensus,
        np.float32(rule.threshold),
        np.float32(rule.min_agreeing),
        *_ranked(operands),
    )
    address, kind = (0, code.NO_BASE) if origin is None else _place(origin)
    merge_range: Any = _loops().merge_range

    def merge_part(start: int, stop: int) -> int:
        keys = np.array(
            [_key(seed, tensor, operand.name, start, random) for operand in operands],
            dtype=np.int32,
        )
        found: int = merge_range(address, kind, *shared, start, stop, *rest, keys, *end)
        return found

    found = over_parts(merge_part, out.numel())
    for expert in found:
        if expert >= 0 and origin is not None:
            update = torch.sub(flats[expert], origin.to(torch.float32))
            where = f"tensor '{tensor}', expert '{operands[expert].name}'"
            check_finite_entries(update, where)
    return all(answer == code.FINE for answer in found)


class CompiledMagnitudes(NamedTuple):
    """Magnitudes of a task vector's entries, computed in each pass and never held."""

    model: Tensor
    base: Tensor

    def counts(self, *, where: str) -> MagnitudeCounts:
        """Count the magnitudes by their leading bits, in one pass.

        Raises:
            MergeError: If an entry is not finite.
        """
        origin, flat = _flat(self.base), _flat(self.model)
        count_range: Any = _loops().count_range

        def count(start: int, stop: int) -> Any:
            counts = np.zeros(_NUM_BINS, dtype=np.int64)
            count_range(*_place(origin), *_place(flat), start, stop, counts)
            return counts

        total = np.sum(over_parts(count, self.base.numel()), axis=0)
        return nonempty_counts(total, where=where)

    def found_in_bin(self, wanted: int) -> Found:
        """Return low bits and flat indices of a bin's entries, zeros left out, in one pass."""
        origin, flat = _flat(self.base), _flat(self.model)
        gather_range: Any = _loops().gather_range

        def gather(start: int, stop: int) -> Found:
            low, index = (np.empty(stop - start, dtype=np.int64) for _ in range(2))
            count = gather_range(*_place(origin), *_place(flat), start, stop, wanted, low, index)
            return low[:count].copy(), index[:count].copy()

        parts = over_parts(gather, self.base.numel())
        low, index = zip(*parts, strict=True)
        return np.concatenate(low), np.concatenate(index)


def magnitudes_of(model: Tensor, base: Tensor) -> CompiledMagnitudes | None:
    """Return the magnitudes of a task vector's entries; None where torch finds them."""
    return CompiledMagnitudes(model, base) if _is_compiled(model, base) else None


def norms_at_random(
    model: Tensor, base: Tensor, *, density: float, seed: int, tensor: str, expert: str
) -> tuple[float, float] | None:
    """Return the L1 norms of a task vector and of what is kept of it at random.

    Returns:
        Both norms; None where torch finds them.

    Raises:
        MergeError: If an entry is not finite.
    """
    if not _is_compiled(model, base):
        return None
    origin, flat = _flat(base), _flat(model)
    num_runs = -(-base.numel() // code.NORM_RUN)
    before, after = np.zeros(num_runs), np.zeros(num_runs)
    norm_range: Any = _loops().norm_range

    def norm(start: int, stop: int) -> bool:
        key = [np.int32(word) for word in _key(seed, tensor, expert, start, True)]
        limit = np.int32(keep_limit(density))
        places = (*_place(origin), *_place(flat))
        found: bool = norm_range(*places, start, stop, *key, limit, np.float32(1.0), before, after)
        return found

    if any(over_parts(norm, base.numel())):
        update = torch.sub(model, base.to(torch.float32))
        check_finite_entries(update, f"tensor '{tensor}', expert '{expert}'")
    return float(before.sum()), float(after.sum())


def over_parts(work: Callable[[int, int], _Answer], count: int) -> list[_Answer]:
    """Call a function for parts of a range, on as many threads as torch may use.

    Args:
        work: Takes start and stop of a part; must let go of the interpreter's lock to gain.
        count: Length of the range.

    Returns:
        The answers, in the order of the parts.
    """
    num_threads = 1 if getattr(_own, "is_alone", False) else torch.get_num_threads()
    parts = list(_parts(count, num_threads))
    if num_threads == 1 or len(parts) < 2:
        return [work(*part) for part in parts]
    return list(_pool(os.getpid(), num_threads).map(lambda part: work(*part), parts))


def beside(work: Callable[[], _Answer]) -> Future[_Answer]:
    """Start work on one of the merging threads; `over_parts` within it uses that thread alone."""

    def alone() -> _Answer:
        _own.is_alone = True
        try:
            return work()
        finally:
            _own.is_alone = False

    return _pool(os.getpid(), torch.get_num_threads()).submit(alone)


def _parts(count: int, num_threads: int) -> Iterator[tuple[int, int]]:
    pieces = num_threads * _PARTS_PER_THREAD if num_threads > 1 else 1
    length = max(1, -(-count // (pieces * code.NORM_RUN))) * code.NORM_RUN
    start = 0
    while start < count:
        # NOTE: the keys of random masks change at multiples of KEY_RUN.
        stop = min(count, start + length, (start // KEY_RUN + 1) * KEY_RUN)
        yield start, stop
        start = stop


@lru_cache(maxsize=1)
def _pool(_: int, num_threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="safemerge-merge")


@lru_cache(maxsize=1)
def _loops() -> Any:
    try:
        return importlib.import_module("safemerge.merge.compiled.loops")
    except ImportError:
        return None


def _ranked(operands: Sequence[Operand]) -> tuple[Any, Any, Any]:
    """Addresses of ranks, limits and scales by expert; no address where ranks do not count."""
    given = [operand.ranked for operand in operands]
    length = max([1, *(len(item.limits) for item in given if item is not None)])
    addresses = np.zeros(len(given), dtype=np.int64)
    limits = np.zeros((len(given), length), dtype=np.int32)
    scales = np.ones((len(given), length), dtype=np.float32)
    for at, item in enumerate(given):
        if item is not None:
            addresses[at] = item.ranks.ctypes.data
            limits[at, : len(item.limits)] = item.limits.numpy()
            scales[at, : len(item.scales)] = item.scales.numpy()
    return addresses, limits, scales


def _key(seed: int, tensor: str, expert: str, start: int, random: bool) -> tuple[int, int]:
    return mask_key(seed, tensor, expert, block=start // KEY_RUN) if random else (0, 0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1)


def _place(flat: Tensor) -> tuple[int, int]:
    return flat.data_ptr(), _KINDS[flat.dtype]


def _floats(values: Any) -> Any:
    # NOTE: a weight beyond float32 is infinite, and then refused as what it makes of the result.
    with np.errstate(over="ignore"):
        return np.array(list(values), dtype=np.float32)
