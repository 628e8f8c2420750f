"""Numbers that choose what compiled loops do; nothing is imported to read them."""

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
"""Kinds of floats at an address."""

NO_BASE = -1
"""Kind of a base that takes no part: whole weights are merged, not task vectors."""

PLAIN, TRIM, RANDOM, RANKED = 0, 1, 2, 3
"""How a task vector is sparsified."""

CONSENSUS = range(7)
"""How task vectors become one."""

SUM, DISJOINT_MEAN, DISJOINT_SUM, COUNTED_MEAN, COUNTED_SUM, AGREEMENT, SIGNED_MEAN = CONSENSUS
"""The members of `CONSENSUS`; the counted ones are peft's, the signed mean is mergekit's."""

FINE, NOT_FINITE = -1, -2
"""What a merge answers, where it is not the number of an expert that is broken."""

NORM_RUN = 1 << 15
"""Entries whose absolute values are added up together; parts of a tensor begin at multiples."""
