import math

import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.interpolate import linear_shares, slerp, slerp_shares


def test_linear_shares_sum_to_one_if_asked():
    assert linear_shares({"a": 3.0, "b": 1.0}, normalize=True) == {"a": 0.75, "b": 0.25}
    assert linear_shares({"a": 3.0, "b": 1.0}, normalize=False) == {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": -1.0}, {"a": 1e-7}, {"a": 0.0}])
def test_weights_that_sum_to_zero_cannot_be_normalised(weights):
    with pytest.raises(MergeError, match="tensor 'x': weights must not sum to zero"):
        linear_shares(weights, normalize=True, where="tensor 'x'")
    assert linear_shares(weights, normalize=False) == weights


def test_slerp_turns_along_the_quarter_circle():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        angle = t * math.pi / 2
        expected = torch.tensor([math.cos(angle), math.sin(angle)])
        torch.testing.assert_close(slerp(first, second, t=t), expected, rtol=1e-6, atol=1e-7)


def test_slerp_of_unit_vectors_keeps_the_norm():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(50, generator=generator) for _ in range(2))
    middle = slerp(first / first.norm(), second / second.norm(), t=0.3)
    assert middle.norm().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 0.0], [1.0, 0.01]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
    ids=["parallel", "nearly parallel", "opposite", "zero", "both zero"],
)
def test_slerp_is_linear_where_there_is_no_arc(first, second, t):
    shares = slerp_shares(torch.tensor(first), torch.tensor(second), t=t)
    assert shares == (1.0 - t, t)


def test_slerp_is_not_linear_just_below_the_threshold():
    angle = math.acos(0.9994)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    assert slerp_shares(first, second, t=0.3) != (0.7, 0.3)


def test_slerp_adds_up_over_many_chunks():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(600_000, generator=generator) for _ in range(2))
    a, b = first.double(), second.double()
    theta = torch.acos(a @ b / a.norm() / b.norm()).item()
    shares = slerp_shares(first, second, t=0.2)
    expected = [math.sin(part * theta) / math.sin(theta) for part in (0.8, 0.2)]
    assert shares == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_slerp_does_not_extrapolate(t):
    with pytest.raises(MergeError, match=rf"t must be in \[0, 1\]; got {t}"):
        slerp(torch.ones(2), torch.ones(2), t=t)


def test_slerp_refuses_what_is_not_finite():
    with pytest.raises(MergeError, match="entries must be finite"):
        slerp(torch.tensor([1.0, float("nan")]), torch.ones(2), t=0.5)
