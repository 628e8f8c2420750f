import pytest
import torch

from safemerge.engines.engine import Sampling
from safemerge.engines.transformers_engine import DrawnTokens

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(samplings, steps=1):
    """Tokens that a greedy loop takes, shape (steps, rows)."""
    processor = DrawnTokens(samplings)
    rows = [
        processor(torch.zeros(0), LOGITS.repeat(len(samplings), 1)).argmax(-1)
        for _ in range(steps)
    ]
    return torch.stack(rows)


def shares(sampling):
    tokens = drawn([sampling], steps=4000)[:, 0]
    return [(tokens == token).float().mean().item() for token in range(4)]


def test_tokens_come_as_often_as_they_are_probable():
    # 4000 draws: four standard errors are below 0.032.
    assert shares(Sampling(1.0, seed=3)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.032)


def test_temperature_flattens_or_sharpens():
    sharp = torch.softmax(LOGITS / 0.5, -1).tolist()
    assert shares(Sampling(0.5, seed=3)) == pytest.approx(sharp, abs=0.032)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, [0]), (0.51, [0, 1]), (0.79, [0, 1]), (0.81, [0, 1, 2])]
)
def test_top_p_keeps_the_fewest_tokens_that_sum_to_it(top_p, kept):
    found = shares(Sampling(1.0, top_p=top_p, seed=3))
    assert [token for token, share in enumerate(found) if share] == kept
    whole = sum([0.5, 0.3, 0.15, 0.05][token] for token in kept)
    assert found[0] == pytest.approx(0.5 / whole, abs=0.032)


def test_a_rows_draws_hang_on_its_seed_and_not_on_its_neighbours():
    alone = drawn([Sampling(1.0, seed=5)], steps=50)[:, 0]
    among = drawn([Sampling(1.0, seed=6), None, Sampling(1.0, seed=5)], steps=50)
    assert torch.equal(alone, among[:, 2])
    assert not torch.equal(alone, among[:, 0])
    assert set(among[:, 1].tolist()) == {0}
