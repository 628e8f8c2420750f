"""An interval of any aggregate, without a draw: the delete-a-group jackknife.

References:
    Kott, The delete-a-group jackknife, J. Official Statistics 17 (2001). Shao and Tu, *The
    Jackknife and Bootstrap*, 1995, chapter 2: groups also serve aggregates that are not smooth,
    such as medians, where leaving out one sample fails. Departures: samples are dealt
    to groups in their order, not drawn; numbers above 0 are taken on the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from safemerge.errors import ScoringError
from safemerge.inference.share import student_quantile

MIN_GROUPS = 10
"""Groups, where there are as many samples: beyond 100 it is the root of their number, as far as
`MAX_GROUPS`. The aggregate is computed once without each."""

MAX_GROUPS = 40


def jackknife_interval(
    aggregate: Callable[[Sequence[int]], float],
    groups: Sequence[Hashable],
    *,
    is_share: bool = False,
) -> tuple[float, float | None, float | None]:
    """Return an aggregate over all samples and its 95 % interval.

    Student's interval with the jackknife's standard error. A number whose every leave-one-out
    value is above 0 (a perplexity, a score of 0 to 100) has it on the log scale, so that its lower
    end is above 0.

    Args:
        aggregate: Computes the value of the samples with the given places; may be expensive.
        groups: Group of each sample, by place; samples of one group are left out together.
        is_share: Whether the interval is to stay within [0, 1], if every value found does.

    Returns:
        Value, lower end, upper end; the ends hold the value. A single group says nothing about
        others: the ends are None, or 0 and 1 for a share.

    Raises:
        ScoringError: If there is no sample, or a value is not finite.
    """
    if not groups:
        raise ScoringError("jackknife: needs at least one sample; got none.")
    order = {label: place for place, label in enumerate(dict.fromkeys(groups))}
    wanted = min(MAX_GROUPS, max(MIN_GROUPS, math.isqrt(len(order))))
    num_groups = min(wanted, len(order))
    dealt = [order[label] % num_groups for label in groups]
    value = aggregate(range(len(groups)))
    left = [
        aggregate([place for place, own in enumerate(dealt) if own != out])
        for out in range(num_groups if num_groups > 1 else 0)
    ]
    wrong = next((found for found in (value, *left) if not math.isfinite(found)), None)
    if wrong is not None:
        raise ScoringError(f"the value must be finite; got {wrong}.")
    is_share = is_share and all(0.0 <= found <= 1.0 for found in (value, *left))
    if num_groups == 1:
        return (value, 0.0, 1.0) if is_share else (value, None, None)
    is_positive = not is_share and min(value, *left) > 0
    moved = list(map(math.log, left)) if is_positive else left
    mean = math.fsum(moved) / num_groups
    spread2 = math.fsum((one - mean) ** 2 for one in moved)
    error = math.sqrt((num_groups - 1) / num_groups * spread2)
    half = student_quantile(0.975, num_groups - 1) * error
    if is_positive:
        return value, value * math.exp(-half), value * math.exp(half)
    if is_share:
        return value, max(0.0, value - half), min(1.0, value + half)
    return value, value - half, value + half
