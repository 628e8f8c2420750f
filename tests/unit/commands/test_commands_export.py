import pytest

from safemerge.api.pick import pick_point
from safemerge.cli import main
from safemerge.config.metric import Direction
from safemerge.config.study import Constraint
from safemerge.errors import UserError
from safemerge.records import CandidateResult, Front, FrontPoint, MetricEstimate
from safemerge.testing.landscapes import landscape_study

SKILL, HARM = "skill", "harm.harmful_score"
DIRECTIONS: dict[str, Direction] = {SKILL: "maximize", HARM: "minimize", "edgy": "minimize"}
DIRECTIONS["harm.refusal_rate"] = "maximize"


def result(split, values):
    return CandidateResult(
        candidate="c",
        split=split,
        metrics={
            name: MetricEstimate(
                metric=name, value=value, low=value, high=value, n=9, direction=DIRECTIONS[name]
            )
            for name, value in values.items()
        },
    )


def point(number, skill, harm, *, role="sampled", **more):
    # NOTE: the search split says the opposite, so that a pick by it would be seen.
    return FrontPoint(
        number=number,
        label=f"trial {number}",
        candidate="c",
        role=role,
        search=result("search", {SKILL: 1 - (skill or 0), HARM: 1 - harm}),
        report=result("report", {SKILL: skill, HARM: harm, **more}),
        recipe={},
    )


def front(*points, knee=5, objectives=(SKILL, HARM), references=()):
    return Front(
        study="s",
        study_digest="d",
        objectives=[{"metric": name, "direction": DIRECTIONS[name]} for name in objectives],
        points=list(points),
        references=list(references),
        knee=knee,
    )


def chosen(front, choice, *limits):
    spec = landscape_study("s").model_copy(update={"constraints": list(limits)})
    return pick_point(front, choice, spec=spec, where="run")


FRONT = front(
    point(3, 0.5, 0.1),
    point(5, 0.7, 0.3),
    point(12, 0.9, 0.8),
    references=[point(0, 0.4, 0.9, role="reference")],
)


@pytest.mark.parametrize(
    ("choice", "number"),
    [
        ("knee", 5),
        ("safest", 3),
        (f"best:{HARM}", 3),
        (f"best:{SKILL}", 12),
        ("12", 12),
        ("0", 0),
    ],
)
def test_a_choice_names_a_point_judged_on_the_report_split(choice, number):
    assert chosen(FRONT, choice).number == number


def goals(*metrics, **changes):
    objectives = [
        {"metric": name, "direction": way, "reference": float(way == "minimize")}
        for name, way in metrics
    ]
    return landscape_study("s", objectives=objectives, **changes)


def test_the_safest_needs_an_objective_about_harm():
    words = (
        r"run: pick safest: the study must have an objective about harm; got task\.accuracy "
        r"\(skill\)\. Use best:METRIC; an aggregate"
    )
    with pytest.raises(UserError, match=words):
        pick_point(FRONT, "safest", spec=goals(("task.accuracy", "maximize")), where="run")


def test_what_is_about_harm_is_not_told_by_its_name():
    points = front(point(1, 0.5, 0.4, edgy=0.1), point(2, 0.6, 0.2, edgy=0.3))
    aggregates = {"edgy": {"mean_of": [HARM, "harm.complied_rate"]}}
    spec = goals(("edgy", "minimize"), (HARM, "minimize"), aggregates=aggregates)
    assert pick_point(points, "safest", spec=spec, where="run").number == 1
    mixed = {"edgy": {"mean_of": [HARM, "harm.other_rate"]}}
    spec = goals(("edgy", "minimize"), (HARM, "minimize"), aggregates=mixed)
    assert pick_point(points, "safest", spec=spec, where="run").number == 2
    with pytest.raises(UserError, match=r"got edgy \(several roles\)"):
        pick_point(
            points, "safest", spec=goals(("edgy", "minimize"), aggregates=mixed), where="run"
        )
    named = {"edgy": mixed["edgy"] | {"role": "harm"}}
    spec = goals(("edgy", "minimize"), (HARM, "minimize"), aggregates=named)
    assert pick_point(points, "safest", spec=spec, where="run").number == 1


