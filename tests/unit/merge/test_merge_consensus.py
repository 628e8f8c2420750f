import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.consensus import disjoint_mean, elect_sign, weighted_sum


def rows(*values):
    return [torch.tensor(row) for row in values]


def test_weighted_sum_is_the_sum():
    first, second = rows([1.0, 2.0], [10.0, -20.0])
    expected = torch.tensor([-4.5, 11.0])
    torch.testing.assert_close(weighted_sum([first, second], [0.5, -0.5]), expected)


def test_elected_sign_is_that_of_the_larger_total_magnitude():
    task_vectors = rows([3.0, -3.0, 1.0, -0.0], [-1.0, 1.0, -1.0, 0.0], [-1.0, 1.0, 0.0, -0.0])
    assert elect_sign(task_vectors).tolist() == [1.0, -1.0, 1.0, 1.0]


def test_negative_zeros_elect_plus():
    assert elect_sign(rows([-0.0], [-0.0])).tolist() == [1.0]


def test_mean_is_over_the_agreeing_only():
    """By hand. Entry 0: 3 against -1, -1: elected +, only 3. Entry 1: -4 and -2 agree: -3.
    Entry 2: one trimmed, one left. Entry 3: all trimmed. Entry 4: a tie elects +."""
    task_vectors = rows(
        [3.0, -4.0, 0.0, 0.0, 2.0], [-1.0, -2.0, 5.0, 0.0, -2.0], [-1.0, 1.0, 0.0, 0.0, 0.0]
    )
    expected = torch.tensor([3.0, -3.0, 5.0, 0.0, 2.0])
    assert torch.equal(disjoint_mean(task_vectors, [1.0, 1.0, 1.0]), expected)


def test_weights_enter_the_election_and_the_mean():
    """By hand: 0.25 * 3 < 1 * 1, so - is elected; then (2 * 0.25 + 6 * 0.75) / 1 = 5."""
    first, second = rows([3.0, 2.0], [-1.0, 6.0])
    assert disjoint_mean([first], [0.5]).tolist() == [3.0, 2.0]
    assert disjoint_mean([first, second], [0.25, 1.0])[0].item() == -1.0
    assert disjoint_mean([first, second], [0.25, 0.75])[1].item() == 5.0


def test_only_the_ratio_of_weights_counts():
    first, second = rows([3.0, 2.0, -4.0], [-1.0, 6.0, -8.0])
    small, large = (disjoint_mean([first, second], [w, 3 * w]) for w in (0.25, 2.0))
    assert torch.equal(small, large)


def test_a_negative_weight_negates_its_task_vector():
    first, second = rows([3.0, 2.0], [-1.0, 6.0])
    negated = disjoint_mean([first, -second], [0.5, 0.5])
    assert torch.equal(disjoint_mean([first, second], [0.5, -0.5]), negated)


def test_inputs_are_unchanged():
    first, second = rows([3.0, 2.0], [-1.0, 6.0])
    disjoint_mean([first, second], [1.0, 1.0])
    elect_sign([first, second])
    assert first.tolist() == [3.0, 2.0]
    assert second.tolist() == [-1.0, 6.0]


def test_tiny_weights_do_not_vanish():
    assert disjoint_mean(rows([3.0]), [1e-30]).item() == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("function", [weighted_sum, disjoint_mean])
@pytest.mark.parametrize("weights", [[], [1.0, 2.0]])
def test_counts_must_agree(function, weights):
    with pytest.raises(MergeError, match=f"got 1 task vectors, {len(weights)} weights"):
        function(rows([1.0]), weights)


def test_nothing_has_no_sign():
    with pytest.raises(MergeError, match="got 0 task vectors"):
        elect_sign([])
