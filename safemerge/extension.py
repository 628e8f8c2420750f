"""What a package needs that adds something to safemerge; see ``examples/``."""

from safemerge.config.added_metric import AddedMetric, metric
from safemerge.config.judge import AddedJudge
from safemerge.records import Answer, Score
from safemerge.scoring.judge import DeclaredJudge, Exchange, Judgement, unscored

__all__ = [
    "AddedJudge",
    "AddedMetric",
    "Answer",
    "DeclaredJudge",
    "Exchange",
    "Judgement",
    "Score",
    "metric",
    "unscored",
]