def test_the_safest_is_the_one_that_refuses_most_where_that_is_the_objective():
    name = "harm.refusal_rate"
    points = front(
        *(
            point(number, 0.5, 0.5).model_copy(update={"report": result("report", {name: value})})
            for number, value in ((1, 0.2), (2, 0.9))
        )
    )
    spec = goals((name, "maximize"))
    assert pick_point(points, "safest", spec=spec, where="run").number == 2


@pytest.mark.parametrize("choice", ["knees", "best:harm", "best:", ""])
def test_a_choice_that_names_nothing_lists_the_metrics(choice):
    words = rf"run: pick must be knee, safest, .*; got '{choice}'\. Metrics: harm\.harm\S+, skill"
    with pytest.raises(UserError, match=words):
        chosen(FRONT, choice)


def test_a_trial_that_is_not_on_the_front_lists_those_that_are():
    words = r"run: pick: trial 4 is not on the front\. On it: 3, 5, 12\."
    with pytest.raises(UserError, match=words):
        chosen(FRONT, "4")


@pytest.mark.parametrize("choice", ["knee", "safest", "3"])
def test_an_empty_front_has_nothing_to_pick(choice):
    with pytest.raises(UserError, match="run: the front is empty; no feasible candidate"):
        chosen(front(knee=None), choice)


def test_a_point_that_was_not_measured_is_not_the_best():
    unmeasured = point(1, None, 0.2)
    found = chosen(front(unmeasured, point(2, 0.6, 0.1)), f"best:{SKILL}")
    assert found.number == 2


def test_a_metric_that_the_first_point_lacks_can_be_picked():
    points = point(1, 0.5, 0.1), point(2, 0.6, 0.1, edgy=0.2)
    assert chosen(front(*points), "best:edgy").number == 2


def test_a_front_without_a_knee_has_none_to_pick():
    with pytest.raises(UserError, match="knee"):
        chosen(front(point(3, 0.5, 0.1), point(12, 0.9, 0.8), knee=None), "knee")


@pytest.mark.parametrize(
    ("choice", "limit", "number"),
    [
        ("safest", Constraint(metric=SKILL, budget=0.6, direction="maximize"), 5),
        (f"best:{SKILL}", Constraint(metric=HARM, budget=0.3), 5),
        (f"best:{SKILL}", Constraint(metric=HARM, budget=0.8), 12),
        ("12", Constraint(metric=HARM, budget=0.3), 12),
    ],
)
def test_only_a_number_picks_a_point_that_breaks_a_limit_on_the_report_split(
    choice, limit, number
):
    assert chosen(FRONT, choice, limit).number == number


@pytest.mark.parametrize("choice", ["safest", f"best:{SKILL}"])
@pytest.mark.parametrize(
    ("metric", "got"), [(HARM, r"harm\.harmful_score is 0\.100"), ("edgy", "edgy has no value")]
)
def test_if_every_point_breaks_a_limit_none_is_picked_and_one_is_named(choice, metric, got):
    words = (
        rf"run: pick {choice}: no point of the front keeps every limit on the report split; "
        rf"trial 3: {got}, limit at most 0\.05\. Pick a trial number"
    )
    with pytest.raises(UserError, match=words):
        chosen(FRONT, choice, Constraint(metric=metric, budget=0.05))


def test_a_broken_candidate_is_not_the_best():
    best = point(12, 0.9, 0.1)
    broken = best.model_copy(
        update={"report": best.report.model_copy(update={"broken": "degenerate text"})}
    )
    assert chosen(front(point(3, 0.5, 0.2), broken), "safest").number == 3
    words = r"trial 12: the candidate is broken: degenerate text\. Pick a trial number"
    with pytest.raises(UserError, match=words):
        chosen(front(broken), "safest")


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    arguments = ["export", str(tmp_path / "absent"), "--pick", "knee", str(tmp_path / "out")]
    assert main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path / "absent") in err
    assert not (tmp_path / "out").exists()
