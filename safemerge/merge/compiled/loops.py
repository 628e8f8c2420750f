"""Compiled loops of element-wise merging: each operand read once, the result written once.

Tensors come as addresses, so that bfloat16 needs no numpy type and nothing is copied. A block of
entries goes through all steps of a method while it is in the first-level cache. Sums are formed
in the order, and with the fused multiply-adds, of torch's own kernels, so that the torch walk of
`safemerge.merge.elementwise` gives the same bits.

Importing this module needs numba, which comes with vLLM; only this package calls it.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from safemerge.merge.compiled.cast import (
    accumulate,
    bits_of,
    load,
    multiply_add,
    random_word,
    ranks_at,
    seen_broken,
    store,
    subtract,
)
from safemerge.merge.compiled.code import (
    AGREEMENT,
    COUNTED_MEAN,
    COUNTED_SUM,
    DISJOINT_MEAN,
    DISJOINT_SUM,
    FINE,
    NO_BASE,
    NORM_RUN,
    NOT_FINITE,
    PLAIN,
    RANDOM,
    RANKED,
    SIGNED_MEAN,
    SUM,
    TRIM,
)

BLOCK = 1024
"""Entries that go through all steps together."""

_MAGNITUDE = np.int32(0x7FFFFFFF)
_TINY = np.finfo(np.float32).tiny
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _is_broken(values, count):
    broken = np.int32(0)
    for i in range(count):
        broken = seen_broken(broken, values[i])
    return broken != 0


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _shrink(values, lower, upper):
    # NOTE: NaN fails both comparisons and so stays, to be found in the result.
    for i in range(len(values)):
        size = abs(values[i])
        dropped = (size <= lower) | (size > upper)
        values[i] = _ZERO if dropped else values[i]


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _trim(values, at, count, lower, lower_last, upper, upper_last):
    """Zero what is not above one threshold, and what is above another, as `trim_` has it."""
    low = min(max(lower_last + 1 - at, 0), count)
    high = min(max(upper_last + 1 - at, 0), count)
    below = np.nextafter(lower, np.float32(-1.0))
    beneath = np.nextafter(upper, np.float32(-1.0))
    _shrink(values[: min(low, high)], below, beneath)
    if low < high:
        _shrink(values[low:high], lower, beneath)
    elif high < low:
        _shrink(values[high:low], below, upper)
    _shrink(values[max(low, high) : count], lower, upper)


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _drop(values, count, counter, second, limit, scale):
    """Zero at random, as `keep_bits` decides, and scale the rest."""
    for i in range(count):
        word = random_word(np.int32(counter + np.int32(i)), second)
        values[i] = values[i] * scale if np.int32(word >> 1) < limit else _ZERO


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _drop_by_rank(values, ranks, count, counter, second, limits, scales, scale):
    """Zero at random, as `keep_bits_within` decides by rank, and scale the rest by rank."""
    # NOTE: reading tables by rank does not vectorise; apart from it the rest does.
    limit = np.empty(BLOCK, np.int32)
    for i in range(count):
        limit[i] = limits[ranks[i]]
    for i in range(count):
        values[i] *= scales[ranks[i]]
    for i in range(count):
        word = random_word(np.int32(counter + np.int32(i)), second)
        values[i] = values[i] if np.int32(word >> 1) < limit[i] else _ZERO
    if scale != _ONE:
        for i in range(count):
            values[i] *= scale


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _add(vector, weight, count, first, total):
    """Add a weighted vector to a total; the first begins it."""
    if first:
        for i in range(count):
            total[i] = vector[i] * weight
    else:
        for i in range(count):
            total[i] = multiply_add(vector[i], weight, total[i])


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _weigh(vector, weight, count, first, total):
    """Multiply a vector by its weight, then add it to a total; the first begins it."""
    if first:
        for i in range(count):
            vector[i] *= weight
            total[i] = vector[i]
    else:
        for i in range(count):
            value = vector[i] * weight
            vector[i] = value
            total[i] += value


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _agreeing(vector, factor, share, count, first, votes, total, divisor):
    """Add what has the elected sign of the votes, and its share."""
    if first:
        for i in range(count):
            agreeing = -vector[i] if votes[i] < _ZERO else vector[i]
            agreeing = _ZERO if agreeing < _ZERO else agreeing
            total[i] = agreeing * factor
            divisor[i] = share if agreeing > _ZERO else _ZERO
    else:
        for i in range(count):
            agreeing = -vector[i] if votes[i] < _ZERO else vector[i]
            agreeing = _ZERO if agreeing < _ZERO else agreeing
            total[i] = multiply_add(agreeing, factor, total[i])
            divisor[i] += share if agreeing > _ZERO else _ZERO


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _disjoint(vectors, weights, count, votes, total, divisor, consensus):
    """Combine what agrees with the votes: `disjoint_mean_` and `disjoint_mean_by_count_`."""
    counted = consensus in (COUNTED_MEAN, COUNTED_SUM)
    for expert in range(len(weights)):
        factor = weights[expert] if counted else _ONE
        share = _ONE if counted else abs(weights[expert])
        if consensus == SIGNED_MEAN:
            share = weights[expert]
        _agreeing(vectors[expert], factor, share, count, expert == 0, votes, total, divisor)
    if consensus in (DISJOINT_SUM, COUNTED_SUM):
        for i in range(count):
            total[i] = -total[i] if votes[i] < _ZERO else total[i]
        return
    if consensus == SIGNED_MEAN:
        for i in range(count):
            mean = total[i] / (divisor[i] if divisor[i] != _ZERO else _ONE)
            total[i] = -mean if votes[i] < _ZERO else mean
        return
    least = _ONE if counted else _TINY
    for i in range(count):
        mean = total[i] / (divisor[i] if divisor[i] > least else least)
        total[i] = -mean if votes[i] < _ZERO else mean


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _mean_of_two(vectors, weights, count, total):
    """As weighing and `_disjoint` for two experts and the mean, in one loop."""
    one, two = vectors[0], vectors[1]
    share_one, share_two = abs(weights[0]), abs(weights[1])
    for i in range(count):
        first, second = one[i] * weights[0], two[i] * weights[1]
        negative = first + second < _ZERO
        first = -first if negative else first
        second = -second if negative else second
        first = _ZERO if first < _ZERO else first
        second = _ZERO if second < _ZERO else second
        divisor = share_one if first > _ZERO else _ZERO
        divisor += share_two if second > _ZERO else _ZERO
        mean = (first + second) / (divisor if divisor > _TINY else _TINY)
        total[i] = -mean if negative else mean


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _mean_of_three(vectors, weights, count, total):
    """As weighing and `_disjoint` for three experts and the mean, in one loop."""
    one, two, three = vectors[0], vectors[1], vectors[2]
    share_one, share_two, share_three = abs(weights[0]), abs(weights[1]), abs(weights[2])
    for i in range(count):
        first, second = one[i] * weights[0], two[i] * weights[1]
        third = three[i] * weights[2]
        negative = first + second + third < _ZERO
        first = -first if negative else first
        second = -second if negative else second
        third = -third if negative else third
        first = _ZERO if first < _ZERO else first
        second = _ZERO if second < _ZERO else second
        third = _ZERO if third < _ZERO else third
        divisor = share_one if first > _ZERO else _ZERO
        divisor += share_two if second > _ZERO else _ZERO
        divisor += share_three if third > _ZERO else _ZERO
        mean = (first + second + third) / (divisor if divisor > _TINY else _TINY)
        total[i] = -mean if negative else mean


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _agreement(vectors, num_experts, count, total, votes, threshold, min_agreeing):
    for i in range(count):
        votes[i] = _ZERO
    for expert in range(num_experts):
        vector = vectors[expert]
        for i in range(count):
            rest = abs(total[i] - vector[i]) * threshold
            votes[i] += _ONE if abs(vector[i]) > rest else _ZERO
    for i in range(count):
        total[i] *= _ONE if votes[i] >= min_agreeing else _ZERO


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def merge_range(
    base, base_kind, experts, kinds, out, out_kind, start, stop, weights, lambda_, sparsify,
    lower, lower_last, upper, upper_last, keys, limits, scales, consensus, threshold, min_agreeing,
    ranks, limits_by_rank, scales_by_rank,
):  # fmt: skip
    """Merge the entries from start to stop; answer `FINE`, `NOT_FINITE` or a broken expert."""
    num_experts = len(weights)
    vectors = np.empty((num_experts, BLOCK), np.float32)
    origin = np.zeros(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    votes = np.empty(BLOCK, np.float32)
    divisor = np.empty(BLOCK, np.float32)
    counted = consensus in (COUNTED_MEAN, COUNTED_SUM)
    summed = total if consensus in (SUM, AGREEMENT) else votes
    in_one = consensus == DISJOINT_MEAN and num_experts in (2, 3)
    broken = False
    for at in range(start, stop, BLOCK):
        count = min(BLOCK, stop - at)
        if base_kind != NO_BASE:
            load(base, base_kind, at, count, origin)
        for expert in range(num_experts):
            address, kind, weight = experts[expert], kinds[expert], weights[expert]
            vector = vectors[expert]
            if sparsify == PLAIN and consensus == SUM:
                accumulate(address, kind, at, count, origin, weight, expert == 0, total, vector)
                continue
            subtract(address, kind, at, count, origin, vector)
            if sparsify == TRIM:
                _trim(
                    vector, at, count,
                    lower[expert], lower_last[expert], upper[expert], upper_last[expert],
                )  # fmt: skip
            elif sparsify in (RANDOM, RANKED):
                if _is_broken(vector, count):
                    return expert
                counter = np.int32(keys[expert, 0] + np.int32(at))
                if ranks[expert]:
                    _drop_by_rank(
                        vector, ranks_at(ranks[expert], at, count), count, counter,
                        keys[expert, 1], limits_by_rank[expert], scales_by_rank[expert],
                        scales[expert],
                    )  # fmt: skip
                elif sparsify == RANDOM:
                    _drop(vector, count, counter, keys[expert, 1], limits[expert], scales[expert])
            if consensus == SUM or counted:
                _add(vector, weight if consensus == SUM else _ONE, count, expert == 0, summed)
            elif not in_one:
                _weigh(vector, weight, count, expert == 0, summed)
        if consensus == AGREEMENT:
            _agreement(vectors, num_experts, count, total, votes, threshold, min_agreeing)
        elif in_one and num_experts == 2:
            _mean_of_two(vectors, weights, count, total)
        elif in_one:
            _mean_of_three(vectors, weights, count, total)
        elif consensus != SUM:
            _disjoint(vectors, weights, count, votes, total, divisor, consensus)
        if base_kind != NO_BASE:
            for i in range(count):
                total[i] = multiply_add(total[i], lambda_, origin[i])
        broken |= store(out, out_kind, at, count, total)
    return NOT_FINITE if broken else FINE


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def count_range(base, base_kind, expert, kind, start, stop, counts):
    """Count the magnitudes of expert minus base by their leading sixteen bits."""
    origin = np.empty(BLOCK, np.float32)
    vector = np.empty(BLOCK, np.float32)
    for at in range(start, stop, BLOCK):
        count = min(BLOCK, stop - at)
        load(base, base_kind, at, count, origin)
        subtract(expert, kind, at, count, origin, vector)
        for i in range(count):
            counts[(bits_of(vector[i]) & _MAGNITUDE) >> 16] += 1


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def gather_range(base, base_kind, expert, kind, start, stop, wanted, low, index):
    """Collect low bits and index of the entries of a bin, zeros left out; return how many."""
    origin = np.empty(BLOCK, np.float32)
    vector = np.empty(BLOCK, np.float32)
    found = 0
    for at in range(start, stop, BLOCK):
        count = min(BLOCK, stop - at)
        load(base, base_kind, at, count, origin)
        subtract(expert, kind, at, count, origin, vector)
        for i in range(count):
            bits = bits_of(vector[i]) & _MAGNITUDE
            if bits >> 16 == wanted and bits != 0:
                low[found] = bits & 0xFFFF
                index[found] = at + i
                found += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
@no_type_check
def _norm(values, count):
    total = 0.0
    for i in range(count):
        total += np.float64(abs(values[i]))
    return total


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def norm_range(
    base, base_kind, expert, kind, start, stop, first, second, limit, scale, before, after
):
    """Write the L1 norms of each run of a task vector, and of what is kept of it at random.

    Returns whether an entry is not finite.
    """
    origin = np.empty(BLOCK, np.float32)
    vector = np.empty(BLOCK, np.float32)
    for at in range(start, stop, BLOCK):
        count = min(BLOCK, stop - at)
        load(base, base_kind, at, count, origin)
        subtract(expert, kind, at, count, origin, vector)
        if _is_broken(vector, count):
            return True
        run = at // NORM_RUN
        before[run] += _norm(vector, count)
        _drop(vector, count, np.int32(first + np.int32(at)), second, limit, scale)
        after[run] += _norm(vector, count)
    return False
