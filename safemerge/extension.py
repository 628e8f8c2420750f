"""What a package needs that adds something to safemerge; see ``examples/``."""

from safemerge.config.added_metric import AddedMetric, metric
from safemerge.config.judge import AddedJudge
from safemerge.config.merge_method import MergeMethod, Range, merge_method
from safemerge.records import Answer, Score
from safemerge.scoring.judge import DeclaredJudge, Exchange, Judgement, unscored

__all__ = [
    "AddedJudge",
    "AddedMetric",
    "Answer",
    "DeclaredJudge",
    "Exchange",
    "Judgement",
    "MergeMethod",
    "Range",
    "Score",
    "merge_method",
    "metric",
    "unscored",
]
