import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.mask import (
    keep_bits,
    keep_bits_within,
    keep_limits,
    prune_rows_,
    rank_probabilities,
)

KEY = {"seed": 3, "tensor": "t", "expert": "e"}


def pruned(rows, **options):
    rows = rows.clone()
    prune_rows_(rows, **{"density": 0.5, "epsilon": 0.3, "rescale": True, **KEY, **options})
    return rows


def test_probabilities_fall_in_equal_steps_around_density():
    found = rank_probabilities(5, density=0.5, epsilon=0.2)
    expected = torch.tensor([0.7, 0.6, 0.5, 0.4, 0.3], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert rank_probabilities(1, density=0.4, epsilon=0.1).tolist() == [0.4]
    assert rank_probabilities(0, density=0.4, epsilon=0.1).numel() == 0


@pytest.mark.parametrize(("density", "epsilon"), [(0.2, 0.2), (0.9, 0.2), (0.5, -0.1)])
def test_probabilities_outside_the_range_are_refused(density, epsilon):
    with pytest.raises(MergeError, match=rf"epsilon: .* got density {density}, epsilon {epsilon}"):
        rank_probabilities(4, density=density, epsilon=epsilon)


def test_large_entries_are_kept_more_often_and_the_mean_stays():
    # NOTE: 20 000 draws; the bounds are five standard errors of a share, 0.5 / sqrt(20 000).
    rows = torch.tensor([[8.0, -4.0, 2.0, -1.0]]).expand(20_000, 4).contiguous()
    found = pruned(rows)
    shares = (found != 0).double().mean(0)
    for share, probability in zip(shares.tolist(), (0.8, 0.6, 0.4, 0.2), strict=True):
        assert abs(share - probability) < 5 * 0.5 / 20_000**0.5
    torch.testing.assert_close(found.mean(0), rows[0], rtol=0.08, atol=0.0)


def test_kept_entries_are_divided_by_their_own_probability():
    rows = torch.tensor([[8.0, -4.0, 2.0, -1.0]]).expand(50, 4).contiguous()
    for column, probability in enumerate((0.8, 0.6, 0.4, 0.2)):
        kept = pruned(rows)[:, column]
        kept = kept[kept != 0]
        torch.testing.assert_close(kept, rows[: len(kept), column] / probability)
    plain = pruned(rows, rescale=False)
    assert torch.equal(plain[plain != 0], rows[plain != 0])


def test_parts_of_whole_rows_join_up():
    rows = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    whole = pruned(rows)
    parts = [pruned(rows[at : at + 4], start=7 * at) for at in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_ties_in_magnitude_count_the_lower_index_as_larger():
    rows = torch.ones(20_000, 2)
    kept = (pruned(rows) != 0).double().mean(0)
    assert kept[0] > 0.75
    assert kept[1] < 0.25


def test_density_one_keeps_everything_whatever_epsilon():
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pruned(rows, density=1.0), rows)


def test_an_entry_that_is_not_finite_is_refused_though_it_may_be_dropped():
    rows = torch.ones(2, 2)
    rows[1, 1] = float("nan")
    with pytest.raises(MergeError, match="tensor 't', expert 'e': entries must be finite"):
        pruned(rows)


def test_limits_by_entry_draw_the_same_random_numbers_as_one_density():
    for density in (0.1, 0.5, 1.0):
        limits = keep_limits(torch.full((64,), density, dtype=torch.float64))
        by_entry = keep_bits_within(3, "t", "e", 5, limits)
        assert torch.equal(by_entry, keep_bits(3, "t", "e", 5, 69, density))


@pytest.mark.parametrize("value", [0.0, 1.01, float("nan")])
def test_limits_outside_the_range_are_refused(value):
    with pytest.raises(MergeError, match="keep probabilities must be in"):
        keep_limits(torch.tensor([0.5, value], dtype=torch.float64))
