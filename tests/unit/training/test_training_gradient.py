import pytest
import torch

from safemerge.errors import DataError
from safemerge.training.batch import IGNORED, EncodedSample, collate
from safemerge.training.gradient import (
    Averaged,
    accumulate,
    average,
    global_norm,
    logical_batch,
    zero_gradients,
)
from safemerge.training.sft import target_loss


def gradients(model, batch, parts, sign=1.0):
    parameters = [p for p in model.parameters() if p.requires_grad]
    zeros = zero_gradients(parameters)
    split = logical_batch(batch, num_parts=parts, device="cpu")
    return accumulate(model, split, loss=target_loss, sign=sign), zeros


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_to_the_whole_batch(exact, adapted, rows, parts):
    model, batch = adapted(), rows(8, seed=1)
    loss, whole = gradients(model, batch, 1)
    split_loss, split = gradients(model, batch, parts)
    torch.testing.assert_close(split_loss, loss, rtol=0, atol=1e-12)
    for got, expected in zip(split, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert global_norm(whole) > 1e-3


def test_the_sign_subtracts_exactly_what_it_adds(adapted, rows):
    model, batch = adapted(torch.float32), rows(4, seed=1)
    plus, added = gradients(model, batch, 2)
    minus, subtracted = gradients(model, batch, 2, sign=-1.0)
    assert torch.equal(plus, minus)
    assert all(torch.equal(a, -b) for a, b in zip(added, subtracted, strict=True))


def test_parts_hold_every_row_once_and_are_padded_to_their_own_longest(rows):
    batch = rows(7, seed=3)
    split = logical_batch(batch, num_parts=3, device="cpu")
    lengths = sorted(n for part in split.parts for n in part.attention_mask.sum(1).tolist())
    assert lengths == sorted(batch.attention_mask.sum(1).tolist())
    assert [len(part.input_ids) for part in split.parts] == [3, 2, 2]
    for part in split.parts:
        assert part.attention_mask.sum(1).max() == part.input_ids.shape[1]
        assert part.num_shared == batch.num_shared
    assert sum(split.shares) == pytest.approx(1.0, abs=1e-15)
    assert split.num_targets == int((batch.labels[:, 1:] != IGNORED).sum())
    assert split.num_tokens == batch.num_tokens


def test_there_are_no_more_parts_than_rows(rows):
    assert len(logical_batch(rows(2, seed=3), num_parts=5, device="cpu").parts) == 2


def test_one_part_is_the_batch_itself(rows):
    batch = rows(4, seed=3)
    split = logical_batch(batch, num_parts=1, device="cpu")
    assert torch.equal(split.parts[0].input_ids, batch.input_ids)
    assert split.shares == (1.0,)


def test_groups_are_weighted_means_over_ranks_in_one_sum():
    here = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    other = [torch.tensor([5.0, 6.0]), torch.tensor([[7.0]])]
    calls = []

    def all_reduce(payload):
        # The other rank: 3 targets, loss 9; its payload as it would send it.
        calls.append(len(payload))
        sent = [*other, torch.tensor([9.0]), torch.tensor([1.0])]
        payload += torch.cat([item.reshape(-1) * 3 for item in sent])

    group = Averaged(here, [torch.tensor(1.0, dtype=torch.float64)], 1)
    ((loss,),) = average([group], all_reduce=all_reduce, where="toy")
    assert calls == [5]
    assert here[0].tolist() == [(1 + 15) / 4, (2 + 18) / 4]
    assert here[1].tolist() == [[(3 + 21) / 4]]
    assert float(loss) == (1 + 27) / 4


@pytest.mark.parametrize("all_reduce", [None, lambda payload: None])
def test_a_batch_of_masked_tokens_is_refused(all_reduce):
    group = Averaged([torch.zeros(2)], [torch.tensor(0.0)], 0)
    with pytest.raises(DataError, match=r"toy, step 3: some token .* got only masked tokens"):
        average([group], all_reduce=all_reduce, where="toy, step 3")


def test_a_batch_without_targets_has_no_weight():
    split = logical_batch(collate([EncodedSample((1, 2), 2)] * 2), num_parts=2, device="cpu")
    assert split.num_targets == 0


def test_the_norm_is_over_all_tensors_together():
    assert global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5.0
