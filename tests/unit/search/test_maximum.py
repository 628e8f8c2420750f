import math

import pytest

from safemerge.search.maximum import BoundedMaximum, Branch, Span

SPANS = {"rate": Span(1e-5, 1e-2, log=True), "steps": Span(10, 400, log=True)}
BRANCH = ("mode", Branch(("fresh", "full"), {"fresh": {"rank": Span(4, 64, log=True)}}))


def search(seed=3, startup=8, spans=SPANS):
    return BoundedMaximum(spans, BRANCH, seed=seed, startup=startup)


def value(point):
    """Largest at a rate of 1e-3, in full."""
    return 1.0 - abs(math.log10(point["rate"]) + 3.0) - 0.5 * (point["mode"] == "fresh")


def told(found, count):
    points = []
    for _ in range(count):
        number, point = found.ask()
        found.tell(number, value(point))
        points.append(point)
    return points


def test_points_lie_in_their_spans_and_whole_numbers_are_whole():
    for point in told(search(), 20):
        assert 1e-5 <= point["rate"] <= 1e-2
        assert float(f"{point['rate']:.3g}") == point["rate"]
        assert 10 <= point["steps"] <= 400
        assert isinstance(point["steps"], int)
        assert ("rank" in point) == (point["mode"] == "fresh")


def test_rounding_keeps_a_point_in_its_span():
    low, high = 1.2346e-3, 1.2349e-3  # to three digits both are 1.23e-3, below the span
    points = told(search(spans={**SPANS, "rate": Span(low, high)}), 5)
    assert all(low <= point["rate"] <= high for point in points)


def test_the_same_answers_give_the_same_points_and_another_seed_others():
    assert told(search(), 20) == told(search(), 20)
    assert told(search(), 4) != told(search(seed=4), 4)


def test_it_learns_where_the_value_is_large():
    points = told(search(startup=6), 30)
    late = [value(point) for point in points[20:]]
    assert sum(late) / 10 > sum(value(point) for point in points[:6]) / 6 + 0.3


def test_a_bound_keeps_the_search_out_of_the_region_that_breaks_it():
    def run(bounded):
        found, points = search(startup=6), []
        for _ in range(40):
            number, point = found.ask()
            # Best beyond the bound: rates above 1e-4 break it.
            found.tell(
                number, value(point), beyond=math.log10(point["rate"]) + 4.0 if bounded else 0
            )
            points.append(point)
        return sum(point["rate"] > 1e-4 for point in points[20:])

    assert run(bounded=True) <= 8
    assert run(bounded=False) >= 14


@pytest.mark.parametrize("failed", [None, math.nan])
def test_a_point_that_failed_is_told_as_failed(failed):
    found = search()
    number, _ = found.ask()
    found.tell(number, failed)
    told(found, 10)


def test_equal_ends_fix_a_number():
    fixed = search(spans={**SPANS, "p": Span(1.0, 1.0)})
    assert {fixed.ask()[1]["p"] for _ in range(4)} == {1.0}
