import numpy as np
import pytest

from safemerge.errors import StudyError
from safemerge.pareto import dominates, hypervolume, knee_index, non_dominated_mask

UP_DOWN = ["maximize", "minimize"]
DOWN = ["minimize", "minimize"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.9, 0.1), (0.8, 0.2), True),
        ((0.9, 0.1), (0.9, 0.2), True),
        ((0.9, 0.1), (0.8, 0.1), True),
        ((0.9, 0.1), (0.9, 0.1), False),
        ((0.9, 0.3), (0.8, 0.2), False),
        ((0.8, 0.2), (0.9, 0.1), False),
    ],
)
def test_dominance_needs_nowhere_worse_and_somewhere_better(first, second, expected):
    assert dominates(first, second, UP_DOWN) is expected


def test_an_infinite_value_is_compared_as_a_number():
    assert dominates((np.inf, 0.0), (1.0, 0.0), UP_DOWN)


def test_points_of_different_length_are_refused():
    with pytest.raises(StudyError, match=r"shape must be \(points, 2\); got \(1, 3\)"):
        dominates((1, 2), (1, 2, 3), UP_DOWN)


def test_the_front_keeps_duplicates_and_drops_the_dominated():
    values = [(0.9, 0.3), (0.5, 0.1), (0.9, 0.3), (0.4, 0.2), (0.9, 0.4)]
    assert non_dominated_mask(values, UP_DOWN).tolist() == [True, True, True, False, False]


def test_no_points_have_an_empty_front_and_no_volume():
    assert non_dominated_mask([], UP_DOWN).tolist() == []
    assert hypervolume([], (0, 1), UP_DOWN) == 0.0


def test_a_nan_is_refused_with_its_place():
    values = [(0.1, 0.2), (0.3, float("nan"))]
    for function in (non_dominated_mask, knee_index):
        with pytest.raises(StudyError, match=r"must not be NaN; got nan at point 1, objective 1"):
            function(values, UP_DOWN)
    with pytest.raises(StudyError, match="must not be NaN"):
        hypervolume(values, (0, 1), UP_DOWN)
    with pytest.raises(StudyError, match="must not be NaN"):
        dominates(values[1], values[0], UP_DOWN)


def test_an_infinite_point_has_no_hypervolume():
    with pytest.raises(StudyError, match="points must be finite; got inf at point 0, objective 0"):
        hypervolume([(float("inf"), 0.0)], (0, 1), UP_DOWN)
    with pytest.raises(StudyError, match="reference must be finite"):
        hypervolume([(1.0, 0.0)], (0, float("inf")), UP_DOWN)


@pytest.mark.parametrize("directions", [["up", "minimize"], []])
def test_an_unknown_direction_is_refused(directions):
    with pytest.raises(StudyError, match="must be 'maximize' or 'minimize'; got"):
        non_dominated_mask([(1, 2)], directions)


def test_values_of_the_wrong_shape_are_refused():
    with pytest.raises(StudyError, match=r"shape must be \(points, 2\); got \(2,\)"):
        non_dominated_mask(np.array([1, 2]), UP_DOWN)


@pytest.mark.parametrize(
    ("points", "reference", "directions", "expected"),
    [
        ([(1.0,)], (3.0,), ["minimize"], 2.0),
        ([(1, 1)], (2, 3), DOWN, 2.0),
        ([(1, 2), (2, 1)], (3, 3), DOWN, 3.0),
        ([(1, 2), (2, 1), (2, 2), (1, 2)], (3, 3), DOWN, 3.0),
        ([(0.5, 0.25)], (0, 1), UP_DOWN, 0.375),
        # Touching or beyond the reference in any objective adds nothing.
        ([(3, 1), (1, 3), (4, 0)], (3, 3), DOWN, 0.0),
        # The three-objective example: a unit cube and two slabs that overlap it.
        ([(0, 1, 1), (1, 0, 1), (1, 1, 0)], (2, 2, 2), ["minimize"] * 3, 4.0),
        ([(1, 1, 1)], (0, 0, 0), ["maximize"] * 3, 1.0),
        ([(0, 0, 0, 0)], (2, 1, 1, 3), ["minimize"] * 4, 6.0),
        ([(0, 1, 0, 0), (1, 0, 0, 0)], (2, 2, 1, 1), ["minimize"] * 4, 3.0),
    ],
)
def test_hypervolume_has_the_volume_worked_out_by_hand(points, reference, directions, expected):
    assert hypervolume(points, reference, directions) == pytest.approx(expected, rel=1e-12)


def test_the_knee_is_the_point_that_bulges_most():
    values = [(0.0, 1.0), (0.2, 0.3), (0.5, 0.2), (1.0, 0.0)]
    assert knee_index(values, DOWN) == 1


def test_the_knee_does_not_depend_on_units_or_directions():
    values = np.array([(0.0, 1.0), (0.2, 0.3), (0.5, 0.2), (1.0, 0.0)])
    assert knee_index(values * (1000, 0.001) + 5, DOWN) == 1
    assert knee_index(values * (-1, 1), UP_DOWN) == 1


def test_one_point_is_the_knee_and_of_two_extremes_the_first():
    assert knee_index([(0.3, 0.4)], DOWN) == 0
    assert knee_index([(1.0, 0.0), (0.0, 1.0)], DOWN) == 0


def test_a_dominated_point_is_never_the_knee():
    assert knee_index([(5.0, 5.0), (0.0, 1.0), (1.0, 0.0)], DOWN) == 1


def test_equal_bulges_go_to_the_lower_index():
    values = [(0.0, 1.0), (0.2, 0.4), (0.4, 0.2), (1.0, 0.0)]
    assert knee_index(values, DOWN) == 1
    assert knee_index(values[::-1], DOWN) == 1


def test_the_knee_in_three_objectives_is_nearest_the_ideal_corner():
    values = [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0.3, 0.3, 0.3), (0.2, 0.9, 0.9)]
    assert knee_index(values, ["minimize"] * 3) == 3


def test_a_front_that_is_flat_in_one_objective_still_has_a_knee():
    values = [(0.0, 1.0, 7.0), (0.2, 0.2, 7.0), (1.0, 0.0, 7.0)]
    assert knee_index(values, ["minimize"] * 3) == 1


def test_extremes_that_span_a_tilted_plane_give_way_to_equal_loss_sums():
    # Scaled, the plane through the best points has a negative normal entry; by loss sums the
    # points are 2, 1.1, 1 and 0.8 away from the ideal.
    values = [(0.6, 0.0, 0.6), (0.3, 0.3, 0.1), (0.0, 0.5, 0.1), (0.0, 0.3, 0.2)]
    assert knee_index(values, ["minimize"] * 3) == 3


def test_no_points_have_no_knee():
    with pytest.raises(StudyError, match="needs at least one point; got none"):
        knee_index([], DOWN)


def test_an_infinite_value_has_no_knee():
    with pytest.raises(StudyError, match="must be finite; got inf at point 1"):
        knee_index([(0.0, 1.0), (float("-inf"), 2.0)], DOWN)
