"""The front is decided on the search split, and published with both."""

import math

import pytest
import synthetic_run as synthetic
from synthetic_run import HARM, LIMIT, SKILL

from safemerge.config.study import Constraint
from safemerge.errors import StudyError
from safemerge.front import (
    BelievedFront,
    assemble_front,
    broken_constraints,
    front_hypervolume,
    front_trials,
    hypervolume_steps,
    knee_number,
    non_dominated,
    reference_trials,
    violation,
)
from safemerge.inference import holm_adjusted
from safemerge.records import Believed, Front, FrontBelief, PointBelief
from safemerge.reports import load_run, render_html
from safemerge.reports.comparison import paired_difference
from safemerge.reports.family import family_of
from safemerge.reports.metric import safety_metrics
from safemerge.reports.payload import payload
from safemerge.reports.versus import (
    compare_all_with_references,
    compare_with_references,
    is_parent,
)


def result(number, split, skill, harm, refusal=0.0, broken=None):
    """A candidate with the given rates, exactly: ten samples a suite."""

    def scores(suite, rate):
        count = round(10 * rate)
        return [
            synthetic.Score(
                sample_id=f"{suite}/{split}/{place}",
                values={
                    key: float(place < count) if key == synthetic.KEYS[suite][0] else 0.0
                    for key in synthetic.KEYS[suite]
                },
            )
            for place in range(10)
        ]

    return synthetic.make_result(
        synthetic.digest_of(number),
        split,
        {
            "arithmetic": scores("arithmetic", skill),
            "reviews": scores("reviews", skill),
            "unsafe": scores("unsafe", harm),
            "benign": scores("benign", refusal),
        },
        broken=broken,
    )


def trial(number, skill, harm, refusal=0.0, **options):
    return synthetic.make_trial(number, result(number, "search", skill, harm, refusal), **options)


SPEC = synthetic.make_spec()


def test_front_keeps_what_nothing_dominates_and_drops_infeasible_failed_and_broken():
    trials = [
        trial(0, 0.5, 0.5, role="reference", label="smol"),
        trial(1, 0.6, 0.5),
        trial(2, 0.4, 0.2),
        trial(3, 0.9, 0.0, refusal=0.9),
        synthetic.make_trial(4, None, state="FAIL", reason="crashed"),
        synthetic.make_trial(5, result(5, "search", 0.9, 0.0, broken="NaN weights")),
    ]
    assert [item.number for item in front_trials(SPEC, trials)] == [1, 2]


def test_order_of_trials_does_not_change_the_front():
    trials, _ = synthetic.make_trials(
        20, synthetic=synthetic.Synthetic(counts={"search": 30, "report": 30})
    )
    forward = [item.number for item in front_trials(SPEC, trials)]
    assert [item.number for item in front_trials(SPEC, trials[::-1])] == forward
    brute = [
        one.number
        for one in trials
        if one.feasible
        and not any(
            other.feasible
            and other.objectives[SKILL] >= one.objectives[SKILL]
            and other.objectives[HARM] <= one.objectives[HARM]
            and other.objectives != one.objectives
            for other in trials
        )
    ]
    assert forward == sorted(brute)


def test_one_candidate_comes_once_and_a_parent_before_a_sampled_copy():
    parent = trial(3, 0.5, 0.5, role="reference", label="smol")
    copy = trial(1, 0.5, 0.5).model_copy(update={"candidate": parent.candidate})
    assert [item.number for item in front_trials(SPEC, [copy, parent])] == [3]


def test_a_parent_tried_again_is_taken_from_its_last_complete_trial():
    trials = [
        synthetic.make_trial(0, None, role="reference", label="smol", state="FAIL", reason="x"),
        trial(1, 0.5, 0.5, role="reference", label="smol"),
        trial(2, 0.5, 0.5, refusal=0.9, role="reference", label="aligned"),
    ]
    assert [item.number for item in reference_trials(trials)] == [1, 2]


