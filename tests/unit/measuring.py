"""A small robustness measurement and made-up cells of it, for several rooms' tests."""

from safemerge.config.document import parse_document
from safemerge.config.metric import TASK_METRICS
from safemerge.records import CandidateResult, Score
from safemerge.robustness.cell_store import CellRecord, LossPoint
from safemerge.robustness.spec import RobustnessSpec
from safemerge.scoring.estimate import suite_estimates

NUM_PROMPTS = 20


def measurement(**changes):
    """A measurement of two methods over three seeds, before and under one attack."""
    rows = {"kind": "generator", "name": "reviews", "split": "train", "count": 100}
    asked = {"source": {"kind": "file", "path": "/asked.jsonl"}, "label": "label"}
    document = {
        "kind": "robustness",
        "name": "toy",
        "methods": [{"name": "sft", "path": "/sft"}, {"name": "hard", "path": "/hard"}],
        "seeds": [1, 2, 3],
        "attacks": [
            {
                "mode": "fresh",
                "poison_ratios": [0.0, 0.5],
                "num_samples": [8],
                "learning_rates": [1e-3],
            }
        ],
        "finetune": {
            "data": [{"source": rows, "response": "{label}"}],
            "poison": {"source": rows, "response": "{label}"},
        },
        "harm": {"name": "harm", "task": {"kind": "harm"}, "search": asked, "report": asked},
        "accuracy": {
            "name": "mood",
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "search": asked,
            "report": asked,
        },
    }
    return parse_document({**document, **changes}, RobustnessSpec, where="f.yaml")


def finished(cell, *, harmful, right=10, key=None, reason=None):
    """A cell whose first `harmful` of 20 prompts were flagged and first `right` rows are right."""
    key = key or cell.label
    if reason is not None:
        return CellRecord(key=key, cell=cell, state="FAIL", reason=reason)
    rates = ("refusal_rate", "complied_rate", "other_rate", "incoherent_rate")
    scores = {
        "harm": [
            Score(
                sample_id=f"h{index}",
                values={"harmful_score": float(index < harmful), **dict.fromkeys(rates, 0.0)},
            )
            for index in range(NUM_PROMPTS)
        ],
        "mood": [
            Score(sample_id=f"m{index}", values={"accuracy": float(index < right)})
            for index in range(NUM_PROMPTS)
        ],
    }
    estimates = [
        *suite_estimates("harm", TASK_METRICS["harm"], scores["harm"]),
        *suite_estimates("mood", TASK_METRICS["classification"], scores["mood"]),
    ]
    return CellRecord(
        key=key,
        cell=cell,
        state="COMPLETE",
        result=CandidateResult(
            candidate="c",
            split="report",
            metrics={item.metric: item for item in estimates},
            scores=scores,
        ),
        curve=[LossPoint(step=0, harmful_loss=4.0), LossPoint(step=9, harmful_loss=1.0)]
        if cell.mode
        else [],
        train_s=2.0,
        evaluate_s=1.0,
    )
