"""What a package needs that adds something to safemerge; see ``examples/``."""

from safemerge.config.merge_method import MergeMethod, Range, merge_method

__all__ = ["MergeMethod", "Range", "merge_method"]
