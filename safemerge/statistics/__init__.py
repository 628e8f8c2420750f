"""Honest numbers: intervals, paired tests, agreement, sample sizes. numpy only."""

from safemerge.statistics.kappa import Kappa, cohen_kappa
from safemerge.statistics.paired import (
    PairedComparison,
    bootstrap_interval,
    compare_paired,
    group_sums,
    holm_adjusted,
    mcnemar_p_value,
    paired_share_interval,
    resampled_means,
    sign_flip_p_value,
)
from safemerge.statistics.replicate import (
    RepeatedComparison,
    Spread,
    compare_repeated,
    spread,
)
from safemerge.statistics.sample_size import (
    MAX_PROMPTS,
    independent_discordance,
    mcnemar_power,
    paired_prompts,
    second_share,
    smallest_difference,
    unpaired_prompts,
)
from safemerge.statistics.share import (
    Z_95,
    clustered_interval,
    design_effect,
    student_quantile,
    wilson_interval,
)

__all__ = [
    "MAX_PROMPTS",
    "Z_95",
    "Kappa",
    "PairedComparison",
    "RepeatedComparison",
    "Spread",
    "bootstrap_interval",
    "clustered_interval",
    "cohen_kappa",
    "compare_paired",
    "compare_repeated",
    "design_effect",
    "group_sums",
    "holm_adjusted",
    "independent_discordance",
    "mcnemar_p_value",
    "mcnemar_power",
    "paired_prompts",
    "paired_share_interval",
    "resampled_means",
    "second_share",
    "sign_flip_p_value",
    "smallest_difference",
    "spread",
    "student_quantile",
    "unpaired_prompts",
    "wilson_interval",
]
