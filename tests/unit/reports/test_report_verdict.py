"""The first sentence, the wall-clock time and the correlations say what the numbers bear out."""

import math

import pytest
import synthetic_run as synthetic

from safemerge.config.metric import metrics_of
from safemerge.provenance import current_provenance
from safemerge.records import Timings
from safemerge.reports.family import family_of
from safemerge.reports.section_importance import importance_table, spearman
from safemerge.reports.section_trials import counts_text
from safemerge.reports.timing import wall_time
from safemerge.reports.verdict import fraction, judged_by, tied_points, verdict

MEAN = {"skill": 0.60, "harm": 0.60, "refusal": 0.05}


def published(*rates, size=200):
    """A run of the plain mean and these trials, each (skill, harm), all on the front."""
    small = synthetic.Synthetic(counts={"search": size, "report": size}, unscored=0)
    trials, reports = [], {}
    for number, found in enumerate([MEAN, *({**MEAN, **item} for item in rates)]):
        kind = {"role": "reference", "label": "mean"} if number == 0 else {}
        result = small.result(number, "search", **found)
        trials.append(synthetic.make_trial(number, result, **kind))
        reports[result.candidate] = small.result(number, "report", **found)
    spec = synthetic.make_spec()
    front = synthetic.assemble_front(spec, trials, reports, study_digest="d")
    return synthetic.make_run(trials, front=front)


def test_a_clear_winner_is_told_by_ratios_and_its_rivals_by_name():
    run = published({"skill": 0.72, "harm": 0.20}, {"skill": 0.60, "harm": 0.05})
    point = run.point(1)
    told = verdict(run, point)
    ratio = point.shown.value(synthetic.HARM) / run.point(0).shown.value(synthetic.HARM)
    assert told.startswith("Trial 1 has the best skill (71.5\u00a0%)")
    assert f" at {100 * ratio:.0f}\u00a0% of the plain mean\u2019s harm; " in told
    assert tied_points(run, point) == []
    assert "every other front point differs from it significantly on some objective." in told
    other = run.point(2)
    assert verdict(run, other).startswith("Trial 2 keeps ")
    assert "(trial 1\u2019s; significantly worse)" in verdict(run, other)


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (0.32, "a third of"),
        (0.31, "31\u00a0% of"),
        (0.5, "half"),
        (0.98, "98\u00a0% of"),
    ],
)
def test_ratios_are_told_as_fractions_where_they_are_near_one(ratio, told):
    assert fraction(ratio) == told


def test_what_is_not_significant_is_not_told_as_a_difference():
    run = published({"skill": 0.63, "harm": 0.57}, {"skill": 0.61, "harm": 0.54}, size=40)
    point = run.points[0]
    assert point.trial.role == "sampled"
    told = verdict(run, point)
    harm = metrics_of(run.spec)[synthetic.HARM]
    assert not family_of(run).difference(point, run.point(0), harm).is_distinguishable
    assert "its harm does not differ significantly from the plain mean\u2019s" in told
    assert "% of the plain mean" not in told
    if len(run.points) > 1:
        assert "statistically tied with it." in told


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (0.0, " at significantly lower harm than the plain mean\u2019s (0.0\u00a0% against "),
        (0.9, " at significantly higher harm than the plain mean\u2019s (88.5\u00a0% against "),
    ],
)
def test_harm_without_a_fraction_is_lower_or_higher(harm, told):
    run = published({"skill": 0.75, "harm": harm})
    assert told in verdict(run, run.point(1))


def test_a_point_below_the_best_never_keeps_all_of_it():
    run = published({"skill": 0.8, "harm": 0.3}, {"skill": 0.7, "harm": 0.1})
    best, other = run.point(1), run.point(2)
    metrics = other.shown.metrics
    top = best.shown.value(synthetic.SKILL)
    metrics[synthetic.SKILL] = metrics[synthetic.SKILL].model_copy(update={"value": 0.997 * top})
    assert verdict(run, other).startswith("Trial 2 keeps over 99\u00a0% of the best skill (")


def test_the_plain_mean_is_named_in_words():
    run = published({"skill": 0.601, "harm": 0.595}, size=40)
    assert "the plain mean is statistically tied with it." in verdict(run, run.point(1))


def test_a_proxy_is_named_as_one():
    assert "a proxy" in judged_by(published({"skill": 0.7, "harm": 0.2}, size=20))


def test_wall_time_adds_up_to_the_whole():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    clock = Timings(swap_s=1.0, generate_s=6.0, score_s=2.0, total_s=10.0)
    trials = [
        synthetic.make_trial(
            number,
            small.result(number, "search", **MEAN).model_copy(update={"timings": clock}),
            minute=minute,
        )
        for number, minute in enumerate((5, 5, 20))
    ]
    begun = current_provenance().model_copy(update={"created_at": "2026-11-21T04:00:00+00:00"})
    run = synthetic.make_run(trials)
    object.__setattr__(run, "provenance", begun)
    wall = wall_time(run)
    assert wall.start_s == 300.0
    # Two spans of 41.5 s, with two replicas that worked for 30 s between them.
    assert wall.working_s == 15.0
    assert wall.waiting_s == pytest.approx(2 * 41.5 - 15)
    assert wall.paused_s == pytest.approx(15 * 60 - 41.5)
    parts = wall.start_s + wall.working_s + wall.waiting_s + wall.paused_s
    assert parts == pytest.approx(wall.total_s) == pytest.approx(20 * 60 + 41.5)


def test_trials_that_were_tried_again_count_once():
    failed = synthetic.make_trial(0, None, state="FAIL", reason="replica died")
    stopped = synthetic.make_trial(
        1, None, state="FAIL", reason="interrupted: the driver stopped before the result came back"
    )
    last = synthetic.make_trial(2, None, state="FAIL", reason="replica died")
    run = synthetic.make_run([failed.model_copy(update={"retried": True}), stopped, last])
    assert run.num_sampled == 1
    told = counts_text(run)
    assert told.startswith("1 of 40 sampled trials finished; ")
    assert told.endswith("1 failed and 2 tried again.")


@pytest.mark.parametrize(
    ("left", "right", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
        ([1, 2, 3, 4, 5], [20, 10, 40, 30, 50], 0.8),
        # Ties: ranks 1.5 1.5 3 4 and 1 2 3 4, so 4.5 / sqrt(4.5 * 5).
        ([1, 1, 3, 4], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_rank_correlation_by_hand(left, right, rho):
    assert spearman(left, right) == pytest.approx(rho)


def test_a_constant_has_no_rank_correlation():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_the_strongest_parameter_comes_first_with_its_sign():
    small = synthetic.Synthetic(counts={"search": 60, "report": 20})
    trials = [
        synthetic.make_trial(
            number,
            small.result(number, "search", skill=0.5 + number / 40, harm=0.3, refusal=0.1),
            params={"method.t": number / 10, "method.density": number % 3 / 3, "method.on": True},
        )
        for number in range(12)
    ]
    text = importance_table(synthetic.make_run(trials))
    assert text.index(">t<") < text.index(">density<")
    assert "+1.00 [" in text or "+0.9" in text
    assert "n = 12" in text
    assert ">on<" not in text
    assert importance_table(synthetic.make_run(trials[:5])) == ""
