"""Noise of scores: by interval, and by the prompts that all candidates answer."""

import numpy as np
import pytest

from safemerge.records import CandidateResult, MetricEstimate, Score, TrialRecord
from safemerge.search.noise import shared_noise


def record(number, group=None, **suites):
    """A trial with the given scores of one metric each, ``suite.right``."""
    scores = {
        suite: [
            Score(sample_id=f"{suite}/{place}", values={"right": value}, group=group)
            if value is not None
            else Score(sample_id=f"{suite}/{place}", unscored="no verdict")
            for place, value in enumerate(values)
        ]
        for suite, values in suites.items()
    }
    means = {
        f"{suite}.right": float(np.mean([value for value in values if value is not None]))
        for suite, values in suites.items()
    }
    means["both"] = float(np.mean(list(means.values())))
    metrics = {
        name: MetricEstimate(metric=name, value=mean, low=0.0, high=1.0, n=4, direction="maximize")
        for name, mean in means.items()
    }
    result = CandidateResult(candidate=str(number), split="search", metrics=metrics, scores=scores)
    return TrialRecord(
        number=number,
        role="sampled",
        label="",
        state="COMPLETE",
        recipe={},
        candidate="",
        result=result,
    )


def test_what_all_share_is_apart_from_what_a_candidate_has_of_its_own():
    """By hand: effects (1, 1/2, 1/2, 0), their variance 1/8; rests (0, +-1/2, -+1/2, 0)."""
    records = [record(0, a=[1.0, 1.0, 0.0, 0.0]), record(1, a=[1.0, 0.0, 1.0, 0.0])]
    found = shared_noise(records, "a.right")
    assert found.shared == pytest.approx(1 / 8 / 4)
    assert found.own == pytest.approx({0: 1 / 8 / 4, 1: 1 / 8 / 4})


def test_equal_answers_have_no_noise_of_their_own():
    records = [record(number, a=[1.0, 0.0, 0.0, 0.0]) for number in range(3)]
    found = shared_noise(records, "a.right")
    assert found.own == {0: 0.0, 1: 0.0, 2: 0.0}
    assert found.shared == pytest.approx(3 / 16 / 4)


def test_an_aggregate_adds_up_the_suites():
    a, b = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]
    records = [record(number, a=a[number], b=b[number]) for number in range(2)]
    parts = [shared_noise(records, metric) for metric in ("a.right", "b.right")]
    found = shared_noise(records, "both", mean_of=["a.right", "b.right"])
    assert found.shared == pytest.approx(sum(part.shared for part in parts) / 4)
    assert found.own[1] == pytest.approx(sum(part.own[1] for part in parts) / 4)


def test_the_variance_is_that_of_paired_differences():
    """Simulated: the spread of a candidate's distance from the mean of 8, over 200 prompt sets."""
    rng = np.random.default_rng(0)
    shares, distances, told = np.linspace(0.3, 0.7, 8), [], []
    for _ in range(200):
        hard = rng.random(30)
        luck = np.where(rng.random((8, 30)) < 0.5, hard, rng.random((8, 30)))
        scores = (luck < shares[:, None]).astype(float)
        records = [record(number, a=row.tolist()) for number, row in enumerate(scores)]
        told.append(shared_noise(records, "a.right").own[0])
        distances.append(scores[0].mean() - scores.mean())
    assert np.mean(told) == pytest.approx(np.var(distances), rel=0.3)


@pytest.mark.parametrize(
    "records",
    [
        [record(0, a=[1.0, 0.0]), record(1, a=[1.0, None])],
        [record(0, a=[1.0, 0.0]), record(1, a=[1.0, 0.0, 1.0])],
        [record(0, group="g", a=[1.0, 0.0]), record(1, a=[1.0, 0.0])],
        [record(0, b=[1.0, 0.0]), record(1, b=[1.0, 0.0])],
    ],
    ids=["a prompt without a verdict", "other prompts", "grouped prompts", "no scores"],
)
def test_without_the_same_prompts_there_is_nothing_shared(records):
    assert shared_noise(records, "a.right") is None


def test_a_metric_that_is_no_mean_by_prompt_is_left_alone():
    records = [record(number, a=[1.0, 0.0]) for number in range(2)]
    wrong = records[1].result.metrics["a.right"].model_copy(update={"value": 0.9})
    result = records[1].result.model_copy(update={"metrics": {"a.right": wrong}})
    records[1] = records[1].model_copy(update={"result": result})
    assert shared_noise(records, "a.right") is None
