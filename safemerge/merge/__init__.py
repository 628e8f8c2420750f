"""Merging: methods as rows of a table, recipes as streams of named tensors."""

from safemerge.merge.method import METHODS, MethodRow, merge_tensor, method_row
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.sparsify import ThresholdCache
from safemerge.merge.stream import merge_order, merged_dtype, merged_tensors
from safemerge.merge.writer import write_merged

__all__ = [
    "METHODS",
    "MethodRow",
    "ResidentCheckpoints",
    "ThresholdCache",
    "merge_order",
    "merge_tensor",
    "merged_dtype",
    "merged_tensors",
    "method_row",
    "write_merged",
]
