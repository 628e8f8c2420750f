"""What a package needs that adds something to safemerge; see ``examples/``."""

from typing import TYPE_CHECKING, Any

from safemerge.config.added_metric import AddedMetric, metric
from safemerge.config.alignment_method import AlignmentMethod, alignment_method
from safemerge.config.judge import AddedJudge
from safemerge.config.merge_method import MergeMethod, merge_method
from safemerge.config.signature import Range
from safemerge.records import Answer, Score
from safemerge.scoring.judge import DeclaredJudge, Exchange, Judgement, unscored

if TYPE_CHECKING:
    from safemerge.training.added import AlignmentStep, Gradient

__all__ = [
    "AddedJudge",
    "AddedMetric",
    "AlignmentMethod",
    "AlignmentStep",
    "Answer",
    "DeclaredJudge",
    "Exchange",
    "Gradient",
    "Judgement",
    "MergeMethod",
    "Range",
    "Score",
    "alignment_method",
    "merge_method",
    "metric",
    "unscored",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: a judge or a metric does without."""
    if name in ("AlignmentStep", "Gradient"):
        from safemerge.training import added

        return getattr(added, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
