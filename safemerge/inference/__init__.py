"""Honest numbers: intervals, paired tests, agreement, sample sizes. numpy only."""

from safemerge.inference.jackknife import jackknife_interval
from safemerge.inference.kappa import Kappa, cohen_kappa
from safemerge.inference.paired import (
    MAX_P_VALUE,
    Flips,
    PairedComparison,
    compare_paired,
    group_sums,
    holm_adjusted,
    holm_of_flips,
    mcnemar_p_value,
    paired_mean_interval,
    paired_share_interval,
)
from safemerge.inference.permutation import MAX_BITS, PValue, flip_p_value
from safemerge.inference.replicate import (
    RepeatedComparison,
    Spread,
    compare_repeated,
    spread,
)
from safemerge.inference.sample_size import (
    MAX_PROMPTS,
    independent_discordance,
    mcnemar_power,
    paired_prompts,
    second_share,
    smallest_difference,
    unpaired_prompts,
)
from safemerge.inference.share import (
    Z_95,
    clustered_interval,
    design_effect,
    student_p_value,
    student_quantile,
    wilson_interval,
)

__all__ = [
    "MAX_BITS",
    "MAX_PROMPTS",
    "MAX_P_VALUE",
    "Z_95",
    "Flips",
    "Kappa",
    "PValue",
    "PairedComparison",
    "RepeatedComparison",
    "Spread",
    "clustered_interval",
    "cohen_kappa",
    "compare_paired",
    "compare_repeated",
    "design_effect",
    "flip_p_value",
    "group_sums",
    "holm_adjusted",
    "holm_of_flips",
    "independent_discordance",
    "jackknife_interval",
    "mcnemar_p_value",
    "mcnemar_power",
    "paired_mean_interval",
    "paired_prompts",
    "paired_share_interval",
    "second_share",
    "smallest_difference",
    "spread",
    "student_p_value",
    "student_quantile",
    "unpaired_prompts",
    "wilson_interval",
]
