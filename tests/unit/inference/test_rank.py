from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.inference.rank import spearman

PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), st.floats(-1e3, 1e3)), min_size=3
)


def mean_ranks(values):
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


@given(PAIRS)
def test_it_is_the_correlation_of_mean_ranks(pairs):
    left, right = zip(*pairs, strict=True)
    made = spearman(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert made is None
    else:
        expected = correlation(mean_ranks(left), mean_ranks(right))
        assert made == pytest.approx(expected, abs=1e-9)


def test_it_has_a_sign_and_needs_three_things():
    assert spearman([1, 2, 3], [5, 6, 9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [9, 6, 5]) == pytest.approx(-1.0)
    assert spearman([1, 2], [5, 6]) is None
    assert spearman([1, 1, 1], [5, 6, 7]) is None
    with pytest.raises(ScoringError, match="as many values on both sides; got 1 and 2"):
        spearman([1.0], [1.0, 2.0])
