import math

import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.mask import keep_bits, keep_mask, mask_key

NUM_ENTRIES = 200_000
Z_BOUND = 5.0
"""Standard deviations; one-sided odds of 3e-7 for a fair mask, and the seeds are fixed."""


def z_score(share, probability, count):
    return (share - probability) / math.sqrt(probability * (1 - probability) / count)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_share_of_kept_entries_is_the_density(density):
    mask = keep_mask(1, "model.layers.0.w", "math", 0, NUM_ENTRIES, density)
    assert abs(z_score(mask.float().mean().item(), density, NUM_ENTRIES)) < Z_BOUND


def test_density_one_keeps_everything():
    assert keep_mask(1, "t", "e", 0, NUM_ENTRIES, 1.0).all()


def test_a_higher_density_keeps_all_that_a_lower_one_does():
    low, high = (keep_mask(1, "t", "e", 0, 10_000, density) for density in (0.3, 0.6))
    assert (high | ~low).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (17, 40), (99_999, 100_000)])
def test_any_range_equals_the_same_part_of_the_whole(start, stop):
    whole = keep_mask(5, "t", "e", 0, 100_000, 0.4)
    assert torch.equal(keep_mask(5, "t", "e", start, stop, 0.4), whole[start:stop])


@pytest.mark.parametrize("first", [2**31, 2**32, 2**33])
def test_ranges_across_word_boundaries_join_up(first):
    whole = keep_mask(5, "t", "e", first - 50, first + 50, 0.5)
    parts = [keep_mask(5, "t", "e", at, at + 1, 0.5) for at in range(first - 50, first + 50)]
    assert torch.equal(whole, torch.cat(parts))


def test_blocks_of_2_to_the_32_differ():
    first, second = (keep_mask(5, "t", "e", start, start + 1000, 0.5) for start in (0, 2**32))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("other", [(2, "t", "e"), (1, "u", "e"), (1, "t", "f"), (1, "te", "")])
def test_masks_of_other_seeds_tensors_and_experts_are_unrelated(other):
    mask = keep_mask(1, "t", "e", 0, NUM_ENTRIES, 0.5)
    agreement = (mask == keep_mask(*other, 0, NUM_ENTRIES, 0.5)).float().mean().item()
    assert abs(z_score(agreement, 0.5, NUM_ENTRIES)) < Z_BOUND


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 576, 1024, 65_536])
def test_entries_at_a_distance_are_independent(lag):
    mask = keep_mask(1, "t", "e", 0, NUM_ENTRIES, 0.5)
    agreement = (mask[lag:] == mask[:-lag]).float().mean().item()
    assert abs(z_score(agreement, 0.5, NUM_ENTRIES - lag)) < Z_BOUND


@pytest.mark.parametrize("modulus", [2, 3, 64, 576])
def test_every_column_of_a_matrix_gets_its_share(modulus):
    mask = keep_mask(9, "t", "e", 0, modulus * 1000, 0.3).reshape(1000, modulus)
    scores = [z_score(share, 0.3, 1000) for share in mask.float().mean(dim=0).tolist()]
    assert max(map(abs, scores)) < Z_BOUND


def test_bits_are_all_ones_where_the_mask_keeps():
    bits = keep_bits(3, "t", "e", 0, 1000, 0.3)
    assert torch.equal(bits, -keep_mask(3, "t", "e", 0, 1000, 0.3).int())


def scalar_mask(seed, tensor, expert, index, density):
    """The documented hash on Python integers: an independent second implementation."""
    word = 0xFFFFFFFF
    block, low = divmod(index, 2**32)
    first, second = mask_key(seed, tensor, expert, block=block)
    x = (low + first) & word
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & word
    x = (x + second) & word
    x = ((x ^ (x >> 11)) * 0xAC4C1B51) & word
    x = ((x ^ (x >> 15)) * 0x31848BAB) & word
    signed = x - 2**32 if x >= 2**31 else x
    return (signed >> 1) < round(density * 2**31) - 2**30


def test_mask_is_the_documented_hash_entry_by_entry():
    indices = [*range(300), 2**31 - 1, 2**31, 2**32 - 1, 2**32, 5 * 2**32 + 7]
    for index in indices:
        mask = keep_mask(7, "model.layers.0.w", "math", index, index + 1, 0.37)
        assert mask.item() == scalar_mask(7, "model.layers.0.w", "math", index, 0.37)


def test_masks_never_change_between_releases():
    """Golden bits, by the scalar hash above: merges must be made again bit for bit."""
    mask = keep_mask(0, "model.embed_tokens.weight", "safety", 0, 32, 0.5)
    assert "".join("01"[keep] for keep in mask.tolist()) == "00100010011111100110101010101001"


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2)])
def test_a_range_that_does_not_ascend_is_refused(start, stop):
    with pytest.raises(MergeError, match=f"got start={start}, stop={stop}"):
        keep_mask(0, "t", "e", start, stop, 0.5)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(MergeError, match=rf"tensor 't', expert 'e': density .* got {density}"):
        keep_mask(0, "t", "e", 0, 4, density)
