import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from safemerge.search.encoding import INACTIVE, Encoding

TIES = {
    "ties/weight": FloatDistribution(0.0, 2.0),
    "ties/density": FloatDistribution(0.1, 1.0, step=0.1),
    "ties/sign": CategoricalDistribution(["total", "frequency"]),
}
LINEAR = {"linear/weight": FloatDistribution(0.0, 1.0), "linear/rank": IntDistribution(1, 9)}
PATHS = {name: name.partition("/")[2] for name in (*TIES, *LINEAR)}


def two_spaces() -> Encoding:
    return Encoding({"ties": TIES, "linear": LINEAR}, chooser="space", paths=PATHS)


def test_spaces_share_the_column_of_a_path() -> None:
    encoding = two_spaces()
    ties = {"space": "ties", "ties/weight": 1.0, "ties/density": 0.5, "ties/sign": "total"}
    linear = {"space": "linear", "linear/weight": 1.0, "linear/rank": 5}

    first, second = encoding.point(ties), encoding.point(linear)

    assert first is not None
    assert second is not None
    # Two spaces, one weight, density, two signs, rank.
    assert encoding.width == 7
    weight = 2
    assert first[weight] == second[weight] == 0.5
    assert np.isclose(first, INACTIVE).sum() == 2  # the weight, and the rank that TIES lacks


def test_points_come_back_as_the_parameters_they_stand_for() -> None:
    encoding = two_spaces()
    given = {"space": "ties", "ties/weight": 0.4, "ties/density": 0.7, "ties/sign": "frequency"}
    point = encoding.point(given)
    assert point is not None

    (pattern,) = [
        item
        for item in encoding.patterns()
        if all(point[column] == value for column, value in item.fixed.items())
    ]

    assert encoding.params(pattern, point) == pytest.approx(given)
    assert np.array_equal(encoding.spread(pattern, point[list(pattern.free)][None])[0], point)


def test_values_stay_on_steps_and_integers_whole() -> None:
    encoding = two_spaces()
    by_space = {item.space: item for item in encoding.patterns()}
    ties, linear = by_space["ties"], by_space["linear"]

    stepped = encoding.params(ties, encoding.spread(ties, np.full((1, 2), 0.52))[0])
    whole = encoding.params(linear, encoding.spread(linear, np.full((1, 2), 0.52))[0])

    assert stepped["ties/density"] == pytest.approx(0.6)
    assert whole["linear/rank"] == 5
    assert isinstance(whole["linear/rank"], int)
    # The shared column spans both ranges; a value beyond linear's own is cut to it.
    assert whole["linear/weight"] == 1.0


def test_every_combination_of_choices_is_a_pattern() -> None:
    spaces = [item.space for item in two_spaces().patterns()]

    assert sorted(spaces) == ["linear", "ties", "ties"]


def test_a_logarithmic_range_is_even_in_logarithms() -> None:
    encoding = Encoding({"only": {"rate": FloatDistribution(1e-4, 1.0, log=True)}})
    (pattern,) = encoding.patterns()

    point = encoding.point({"rate": 1e-2})

    assert point == pytest.approx([0.5])
    assert encoding.params(pattern, np.array([0.25])) == {"rate": pytest.approx(1e-3)}


def test_parameters_of_no_space_have_no_point() -> None:
    encoding = two_spaces()

    assert encoding.point({"space": "slerp", "ties/weight": 0.4}) is None
    assert encoding.point({"space": "linear", "linear/weight": 0.4}) is None
