import pytest

from safemerge.config.alignment import BoosterSpec
from safemerge.errors import TrainingError
from safemerge.training.adaptive import StrengthSchedule


def schedule(**fields):
    return StrengthSchedule(BoosterSpec.model_validate(fields))


def lambdas(schedule, ratios):
    found = []
    for step, ratio in enumerate(ratios):
        found.append(schedule.at(step).regularizer_strength)
        schedule.seen(step, ratio)
    return found


def test_without_phases_or_adaptation_the_settings_are_the_declared_ones():
    assert lambdas(schedule(), [0.5, 0.9, 0.1]) == [5.0] * 3
    assert schedule().at(1000) == (5.0, 0.1)


def test_phases_follow_each_other_and_fall_back_on_the_declared_settings():
    given = schedule(
        **{"lambda": 3.0, "alpha": 0.2},
        phases=[{"steps": 2, "lambda": 0.0}, {"steps": 1}, {"steps": 3, "alpha": 0.5}],
    )
    assert [given.at(step) for step in range(6)] == [
        (0.0, 0.2), (0.0, 0.2), (3.0, 0.2), (3.0, 0.5), (3.0, 0.5), (3.0, 0.5),
    ]  # fmt: skip


def test_lambda_keeps_the_regularisers_relative_push():
    # Average by hand: 0.4, then 0.4 + 0.5 (0.8 - 0.4) = 0.6, then 0.6 + 0.5 (0.2 - 0.6) = 0.4.
    found = lambdas(schedule(adaptive={"decay": 0.5}), [0.4, 0.8, 0.2, 1.0])
    assert found == pytest.approx([5.0, 5.0, 5 * 0.4 / 0.6, 5.0])


@pytest.mark.parametrize(
    ("adaptive", "third"),
    [
        ({"power": 0.0}, 5.0),
        ({"power": -1.0}, 5 * 2.0),
        ({"power": 2.0}, 5 / 4),
        ({"low": 3.0}, 3.0),
        ({"power": -1.0, "high": 6.0}, 6.0),
    ],
)
def test_the_power_directs_and_the_range_holds_lambda(adaptive, third):
    assert lambdas(schedule(adaptive={"decay": 0.0, **adaptive}), [0.4, 0.8, 0.1])[2] == (
        pytest.approx(third)
    )


def test_ratios_of_zero_say_nothing_and_lambda_zero_stays_zero():
    assert lambdas(schedule(adaptive={"decay": 0.0}), [0.0, 0.4, 0.0, 0.8]) == [5.0] * 4
    assert lambdas(schedule(**{"lambda": 0.0}, adaptive={"low": 1.0}), [0.4, 0.8, 0.8]) == [0] * 3


def test_a_phase_with_another_alpha_begins_a_new_average():
    given = schedule(adaptive={"decay": 0.0}, phases=[{"steps": 2}, {"steps": 3, "alpha": 0.5}])
    found = lambdas(given, [0.4, 0.8, 2.0, 4.0, 1.0])
    assert found == pytest.approx([5.0, 5.0, 5.0, 5.0, 2.5])


def test_the_state_goes_on_where_it_was():
    ratios = [0.4, 0.8, 0.2, 1.0, 0.3]
    whole, first, resumed = (schedule(adaptive={}) for _ in range(3))
    expected = lambdas(whole, ratios)
    lambdas(first, ratios[:3])
    resumed.load_state_dict(first.state_dict())
    assert resumed.at(3).regularizer_strength == expected[3]
    resumed.seen(3, ratios[3])
    assert resumed.at(4).regularizer_strength == expected[4]


def test_a_measured_lambda_makes_the_wanted_penalty_of_the_mean_fall():
    given = schedule(alpha=0.01, calibrate={"penalty_nats": 0.3, "plain_steps": 12})
    falls = [9.0, 9.0, *[0.02] * 5, *[0.06] * 5, 5.0]  # the first two are too early to count
    found = []
    for step, fall in enumerate(falls):
        found.append(given.at(step))
        given.seen(step, 0.5, fall=fall)
    assert found[:12] == [(0.0, 0.01)] * 12
    assert found[12] == pytest.approx((0.3 / 0.04, 0.01), rel=1e-14)
    assert given.at(1000) == found[12], "later steps are not measured"
    assert given.fall == pytest.approx(0.04, rel=1e-14)


def test_a_resumed_schedule_measures_on():
    given = schedule(calibrate={"penalty_nats": 0.5, "plain_steps": 3})
    given.seen(0, 0.5, fall=0.1)
    resumed = schedule(calibrate={"penalty_nats": 0.5, "plain_steps": 3})
    resumed.load_state_dict(given.state_dict())
    for step in (1, 2):
        resumed.seen(step, 0.5, fall=0.25)
    assert resumed.at(3).regularizer_strength == pytest.approx(0.5 / 0.2, rel=1e-14)
    old = {key: value for key, value in given.state_dict().items() if key != "falls"}
    resumed.load_state_dict(old)
    assert resumed.fall is None


@pytest.mark.parametrize("fall", [0.0, -0.1])
def test_a_harmful_loss_that_does_not_fall_measures_nothing(fall):
    given = schedule(calibrate={"penalty_nats": 0.5, "plain_steps": 1})
    given.seen(0, 0.0, fall=fall)
    with pytest.raises(
        TrainingError, match=r"must fall in the simulated step; got -?0(\.1)? nats"
    ):
        given.at(1)
