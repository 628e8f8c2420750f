import pytest

from safemerge.config.alignment import BoosterSpec
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
