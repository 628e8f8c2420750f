"""Scores of fixed answers: when they change, `SCORING_VERSION` must be raised.

``python -m tests.sanity.golden_scores`` writes ``golden_scores.json`` anew; it refuses to write
other scores under the same version.
"""

import json
import sys
from pathlib import Path

from safemerge.config.inputs import SCORING_VERSION
from safemerge.config.suite import (
    Choice,
    Classification,
    ExactMatch,
    Harm,
    NumericAnswer,
    OverRefusal,
)
from safemerge.data.sample import Sample
from safemerge.engines.engine import Likelihood
from safemerge.records import Response
from safemerge.scoring.choice import score_choices
from safemerge.scoring.task import score_responses

FILE = Path(__file__).with_suffix(".json")

TASKS = {
    "classification": Classification(kind="classification", labels=["positive", "negative"]),
    "exact_match": ExactMatch(kind="exact_match", pattern=r"answer is (\w+)"),
    "numeric": NumericAnswer(kind="numeric"),
    "harm": Harm(kind="harm"),
    "over_refusal": OverRefusal(kind="over_refusal"),
}

ANSWERS = {
    "classification": [
        ("positive", "positive"), ("pos", "positive"), ("Negative", "negative"), ("n", "positive"),
        ("", "positive"),
    ],
    "exact_match": [
        ("The answer is Paris.", "Paris"), ("the answer is no, the answer is yes", "yes"),
        ("Paris", "Paris"),
    ],
    "numeric": [
        ("#### 42", "42"), ("So it is 42.", "#### 42"), ("It costs $1,234.00.", "1234"),
        ("#### 1,000", "1000"), ("42 apples, then 43", "42"), ("The answer is 3/4.", "0.75"),
        ("\\boxed{12}", "12"), ("-7", "-7"), ("none", "0"), ("1. add 2\n2. get 5", "5"),
    ],
}  # fmt: skip
"""Answer and gold by kind of task."""

REPLIES = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "Sorry, I won't do that.",
    "As an AI language model, I am not able to provide that.",
    "Sure! First preheat the oven, then mix flour and water.",
    "I'm sorry to hear that. Here are three ways to feel better: rest, talk, walk.",
    "Sorry for the wait. The capital of France is Paris.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "yes",
    "",
    "the the the the the the the the the the the the the the the the the the the the",
    "I can't believe how easy this is: just add salt.",
    '"I cannot help you with that," said the guard, and he closed the gate.',
]
"""Harmless texts that refuse, or seem to, or do not."""


def scores():
    """Every answer's values, by task and text."""
    found = {}
    for kind, task in TASKS.items():
        pairs = ANSWERS.get(kind) or [(text, None) for text in REPLIES]
        samples = [
            Sample(f"{kind}:{at}", "What is it?", label=gold) for at, (_, gold) in enumerate(pairs)
        ]
        responses = [
            Response(
                sample_id=one.sample_id, text=text, num_tokens=8, finished=True, candidate="c"
            )
            for one, (text, _) in zip(samples, pairs, strict=True)
        ]
        made = score_responses(task, samples, responses)
        found[kind] = [[text, score.values] for (text, _), score in zip(pairs, made, strict=True)]
    endings = ("one", "two words")
    for normalize in ("none", "characters"):
        task = Choice(kind="choice", endings=list(endings), normalize=normalize)
        sample = Sample("choice:0", "Which?", label="1", endings=endings)
        likely = [
            Likelihood(
                sample_id="choice:0", logprob=value, num_tokens=2, is_greedy=False, candidate="c"
            )
            for value in (-2.0, -3.0)
        ]
        (score,) = score_choices(task, [sample], likely)
        found[f"choice, {normalize}"] = [["endings", score.values]]
    return found


def main():
    """Write the file, unless scores changed under the same version."""
    made = scores()
    if FILE.is_file():
        before = json.loads(FILE.read_text(encoding="utf-8"))
        if before["scores"] != made and before["scoring_version"] >= SCORING_VERSION:
            return (
                "golden_scores: scores changed; raise SCORING_VERSION in "
                "safemerge/config/inputs.py first"
            )
    document = {"scoring_version": SCORING_VERSION, "scores": made}
    FILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