def test_assembled_front_has_both_splits_knee_hypervolumes_and_aggregate_parts():
    trials = [
        trial(0, 0.2, 0.1, role="reference", label="aligned"),
        trial(1, 0.7, 0.2),
        trial(2, 0.8, 0.8),
        trial(3, 0.1, 0.9),
    ]
    rates = {0: (0.2, 0.2), 1: (0.6, 0.3), 2: (0.8, 0.9)}
    report = {
        synthetic.digest_of(number): result(number, "report", *rate)
        for number, rate in rates.items()
    }
    front = assemble_front(SPEC, trials, report, study_digest="abc")
    assert [point.number for point in front.points] == [0, 1, 2]
    assert [point.label for point in front.references] == ["aligned"]
    assert front.knee == 1
    assert front.points[1].report.value(SKILL) == pytest.approx(0.6)
    assert front.points[1].search.value(SKILL) == pytest.approx(0.7)
    # Area below harm 1 and above skill 0: sum of strips from the right.
    assert front.hypervolume_search == pytest.approx(0.2 * 0.9 + 0.5 * 0.8 + 0.1 * 0.2)
    assert front.hypervolume_report == pytest.approx(0.2 * 0.8 + 0.4 * 0.7 + 0.2 * 0.1)
    assert front.objectives[0]["mean_of"] == ["arithmetic.accuracy", "reviews.accuracy"]
    assert "mean_of" not in front.objectives[1]
    assert Front.model_validate_json(front.model_dump_json()) == front


def test_a_point_that_breaks_a_limit_on_the_report_split_is_shown_but_never_the_knee():
    trials = [trial(1, 0.7, 0.2), trial(2, 0.8, 0.8)]
    report = {
        synthetic.digest_of(1): result(1, "report", 0.7, 0.2, refusal=0.5),
        synthetic.digest_of(2): result(2, "report", 0.8, 0.8),
    }
    front = assemble_front(SPEC, trials, report, study_digest="abc")
    assert [point.number for point in front.points] == [1, 2]
    assert front.knee == 2
    assert front.hypervolume_report == pytest.approx(0.8 * 0.2)
    assert knee_number(SPEC, front.points, split="search") in (1, 2)
    assert [item.metric for item in broken_constraints(SPEC, front.points[0].report)] == [LIMIT]


def test_no_point_that_keeps_its_limits_gives_no_knee():
    report = {synthetic.digest_of(1): result(1, "report", 0.7, 0.2, refusal=0.5)}
    front = assemble_front(SPEC, [trial(1, 0.7, 0.2)], report, study_digest="abc")
    assert front.knee is None
    assert front.hypervolume_report == 0


def test_a_member_without_a_report_result_is_left_out_but_counts_in_the_search_hypervolume():
    front = assemble_front(SPEC, [trial(1, 0.7, 0.2)], {}, study_digest="abc")
    assert front.points == []
    assert front.hypervolume_search == pytest.approx(0.7 * 0.8)


@pytest.mark.parametrize("key", [synthetic.digest_of(1), "another"])
def test_results_of_another_split_or_candidate_are_refused(key):
    split = "search" if key != "another" else "report"
    with pytest.raises(StudyError, match=f"candidate {key}: needs its report-split result"):
        assemble_front(
            SPEC, [trial(1, 0.7, 0.2)], {key: result(1, split, 0.7, 0.2)}, study_digest="abc"
        )


def test_a_feasible_trial_without_an_objective_is_refused():
    damaged = trial(1, 0.7, 0.2).model_copy(update={"objectives": {SKILL: 0.7}})
    with pytest.raises(StudyError, match=f"trial 1: .* got none for '{HARM}'"):
        front_trials(SPEC, [damaged])


def test_hypervolume_never_falls_and_failed_trials_leave_it_as_it_was():
    trials = [
        trial(0, 0.5, 0.5),
        synthetic.make_trial(1, None, state="FAIL", reason="crashed"),
        trial(2, 0.9, 0.1, refusal=0.9),
        trial(3, 0.7, 0.2),
    ]
    steps = hypervolume_steps(SPEC, trials)
    assert [step.value for step in steps] == pytest.approx([0.25, 0.25, 0.25, 0.56])
    assert [step.finished for step in steps] == [1, 2, 3, 4]


def test_one_comparison_has_one_p_value_whichever_table_it_stands_in(published_folder):
    run = load_run(published_folder)
    (metric,) = [item for item in safety_metrics(run.spec) if item.name == synthetic.HARM]
    parents = [point for point in run.references if is_parent(run, point)]
    table = compare_all_with_references(run, run.points, metrics=[metric], references=parents)
    family = family_of(run)
    size = sum(item["p_adjusted"] is not None for item in family.document())
    assert len(run.points) * len(parents) < size
    for point in run.points:
        alone = compare_with_references(run, point, metrics=[metric])
        by_label = {item.reference.label: item.differences[0] for item in alone}
        for item in table[point.number]:
            assert item.differences[0] == by_label[item.reference.label]
            assert item.differences[0].num_comparisons == size
    raw = [
        paired_difference(
            left.report, right.report, metric=judged.name, mean_of=judged.mean_of,
            direction=judged.direction,
        ).p_value
        for left, right, judged in family.pairs
    ]  # fmt: skip
    told = [item["p_adjusted"] for item in family.document()]
    assert told == pytest.approx(holm_adjusted(raw))


