"""Merging: methods as rows of a table, recipes as streams of named tensors."""

from safemerge.merge.adapter import write_adapter, write_nearest_adapter
from safemerge.merge.lora import MergedAdapter, check_adapter_recipe, merge_adapters
from safemerge.merge.method import merge_tensor, models_read, statistics_read
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.stream import merge_order, merged_dtype, merged_tensors
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.writer import write_merged

__all__ = [
    "MergedAdapter",
    "ResidentCheckpoints",
    "SpectrumCache",
    "ThresholdCache",
    "check_adapter_recipe",
    "merge_adapters",
    "merge_order",
    "merge_tensor",
    "merged_dtype",
    "merged_tensors",
    "models_read",
    "statistics_read",
    "write_adapter",
    "write_merged",
    "write_nearest_adapter",
]
