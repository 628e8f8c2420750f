"""Paired differences: the p-value decides, nothing is drawn, one family has one correction."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic_run as synthetic

from safemerge.errors import StudyError
from safemerge.front import assemble_front
from safemerge.records import Front, FrontPoint, Score
from safemerge.reports.comparison import (
    PairedDifference,
    holm_corrected,
    indistinguishable_pairs,
    paired_difference,
    point_differences,
)


def harm_scores(values, *, unscored=(), start=0):
    return [
        Score(sample_id=f"u{start + place}", unscored="judge timeout")
        if place in unscored
        else Score(
            sample_id=f"u{start + place}",
            values={key: float(value) for key in synthetic.KEYS["unsafe"]},
        )
        for place, value in enumerate(values)
    ]


def candidate(name, scores, split="report"):
    return synthetic.make_result(name, split, scores)


def test_difference_and_interval_of_verdicts():
    generator = np.random.default_rng(0)
    left, right = (generator.random(300) < 0.4), (generator.random(300) < 0.3)
    found = paired_difference(
        candidate("a", {"unsafe": harm_scores(left)}),
        candidate("b", {"unsafe": harm_scores(right)}),
        metric=synthetic.HARM,
    )
    differences = left.astype(float) - right
    half = 1.96 * differences.std() / np.sqrt(300)
    assert found.value == pytest.approx(differences.mean())
    assert found.low == pytest.approx(found.value - half, abs=0.008)
    assert found.high == pytest.approx(found.value + half, abs=0.008)
    assert (found.n, found.left_out, found.direction) == (300, 0, "minimize")


def test_interval_width_is_that_of_the_paired_normal_approximation():
    generator = np.random.default_rng(5)
    left, right = generator.random(400), generator.random(400)
    found = paired_difference(
        candidate("a", {"unsafe": harm_scores(left)}),
        candidate("b", {"unsafe": harm_scores(right)}),
        metric=synthetic.HARM,
    )
    half = 1.96 * np.std(left - right) / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def test_verdicts_of_one_suite_get_the_exact_test_and_an_interval_with_a_width():
    left, right = [1] * 12 + [0] * 28, [0] * 9 + [1] * 3 + [0] * 28
    found = paired_difference(
        candidate("a", {"unsafe": harm_scores(left)}),
        candidate("b", {"unsafe": harm_scores(right)}),
        metric=synthetic.HARM,
    )
    assert found.p_value == pytest.approx(2 * 0.5**9)
    same = candidate("a", {"unsafe": harm_scores(left)})
    equal = paired_difference(same, same, metric=synthetic.HARM)
    assert equal.p_value == 1.0
    assert equal.low < 0 < equal.high, "forty equal verdicts don't prove that none differs"


def test_graded_scores_get_a_p_value_by_sign_flips():
    generator = np.random.default_rng(5)
    left, noise = generator.random(60), generator.random(60)
    told = [
        paired_difference(
            candidate("a", {"unsafe": harm_scores(left)}),
            candidate("b", {"unsafe": harm_scores(other)}),
            metric=synthetic.HARM,
        ).p_value
        for other in (noise, left / 2)
    ]
    assert told[0] > 0.05
    assert told[1] < 1e-9


def test_nothing_hangs_on_a_seed_and_swapping_sides_flips_the_sign():
    generator = np.random.default_rng(1)
    left = candidate("a", {"unsafe": harm_scores(generator.random(40))})
    right = candidate("b", {"unsafe": harm_scores(generator.random(40))})
    first = paired_difference(left, right, metric=synthetic.HARM)
    assert all(
        first == paired_difference(left, right, metric=synthetic.HARM, seed=seed)
        for seed in range(5)
    )
    back = paired_difference(right, left, metric=synthetic.HARM)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-first.value, -first.high, -first.low)
    )
    assert back.p_value == first.p_value
    assert first.reversed() == back


def test_unscored_samples_are_left_out_in_pairs_and_counted():
    left = candidate("a", {"unsafe": harm_scores([1] * 20, unscored={0, 1})})
    right = candidate("b", {"unsafe": harm_scores([0] * 20, unscored={1, 2})})
    found = paired_difference(left, right, metric=synthetic.HARM)
    assert (found.n, found.left_out) == (17, 3)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.8, "17 of 17 leave some doubt"
    assert found.verdict == "worse"


def test_samples_that_only_one_side_has_are_left_out():
    left = candidate("a", {"unsafe": harm_scores([1] * 20)})
    right = candidate("b", {"unsafe": harm_scores([0] * 20, start=5)})
    found = paired_difference(left, right, metric=synthetic.HARM)
    assert (found.n, found.left_out) == (15, 10)


def test_nothing_in_common_has_no_value_and_no_verdict():
    left = candidate("a", {"unsafe": harm_scores([1] * 3)})
    right = candidate("b", {"unsafe": harm_scores([1] * 3, unscored={0, 1, 2})})
    found = paired_difference(left, right, metric=synthetic.HARM)
    assert found.value is found.low is found.high is None
    assert found.n == 0
    assert found.verdict == "not significant"


def test_an_aggregate_is_the_mean_of_its_suites_whatever_their_sizes():
    def scores(arithmetic, reviews):
        return {
            "arithmetic": [
                Score(sample_id=f"a{place}", values={"accuracy": float(value)})
                for place, value in enumerate(arithmetic)
            ],
            "reviews": [
                Score(
                    sample_id=f"r{place}",
                    values={"accuracy": float(value), "unlabelled_rate": 0.0},
                )
                for place, value in enumerate(reviews)
            ],
        }

    left = candidate("a", scores([1] * 30, [1, 0] * 50))
    right = candidate("b", scores([0, 1, 1] * 10, [0] * 100))
    found = paired_difference(
        left, right, metric="skill", mean_of=["arithmetic.accuracy", "reviews.accuracy"]
    )
    assert found.value == pytest.approx((1 / 3 + 0.5) / 2)
    assert found.n == 30
    spread = np.sqrt((2 / 9) / 30 + 0.25 / 100) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.25)


def test_results_of_two_splits_are_refused():
    left = candidate("a", {"unsafe": harm_scores([1])}, split="search")
    right = candidate("b", {"unsafe": harm_scores([1])})
    with pytest.raises(StudyError, match=r"a and b: .* got search and report"):
        paired_difference(left, right, metric=synthetic.HARM)


@pytest.mark.parametrize(
    ("direction", "value", "p_value", "verdict"),
    [
        ("maximize", 0.1, 0.05, "better"),
        ("maximize", -0.1, 0.01, "worse"),
        ("minimize", 0.1, 0.01, "worse"),
        ("minimize", -0.1, 0.01, "better"),
        ("minimize", -0.1, 0.0501, "not significant"),
        ("maximize", 0.1, None, "not significant"),
    ],
)
@pytest.mark.parametrize("low", [-0.3, 0.05])
def test_the_p_value_alone_decides_whatever_the_interval_holds(
    direction, value, p_value, verdict, low
):
    found = PairedDifference("m", direction, value, low, 0.3, 50, 0, p_value)
    assert found.verdict == verdict
    assert found.is_distinguishable == (verdict != "not significant")


def test_pairs_that_do_not_differ_significantly_are_marked_by_objective():
    small = synthetic.Synthetic(counts={"search": 60, "report": 200})
    rates = {
        0: {"skill": 0.5, "harm": 0.10, "refusal": 0.0},
        1: {"skill": 0.7, "harm": 0.50, "refusal": 0.0},
        2: {"skill": 0.72, "harm": 0.90, "refusal": 0.0},
    }
    trials = [
        synthetic.make_trial(number, small.result(number, "search", **rate))
        for number, rate in rates.items()
    ]
    report = {
        item.candidate: small.result(item.number, "report", **rates[item.number])
        for item in trials
    }
    front = assemble_front(synthetic.make_spec(), trials, report, study_digest="abc")
    assert len(front.points) == 3
    pairs = indistinguishable_pairs(front)
    assert [(item.left, item.right, item.difference.metric) for item in pairs] == [(1, 2, "skill")]
    again = point_differences(front.points[1], front.points[2], objectives=front.objectives)
    assert again[0] == replace(pairs[0].difference, p_value=again[0].p_value, num_comparisons=1)
    assert again[1].verdict == "better"


def in_groups(values, size):
    scores = harm_scores(values)
    return [
        score.model_copy(update={"group": f"u{place - place % size}"})
        for place, score in enumerate(scores)
    ]


def test_samples_that_share_a_prompt_are_flipped_and_counted_as_one():
    left = candidate("a", {"unsafe": in_groups([1] * 15, 5)})
    right = candidate("b", {"unsafe": in_groups([0] * 15, 5)})
    found = paired_difference(left, right, metric=synthetic.HARM)
    assert (found.n, found.num_groups) == (15, 3)
    assert found.p_value == 0.25, "two of the eight ways to flip three groups are as far from 0"
    assert found.low < 0.9 < found.value == 1.0
    assert found.verdict == "not significant", "three groups prove nothing"


def test_graded_groups_of_several_sizes_are_resampled_and_flipped_whole():
    generator = np.random.default_rng(2)
    sizes = [1, 2, 6, 3, 4] * 8
    shifts = np.repeat(generator.normal(0.05, 0.2, len(sizes)), sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)

    def made(name, values):
        scores = [
            score.model_copy(update={"group": f"g{group}"})
            for score, group in zip(harm_scores(values), groups, strict=True)
        ]
        return candidate(name, {"unsafe": scores})

    found = paired_difference(
        made("a", 0.5 + shifts), made("b", np.full(len(shifts), 0.5)), metric=synthetic.HARM
    )
    drawn = generator.integers(0, len(sizes), (4000, len(sizes)))
    totals = np.bincount(groups, weights=shifts)
    means = totals[drawn].sum(1) / np.asarray(sizes)[drawn].sum(1)
    assert found.num_groups == 40
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    flipped = (generator.choice([-1, 1], (4000, len(sizes))) * totals).sum(1)
    as_far = (np.abs(flipped) >= abs(totals.sum())).mean()
    assert found.p_value == pytest.approx(as_far, abs=0.03)
    alone = paired_difference(
        candidate("a", {"unsafe": harm_scores(0.5 + shifts)}),
        candidate("b", {"unsafe": harm_scores(np.full(len(shifts), 0.5))}),
        metric=synthetic.HARM,
    )
    assert found.high - found.low > 1.4 * (alone.high - alone.low)


def test_an_aggregate_flips_the_groups_of_its_suites():
    def scores(value):
        return {
            suite: [
                Score(sample_id=f"{suite}{place}", values={"accuracy": value}, group=group)
                for place, group in enumerate(["x"] * 6 + ["y"] * 6)
            ]
            for suite in ("arithmetic", "reviews")
        }

    found = paired_difference(
        candidate("a", scores(1.0)),
        candidate("b", scores(0.0)),
        metric="skill",
        mean_of=["arithmetic.accuracy", "reviews.accuracy"],
    )
    # Four groups in all: 2 of 16 ways are as far from 0.
    assert found.p_value == pytest.approx(0.125, rel=1e-9)
    assert (found.n, found.num_groups, found.verdict) == (12, 2, "not significant")


def front_of(*results):
    points = [
        FrontPoint(
            number=number,
            label=f"trial {number}",
            candidate=result.candidate,
            role="sampled",
            search=result,
            report=result,
            recipe={},
        )
        for number, result in enumerate(results)
    ]
    objectives = [{"metric": synthetic.HARM, "direction": "minimize"}]
    return Front(study="toy", study_digest="abc", objectives=objectives, points=points)


def test_pairs_of_a_front_are_told_apart_only_after_correction_for_their_number():
    high = candidate("a", {"unsafe": harm_scores([1] * 12 + [0] * 48)})
    low = candidate("b", {"unsafe": harm_scores([0] * 12 + [1] * 3 + [0] * 45)})
    alone = paired_difference(high, low, metric=synthetic.HARM)
    assert 0.03 < alone.p_value < 0.04
    assert alone.verdict == "worse"
    assert indistinguishable_pairs(front_of(high, low)) == []
    pairs = indistinguishable_pairs(front_of(high, low, high, low))
    assert len(pairs) == 6, "six times that p-value is no finding"
    assert pairs[0].difference.p_value == pytest.approx(6 * alone.p_value)


def test_a_table_of_many_graded_pairs_can_still_tell_the_surest_apart():
    generator = np.random.default_rng(3)
    noise = generator.random(60)
    results = [candidate(f"c{n}", {"unsafe": harm_scores(noise * n / 10)}) for n in range(1, 7)]
    pairs = indistinguishable_pairs(front_of(*results))
    assert pairs == [], "15 comparisons, each as sure as can be"


def test_a_tables_correction_leaves_out_what_has_no_p_value():
    made = [
        PairedDifference("m", "minimize", 0.1, 0.05, 0.2, 50, 0, p_value)
        for p_value in (0.01, None, 0.04)
    ]
    assert [item.p_value for item in holm_corrected(made)] == [0.02, None, 0.04]
    assert holm_corrected([]) == []


def test_a_p_value_near_the_level_is_computed_more_finely_until_it_is_certain():
    generator = np.random.default_rng(6)
    made = []
    while not made:
        values = generator.random(80) * 0.5
        other = candidate("b", {"unsafe": harm_scores(values)})
        shifted = np.clip(values + generator.normal(0.04, 0.2, 80), 0, 1)
        found = paired_difference(
            candidate("a", {"unsafe": harm_scores(shifted)}), other, metric=synthetic.HARM
        )
        if 0.03 < found.p_value < 0.07:
            made.append(found)
    for item in made:
        rough, fine = item.flips.p_value(), item.flips.p_value(18)
        assert rough.low <= fine.low <= fine.high <= rough.high
        alone = holm_corrected([item])[0]
        assert alone.is_distinguishable == (fine.high <= 0.05)
