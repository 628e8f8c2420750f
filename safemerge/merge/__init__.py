"""Merging: methods as rows of a table, recipes as streams of named tensors."""

from safemerge.merge.method import merge_tensor, models_read
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.step import STEPS, StepRow
from safemerge.merge.stream import merge_order, merged_dtype, merged_tensors
from safemerge.merge.table import METHODS, MethodRow, method_row
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.writer import write_merged

__all__ = [
    "METHODS",
    "STEPS",
    "MethodRow",
    "ResidentCheckpoints",
    "SpectrumCache",
    "StepRow",
    "ThresholdCache",
    "merge_order",
    "merge_tensor",
    "merged_dtype",
    "merged_tensors",
    "method_row",
    "models_read",
    "write_merged",
]