def test_the_search_and_the_report_agree_on_the_front_and_its_volume():
    trials = [
        trial(0, 0.5, 0.5, role="reference", label="smol"),
        trial(1, 0.6, 0.4),
        trial(2, 0.9, 0.1, refusal=0.9),
    ]
    members = front_trials(SPEC, trials)
    assert non_dominated(SPEC, [*trials[:2], trials[1]]) == members
    assert front_hypervolume(SPEC, trials) == pytest.approx(0.6 * 0.6)
    assert front_hypervolume(SPEC, []) == 0.0


def test_the_page_is_told_which_points_keep_their_limits_on_which_split(published_folder):
    run = load_run(published_folder)
    found = payload(run)
    by_number = {point.number: point for point in run.points}
    for item in found["trials"]:
        if item["number"] in by_number:
            report = by_number[item["number"]].report
            assert "search" in item["sound"]
            assert ("report" in item["sound"]) == (not broken_constraints(run.spec, report))


@pytest.mark.parametrize(("direction", "expected"), [("minimize", 0.2), ("maximize", -0.2)])
def test_a_violation_is_above_0_where_a_limit_is_broken(direction, expected):
    limit = Constraint(metric=LIMIT, budget=0.3, direction=direction)
    found = result(1, "report", 0.7, 0.2, refusal=0.5)
    assert violation(limit, found) == pytest.approx(expected)
    assert math.isnan(violation(limit.model_copy(update={"metric": "none"}), found))


def believed(skill, harm, chance):
    values = {
        name: Believed(mean=mean, low=mean - 0.1, high=mean + 0.1)
        for name, mean in ((SKILL, skill), (HARM, harm))
    }
    return PointBelief(values=values, chance=chance)


def test_a_belief_chooses_points_knee_and_what_the_report_hypervolume_counts():
    """Trial 3 was dominated as measured; trial 2 was lucky, so that it is no member."""
    trials = [trial(1, 0.9, 0.9), trial(2, 0.8, 0.2), trial(3, 0.7, 0.3), trial(4, 0.3, 0.1)]
    report = {
        item.candidate: result(item.number, "report", 0.5, 0.1 * item.number) for item in trials
    }
    belief = BelievedFront(
        FrontBelief(
            evaluations=14,
            members=[1, 3, 4],
            chance=0.05,
            hypervolume=Believed(mean=0.5, low=0.4, high=0.6),
        ),
        {
            1: believed(0.8, 0.8, 0.9),
            2: believed(0.6, 0.4, 0.1),
            3: believed(0.7, 0.3, 0.6),
            4: believed(0.2, 0.1, 0.5),
        },
    )
    assert [item.number for item in front_trials(SPEC, trials)] == [1, 2, 4]

    front = assemble_front(SPEC, trials, report, study_digest="abc", belief=belief)

    assert [point.number for point in front.points] == [1, 2, 3, 4]
    assert front.knee == 3  # by the report split it would be trial 1
    assert assemble_front(SPEC, trials, report, study_digest="abc").knee == 1
    assert front.hypervolume_report == pytest.approx(0.5 * 0.9)
    assert front.hypervolume_search == pytest.approx(0.1 * 0.1 + 0.5 * 0.8 + 0.3 * 0.9)
    assert Front.model_validate_json(front.model_dump_json()) == front

    drawn = payload(synthetic.make_run(trials, front=front))
    assert drawn["belief"]["hypervolume"] == {"mean": 0.5, "low": 0.4, "high": 0.6}
    by_number = {item["number"]: item.get("belief") for item in drawn["trials"]}
    assert by_number[3] == front.points[2].belief.resolved()
    page = render_html(synthetic.make_run(trials, front=front))
    assert "hypervolume is believed to be 0.500 [0.400, 0.600]" in page
    assert "chance of at least 5\u00a0% are published" in page
    assert "by posterior means, not by these figures" in page


def test_a_front_as_observed_says_nothing_of_beliefs():
    trials = [trial(1, 0.7, 0.2)]
    report = {trials[0].candidate: result(1, "report", 0.7, 0.2)}
    front = assemble_front(SPEC, trials, report, study_digest="abc")
    assert "belief" not in front.model_dump_json()
    assert "believed" not in render_html(synthetic.make_run(trials, front=front))
